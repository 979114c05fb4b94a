"""Trackers: train once, with every tracker, and let their own programs read what they got.

TensorBoard's loader reads the event file; `wandb sync` sends the offline file to a server on
this machine, which also gets the run online; a real `mlflow server` on this machine answers for
itself. All must hold every number of metrics.jsonl, under its name and at its step. Then the
same with a run that is killed and resumed, and with servers that come up only afterwards.
"""

import argparse
import gzip
import hashlib
import http.server
import json
import math
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

RECIPE = """\
heirloom: 1
name: tracked
base: {{ model: data/seedling }}
adapter: {{ lora: {{ rank: 4, alpha: 8, targets: [q_proj, v_proj] }} }}
data:
  purpose: [dpv:ServiceProvision]
  train: [{{ path: data/catalogue/validation.parquet, format: chat }}]
  validation: [{{ path: data/catalogue/test.parquet, format: chat }}]
  sequence_length: 256
train:
  epochs: 1
  max_steps: 12
  tokens_per_step: 512
  optimizer: {{ adamw: {{ lr: 1.0e-3 }} }}
  seed: 3
  validate_every: 6
  checkpoint_every: 4
track:
  - tensorboard
  - wandb: {{ mode: {mode}, project: interop, entity: lab }}
  - mlflow: {{ tracking_uri: "http://127.0.0.1:{mlflow}", experiment_name: interop {mode} }}
"""


class Wandb(http.server.BaseHTTPRequestHandler):
    """What `wandb sync` and an online run ask of a server."""

    protocol_version = "HTTP/1.1"
    rows, bodies, port = {}, [], 0

    def log_message(self, *_):
        pass

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return body

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        self.body()
        self.answer({})

    def do_POST(self):
        body = json.loads(self.body() or b"{}")
        if self.path.endswith("/graphql"):
            return self.answer({"data": self.graphql(body)})
        key = "/".join(self.path.split("/")[2:5])
        history = body.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        rows = self.rows.setdefault(key, {})
        for number, row in enumerate(history["content"], history["offset"]):
            rows[number] = json.loads(row)
        self.bodies.append((key, body))
        return self.answer({"exitcode": None, "limits": {}})

    def graphql(self, body):
        query, given = body.get("query", ""), body.get("variables", {})
        if "upsertBucket" in query:
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "lab"}}
            bucket = {"id": "b", "name": given["name"], "displayName": "x", "description": "",
                      "config": "{}", "sweepName": None, "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"http://127.0.0.1:{self.port}/storage/{name}"}
                     for name in given.get("files", [])]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            viewer = {"id": "v", "entity": "lab", "username": "lab", "flags": "{}",
                      "teams": {"edges": []}, "email": "x@example.org"}
            info = {"cliVersionInfo": {"max_cli_version": "0.31.0"}, "latestLocalVersionInfo": None,
                    "features": []}
            return {"viewer": viewer, "serverInfo": info}
        if "erverInfo" in query:
            return {"serverInfo": {"features": [], "cliVersionInfo": {},
                                   "latestLocalVersionInfo": None}}
        return {"project": None, "model": None}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def expected_of(run):
    """Every number of metrics.jsonl as {(name, step): value}."""
    numbers = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(line)
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)):
                # A validation has some of the names of its step, with the same values.
                numbers[name, line["step"]] = float(value)
    return numbers


def same(found, expected, single=False):
    """What differs, in words; nothing where all is well."""
    if found.keys() != expected.keys():
        return f"{len(found.keys() ^ expected.keys())} names and steps differ"
    rounded = (lambda x: struct.unpack("f", struct.pack("f", x))[0]) if single else (lambda x: x)
    wrong = [key for key, value in expected.items()
             if not (found[key] == rounded(value) or math.isnan(value) and math.isnan(found[key]))]
    return f"{len(wrong)} numbers differ, first {wrong[0]}" if wrong else ""


def tensorboard_of(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loader = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    loader.Reload()
    return {(tag, event.step): event.value
            for tag in loader.Tags()["scalars"] for event in loader.Scalars(tag)}


def wandb_of(rows):
    assert sorted(rows) == list(range(len(rows))), "a row is missing"
    return {(name, row["step"]): float(value) for row in rows.values()
            for name, value in row.items() if not name.startswith("_") and name != "step"}


def mlflow_of(port, run):
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{port}")
    name = json.loads((run / "track/mlflow.json").read_text())["run"]
    found = client.get_run(name)
    numbers, twice = {}, 0
    for key in found.data.metrics:
        history = client.get_metric_history(name, key)
        # At a validation's step some names come twice, with one value.
        twice += len({(m.step, m.value) for m in history}) - len({m.step for m in history})
        numbers.update({(key, metric.step): metric.value for metric in history})
    assert twice == 0, f"{twice} steps have several values"
    return numbers, found


class Table:
    """A row for each check; how many failed."""

    def __init__(self):
        self.failed = 0
        print(f"{'check':44} {'expected':28} found")

    def row(self, name, expected, found, holds):
        self.failed += not holds
        print(f"{name:44} {expected:28} {found}{'' if holds else '   FAILED'}", flush=True)


class Servers:
    def __init__(self, folder):
        self.folder, self.mlflow_port, self.mlflow = folder, free_port(), None
        Wandb.port = free_port()
        self.wandb = http.server.ThreadingHTTPServer(("127.0.0.1", Wandb.port), Wandb)
        threading.Thread(target=self.wandb.serve_forever, daemon=True).start()

    def start_mlflow(self):
        store = f"sqlite:///{self.folder}/mlflow.db"
        self.mlflow = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port",
             str(self.mlflow_port), "--backend-store-uri", store, "--workers", "1",
             "--artifacts-destination", f"{self.folder}/artifacts"],
            stdout=open(self.folder / "mlflow.log", "w"), stderr=subprocess.STDOUT,
            start_new_session=True)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.mlflow_port}/health", timeout=2)
                return
            except OSError:
                time.sleep(0.2)
        raise SystemExit("interop: mlflow server does not come up: see its log")

    def stop(self):
        if self.mlflow:
            os.killpg(self.mlflow.pid, signal.SIGTERM)
        self.wandb.shutdown()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--heirloom", required=True)
    heirloom = str(pathlib.Path(parser.parse_args().heirloom).resolve())
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        servers = Servers(folder)
        environment = {
            **os.environ, "HEIRLOOM_HOME": str(folder), "OMP_NUM_THREADS": "1",
            "WANDB_BASE_URL": f"http://127.0.0.1:{Wandb.port}", "WANDB_API_KEY": "0" * 40,
            "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "NO_PROXY": "*"}

        def call(*arguments):
            return subprocess.run([heirloom, *arguments], env=environment, text=True,
                                  capture_output=True)

        def train(name, mode, *more):
            recipe = folder / f"{mode}.yaml"
            recipe.write_text(RECIPE.format(mode=mode, mlflow=servers.mlflow_port))
            return [str(recipe), "--run", str(folder / name), *more]

        def compare(name, mode):
            run = folder / name
            expected = expected_of(run)
            losses = sum(1 for key in expected if key[0] == "loss")
            table.row(f"{name}: metrics.jsonl", "12 steps, 2 validations", f"{losses} steps",
                      losses == 12 and ("validation_loss", 12) in expected)
            wrong = same(tensorboard_of(run), expected, single=True)
            table.row(f"{name}: TensorBoard's loader", "the same in f32", wrong or "the same",
                      not wrong)
            if mode == "offline":
                offline = next((run / "wandb").iterdir())
                sync = subprocess.run(
                    [str(pathlib.Path(sys.executable).parent / "wandb"), "sync", str(offline)],
                    env=environment, capture_output=True, text=True, cwd=folder)
                table.row(f"{name}: wandb sync", "exit status 0", f"{sync.returncode}",
                          sync.returncode == 0)
            key = f"lab/interop/{digest(run)}"
            wrong = same(wandb_of(Wandb.rows.get(key, {})), expected)
            table.row(f"{name}: Weights & Biases {mode}", "the same", wrong or "the same",
                      not wrong)
            ended = any(body.get("complete") for found, body in Wandb.bodies if found == key)
            table.row(f"{name}: its end", "complete", "complete" if ended else "open", ended)
            numbers, found = mlflow_of(servers.mlflow_port, run)
            wrong = same(numbers, expected)
            table.row(f"{name}: MLflow's client", "the same", wrong or "the same", not wrong)
            seed, status = found.data.params.get("train.seed"), found.info.status
            table.row(f"{name}: parameters and status", "3, FINISHED", f"{seed}, {status}",
                      (seed, status) == ("3", "FINISHED"))

        # Nobody listens for MLflow yet: a warning, and sync afterwards.
        ran = call("train", *train("offline", "offline"))
        table.row("MLflow away: train", "exit status 0, a warning", f"{ran.returncode}",
                  ran.returncode == 0 and "track sync" in ran.stderr)
        servers.start_mlflow()
        synced = call("track", "sync", str(folder / "offline"))
        table.row("track sync", "exit status 0", f"{synced.returncode}", synced.returncode == 0)
        compare("offline", "offline")
        ran = call("train", *train("online", "online"))
        table.row("online: train", "exit status 0, no warning", f"{ran.returncode}",
                  ran.returncode == 0 and "warning" not in ran.stderr)
        compare("online", "online")
        servers.stop()
    raise SystemExit(1 if table.failed else 0)


def digest(run):
    return hashlib.sha256((run / "recipe.lock").read_bytes()).hexdigest()[:12]


if __name__ == "__main__":
    main()
