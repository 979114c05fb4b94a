"""Check that Heirloom and huggingface_hub share one cache, in both directions.

Serves a base model as the hub does, from this machine, and lets each program use what the
other downloaded. Started by scripts/interop, or by itself:

    python scripts/interop.d/hub.py --heirloom target/release/heirloom --base data/seedling
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = "example/seedling"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# In a process of its own: huggingface_hub reads its variables when it is imported.
DOWNLOAD_ALL = f"""
from huggingface_hub import snapshot_download
print(snapshot_download("{REPO}"))
"""
DOWNLOAD_AS_TRANSFORMERS = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained("{REPO}")
AutoModelForCausalLM.from_pretrained("{REPO}")
"""
READ_ALL = f"""
import sys
from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.file_download import _CACHED_NO_EXIST
from transformers import AutoModelForCausalLM, AutoTokenizer
info = scan_cache_dir()
assert not info.warnings, info.warnings
[repo] = info.repos
[revision] = repo.revisions
assert revision.commit_hash == "{COMMIT}" and revision.refs == frozenset({{"main"}}), revision
folder = snapshot_download("{REPO}", local_files_only=True)
assert folder.endswith("{COMMIT}"), folder
for name in sys.argv[1:]:
    found = try_to_load_from_cache("{REPO}", name)
    assert isinstance(found, str), name
    assert found == try_to_load_from_cache("{REPO}", name, revision="{COMMIT}"), name
assert try_to_load_from_cache("{REPO}", "NOTICE") is _CACHED_NO_EXIST
AutoTokenizer.from_pretrained("{REPO}")
AutoModelForCausalLM.from_pretrained("{REPO}")
"""


def is_large(name):
    return name.endswith(".safetensors") or name == "tokenizer.json"


class Hub(ThreadingHTTPServer):
    """The files of a folder as one commit of one model."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
        self.files = {path.name: path.read_bytes() for path in paths}
        self.asked = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self):
        # Another host by its name, as the public hub keeps large files on other hosts.
        return f"http://localhost:{self.server_port}"

    def asked_since(self):
        asked, self.asked = self.asked, []
        return asked


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        files = self.server.files
        self.server.asked.append(path)
        if path.startswith("/blobs/"):
            digest = path.removeprefix("/blobs/")
            bodies = [body for body in files.values() if sha256(body) == digest]
            return self.send(200, bodies[0], {"ETag": f'"{digest}"'})
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            siblings = [{"rfilename": name} for name in files]
            return self.json({"id": REPO, "sha": COMMIT, "siblings": siblings, "private": False})
        if path in (f"/api/models/{REPO}/tree/main", f"/api/models/{REPO}/tree/{COMMIT}"):
            return self.json([entry(name, body) for name, body in files.items()])
        if path.startswith(f"/api/models/{REPO}/tree/"):
            return self.send(404, b"", {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound"})
        parts = path.split("/")
        if parts[1:4] == [*REPO.split("/"), "resolve"] and parts[4] in ("main", COMMIT):
            name = "/".join(parts[5:])
            headers = {"X-Repo-Commit": COMMIT}
            body = files.get(name)
            if body is None:
                return self.send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
            if is_large(name):
                digest = sha256(body)
                headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
                return self.send(302, b"", {**headers, "Location": f"{self.server.cdn}/blobs/{digest}"})
            return self.send(200, body, {**headers, "ETag": f'"{git(body)}"'})
        return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status, body, headers):
        start = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        if status == 200 and start.isdigit() and 0 < int(start) < len(body):
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[int(start) :]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def sha256(body):
    return hashlib.sha256(body).hexdigest()


def git(body):
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def entry(name, body):
    found = {"type": "file", "path": name, "size": len(body), "oid": git(body)}
    if is_large(name):
        found["lfs"] = {"oid": sha256(body), "size": len(body), "pointerSize": 132}
    return found


def environment(endpoint, home, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    for name in ("TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        kept.pop(name, None)
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return kept | quiet | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)} | more


def run(command, variables):
    ran = subprocess.run(command, env=variables, capture_output=True, text=True)
    if ran.returncode != 0:
        raise AssertionError(f"{command[0]}: {ran.stderr[-2000:]}")
    return ran.stdout


def layout(home):
    """Every snapshot file with the link that it is, and every ref."""
    repo = Path(home) / "hub" / f"models--{REPO.replace('/', '--')}"
    links = {str(path.relative_to(repo)): os.readlink(path) for path in repo.glob("snapshots/*/*")}
    return links, (repo / "refs/main").read_text()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heirloom", required=True, type=Path)
    parser.add_argument("--base", default="data/seedling", type=Path)
    arguments = parser.parse_args()
    hub, failures = Hub(arguments.base), 0

    def heirloom(home, address, **more):
        # What would compute only prints what it is told.
        variables = environment(hub.endpoint, home, HEIRLOOM_ENGINE="/bin/echo", **more)
        return run([arguments.heirloom, "generate", address, "--prompt", "Hello"], variables)

    def python(home, program, *words, **more):
        return run([sys.executable, "-c", program, *words], environment(hub.endpoint, home, **more))

    def ours_for_python(home, other):
        heirloom(home, f"hf://{REPO}")
        hub.asked_since()
        python(home, READ_ALL, *hub.files, HF_HUB_OFFLINE="1")
        assert not hub.asked_since()
        python(other, DOWNLOAD_ALL)
        assert layout(home) == layout(other), (layout(home), layout(other))

    def snapshot_for_us(home, _):
        python(home, DOWNLOAD_ALL)
        hub.asked_since()
        said = heirloom(home, f"hf://{REPO}@{COMMIT}")
        assert str(home) in said and COMMIT in said, said
        assert not (asked := hub.asked_since()), asked
        heirloom(home, f"hf://{REPO}", HF_HUB_OFFLINE="1")
        assert not hub.asked_since()

    def transformers_for_us(home, _):
        python(home, DOWNLOAD_AS_TRANSFORMERS)
        heirloom(home, f"hf://{REPO}", HF_HUB_OFFLINE="1")
        hub.asked_since()
        heirloom(home, f"hf://{REPO}@{COMMIT}")
        # Transformers leaves the card and the licence: they alone are fetched.
        asked = [path for path in hub.asked_since() if "/tree/" not in path]
        wanted = {f"/{REPO}/resolve/{COMMIT}/{name}" for name in ("README.md", "LICENSE")}
        assert set(asked) <= wanted, asked
        heirloom(home, f"hf://{REPO}@{COMMIT}")
        assert not hub.asked_since()

    for name, check in {
        "huggingface_hub and Transformers use what Heirloom downloaded": ours_for_python,
        "Heirloom uses what snapshot_download downloaded": snapshot_for_us,
        "Heirloom uses what from_pretrained downloaded": transformers_for_us,
    }.items():
        with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as other:
            try:
                check(Path(home), Path(other))
                print(f"{name:<64} ok")
            except AssertionError as error:
                failures += 1
                print(f"{name:<64} FAILED\n  {error}")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
