"""Every test and benchmark that wants a device of CUDA, in one go.

    check.py FOLDER [--device cuda:0] [--shape 8b] [--steps N] [--minutes M] [--out DIR]

FOLDER is what scripts/gpu-check-pack made. Needs only Python and PyTorch 2.11 beside it, and no
network. Prints a table; writes OUT/gpu-check.json, which belongs into docs/benchmarks/. The exit
status is 1 where a test or a benchmark of Heirloom's failed. With `--device cpu --shape tiny`
everything runs on the processor, to try the scripts.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

WARM_UP_STEPS = 3
# Name, Heirloom's `base.quantization`, the peer's (none trains over a base in fp8).
BENCHES = [("LoRA, bf16 base", "none", "none"), ("QLoRA, nf4 base", "nf4", "nf4"), ("LoRA, fp8 base", "fp8", "none")]
# Steps on the small shape whose losses are compared, and how far they may be apart, relatively.
LOSS_STEPS, LOSS_BOUND = 10, 1e-3
# Tests that take a device; all others have run wherever this was built.
TESTS = ["ops::", "quant::", "train::"]


class Run:
    """Where everything lies, and how much time is left."""

    def __init__(self, args):
        self.args, self.folder = args, args.folder.resolve()
        self.end = time.monotonic() + 60 * args.minutes
        self.out = args.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.variables = os.environ | {
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HEIRLOOM_HOME": str(self.out / "home"),
            "HEIRLOOM_KERNEL_CACHE": str(self.out / "kernels"), "RUST_BACKTRACE": "1",
        }
        self.variables["LD_LIBRARY_PATH"] = ":".join(self.libraries() + [os.environ.get("LD_LIBRARY_PATH", "")])
        with tarfile.open(self.folder / "bin.tar.xz") as programs:
            programs.extractall(self.out, filter="data")
        self.bin = self.out / "bin"
        site = self.unpacked()
        self.variables["PYTHONPATH"] = ":".join([str(site), os.environ.get("PYTHONPATH", "")])

    def libraries(self):
        """Folders with libtorch and with what it needs of CUDA."""
        import torch

        lib = Path(torch.__file__).parent / "lib"
        beside = lib.parents[1] / "nvidia" / "cu13" / "lib"
        return [str(folder) for folder in (lib, beside) if folder.is_dir()]

    def unpacked(self):
        """The wheels, laid where Python finds them."""
        site, wheels = self.out / "site", sorted((self.folder / "wheels").glob("*.whl"))
        if wheels and not site.is_dir():
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile",
                            "--target", site, *wheels], check=True)
        return site

    def call(self, name, command, **variables):
        """(status, standard output, peak of resident memory); status None where time was up."""
        left = self.end - time.monotonic()
        with open(self.out / f"{name}.log", "w") as log:
            try:
                done = subprocess.run(list(map(str, command)), cwd=self.folder, env=self.variables | variables,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                                      timeout=max(left, 1))
            except subprocess.TimeoutExpired:
                return None, ""
        with open(self.out / f"{name}.log", "a") as log:
            log.write(done.stdout)
        return done.returncode, done.stdout


def tests(run):
    """Results of the engine's tests with the device as one of those that are put to the test."""
    device = {} if run.args.device == "cpu" else {
        "HEIRLOOM_TEST_DEVICE": run.args.device, "HEIRLOOM_TEST_NVRTC": "1",
        # libtorch learns of CUDA at the first question, which any test may ask.
        "LD_PRELOAD": "libtorch_cuda.so"}
    began = time.monotonic()
    status, text = run.call("tests", [run.bin / "engine-tests", "--test-threads=1", *TESTS], **device)
    counts = re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", text)
    passed, failed = map(int, counts.groups()) if counts else (0, 0)
    names = sorted(set(re.findall(r"^test (\S+) \.\.\. FAILED", text, re.M)))
    return {"status": status, "passed": passed, "failed": failed, "failures": names,
            "seconds": time.monotonic() - began, "on_device": bool(device)}


def recipe(run, quantization, shape=None, dtype="bfloat16", steps=None):
    """The recipe of ../engine over what lies in the folder."""
    sys.path.insert(0, str(run.folder / "benches" / "engine"))
    import work

    shape = shape or run.args.shape
    made = work.recipe(shape, dtype, quantization, steps or WARM_UP_STEPS + run.args.steps)
    # One sequence at a time: neither program recomputes activations.
    made["train"]["micro_batch_tokens"] = made["data"]["sequence_length"]
    data = Path("data") / shape
    made["base"]["model"] = str(data / "base")
    made["data"]["train"][0]["path"] = str(data / "rows.parquet")
    path = run.out / f"{shape}-{dtype}-{quantization}.recipe.json"
    path.write_text(json.dumps(made, indent=1))
    return path


def heirloom(run, quantization):
    command = [run.bin / "heirloom", "bench", recipe(run, quantization), "--steps", run.args.steps,
               "--random-weights", "--device", run.args.device, "--format", "json"]
    status, text = run.call(f"heirloom-{quantization}", command)
    return json.loads(text) if status == 0 else {"failed": f"status {status}"}


def peer(run, quantization, liger):
    name = f"peer-{quantization}" + ("-liger" if liger else "")
    command = [sys.executable, run.folder / "benches" / "gpu" / "peer.py", recipe(run, quantization),
               "--steps", WARM_UP_STEPS + run.args.steps, "--device", run.args.device.split(":")[0]]
    status, text = run.call(name, command + (["--liger"] if liger else []))
    if status != 0:
        return {"failed": f"status {status}"}
    report = json.loads(text)
    # Of an even number the slower, as `heirloom bench`.
    seconds = statistics.median_high(report["seconds"][WARM_UP_STEPS:])
    return report | {"step_seconds": seconds, "tokens_per_second": report["tokens_per_step"] / seconds}


def losses(run):
    """The losses of a few steps in float32, on the processor and on the device, by quantisation.

    Without a device the second is computed by plain tensor operations."""
    found = {}
    for quantization in ("none", "nf4"):
        path = recipe(run, quantization, shape="tiny", dtype="float32", steps=LOSS_STEPS)
        where = {"processor": ("cpu", {}), "device": (run.args.device, {})}
        if run.args.device == "cpu":
            where["device"] = ("cpu", {"HEIRLOOM_OPS": "reference"})
        curves = {}
        for name, (device, variables) in where.items():
            folder = run.out / "runs" / f"{quantization}-{name}"
            command = [run.bin / "heirloom", "train", path, "--run", folder, "--device", device]
            status, _ = run.call(f"losses-{quantization}-{name}", command, **variables)
            lines = (folder / "metrics.jsonl").read_text().splitlines() if status == 0 else []
            curves[name] = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
        apart = [abs(a / b - 1) for a, b in zip(curves["device"], curves["processor"])]
        enough = len(apart) == LOSS_STEPS
        found[quantization] = curves | {"largest_difference": max(apart) if enough else None,
                                        "same": enough and max(apart) <= LOSS_BOUND}
    return found


def benches(run):
    """One after another: they would share the device. A peer that was measured is not again."""
    found, peers = [], {}
    for name, ours, theirs in BENCHES:
        if theirs not in peers:
            # Liger's kernels need a device, and may not know its Transformers: then without.
            liger = run.args.device != "cpu"
            peers[theirs] = peer(run, theirs, liger) | {"liger": liger}
            if liger and "failed" in peers[theirs]:
                peers[theirs] = peer(run, theirs, False) | {"liger": False}
        found.append({"name": name, "heirloom": heirloom(run, ours), "peer": peers[theirs], "peer_base": theirs})
    return found


def machine(run):
    import torch

    about = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
             "python": platform.python_version()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        about |= {"device": properties.name, "capability": f"{properties.major}.{properties.minor}",
                  "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    for name in ("transformers", "peft", "bitsandbytes", "liger_kernel"):
        probe = f"import importlib.metadata as m; print(m.version('{name}'))"
        done = subprocess.run([sys.executable, "-c", probe], env=run.variables, capture_output=True, text=True)
        about[name] = done.stdout.strip() or None
    return about


def table(result):
    """What is printed."""
    say = lambda report, key, form: form(report[key]) if report.get(key) is not None else report.get("failed", "unknown")
    lines = ["| | heirloom tokens/s | peer tokens/s | ratio | heirloom peak GiB | peer peak GiB | share of matrix rate |",
             "|---|---|---|---|---|---|---|"]
    gib = lambda count: f"{count / 2**30:.2f}"
    for bench in result["benches"]:
        ours, theirs = bench["heirloom"], bench["peer"]
        speeds = [report.get("tokens_per_second") for report in (ours, theirs)]
        ratio = f"{speeds[0] / speeds[1]:.2f}" if all(speeds) else ""
        lines.append("| " + " | ".join([
            bench["name"], say(ours, "tokens_per_second", "{:.0f}".format), say(theirs, "tokens_per_second", "{:.0f}".format),
            ratio, say(ours, "peak_memory_bytes", gib), say(theirs, "peak_memory_bytes", gib),
            say(ours, "matrix_share", "{:.2f}".format)]) + " |")
    ran = result["tests"]
    lines += ["", f"tests: {ran['passed']} passed, {ran['failed']} failed"
              + ("" if ran["on_device"] else "; on the processor alone") + f" ({ran['seconds']:.0f} s)"]
    lines += [f"  failed: {name}" for name in ran["failures"]]
    for quantization, curves in result["losses"].items():
        apart = curves["largest_difference"]
        lines.append(f"losses over a base in {quantization}: "
                     + ("no curves" if apart is None else f"at most {apart:.1e} apart, relatively"))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=7.5, help="after so many nothing more is begun")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-check-out")))
    run = Run(parser.parse_args())
    result = {"machine": machine(run), "settings": {"device": run.args.device, "shape": run.args.shape,
                                                    "steps": run.args.steps}}
    result |= {"tests": tests(run), "losses": losses(run), "benches": benches(run)}
    result["child_peak_rss_kb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    (run.out / "gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    wrong = (result["tests"]["status"] != 0 or any("failed" in bench["heirloom"] for bench in result["benches"])
             or not all(curves["same"] for curves in result["losses"].values()))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
