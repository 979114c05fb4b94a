"""Heirloom beside PEFT: same machine, same minutes, same model, same rows, same steps.

    python benches/peft/run.py --python VENV/bin/python     # VENV has requirements.txt

Programs start anew for every repetition and take turns at going first; a first run of each is
not counted. What is measured, and how, stands in README.md. Needs only Python itself: it must
stay small, since Linux counts a parent's memory at the fork into its child's peak.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# Steps that fill caches and are left out of the speed.
WARM_STEPS = 3


def measure(command, metrics, log, environment):
    """Runs `command`; seconds until `metrics` had its first line, and the peak memory."""
    metrics.unlink(missing_ok=True)
    with open(log, "w") as out:
        began = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment,
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        first = None
        while True:
            if first is None and has_line(metrics):
                first = time.perf_counter() - began
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            # Fine where it matters, rare afterwards.
            time.sleep(0.002 if first is None else 0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or first is None:
        sys.exit(f"run: {command[0]} failed with status {process.returncode}; see {log}")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    # Time spent on tokenising is the peer's to keep: ours counts its own.
    clock = lambda row: row["seconds"] - row.get("data_seconds", 0.0)
    a, b = rows[WARM_STEPS - 1], rows[-1]
    return {
        "tokens_per_second": (b["tokens"] - a["tokens"]) / (clock(b) - clock(a)),
        "peak_memory_mb": usage.ru_maxrss / 1024,
        "first_step_seconds": first,
        "steps": len(rows),
        "tokens_per_step": b["tokens"] / len(rows),
        "first_loss": rows[0]["loss"],
        "last_loss": statistics.mean(row["loss"] for row in rows[-5:]),
        "wall_seconds": time.perf_counter() - began,
    }


def has_line(path):
    try:
        return b"\n" in path.read_bytes()
    except FileNotFoundError:
        return False


class Bench:
    def __init__(self, args):
        self.args = args
        self.work = ROOT / "runs" / "bench-peft"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        # The same cores and threads for both.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
        count = str(args.threads)
        self.environment = os.environ | {
            "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "RAYON_NUM_THREADS": count,
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        }

    def run_folder(self, turn):
        return ROOT / "runs" / f"bench-peft-{turn}"

    def heirloom(self, turn):
        folder = self.run_folder(turn)
        shutil.rmtree(folder, ignore_errors=True)
        sets = [f"name={folder.name}", f"train.max_steps={self.args.steps}", *self.args.set]
        command = [self.args.heirloom, "train", self.args.recipe]
        command += [word for pair in sets for word in ("--set", pair)]
        log = self.work / f"heirloom-{turn}.log"
        return measure(command, folder / "metrics.jsonl", log, self.environment)

    def peft(self, turn, tokens):
        metrics = self.work / f"peft-{tokens}-{turn}.jsonl"
        command = [self.args.python, HERE / "peer.py", self.run_folder(0), "--metrics", metrics,
                   "--threads", self.args.threads, "--micro-batch-tokens", tokens]
        return measure(command, metrics, metrics.with_suffix(".log"), self.environment)

    def program(self, name, turn):
        return self.heirloom(turn) if name == "heirloom" else self.peft(turn, name.split("-")[1])

    def same_rows(self):
        command = [self.args.python, HERE / "peer.py", self.run_folder(0), "--check"]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, env=self.environment,
                              capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"run: the two do not see the same rows and tokens\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def run(self):
        # Not counted: fills the page cache, and leaves the lock that the peer reads.
        self.heirloom(0)
        rows = self.same_rows()
        names = ["heirloom", *(f"peft-{size}" for size in self.args.peer_micro_batch_tokens)]
        self.program(names[-1], 0)
        turns = []
        for turn in range(1, self.args.repeat + 1):
            names = names[1:] + names[:1]
            turns.append({name: self.program(name, turn) for name in names})
            speeds = {name: round(turns[-1][name]["tokens_per_second"]) for name in sorted(names)}
            print(f"turn {turn} of {self.args.repeat}: tokens per second {speeds}", file=sys.stderr)
        return {"machine": machine(), "settings": vars(self.args), "rows": rows, "turns": turns}


def machine():
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}


def table(turns, peer):
    """Medians with their range; the ratio is the median of the ratios of each turn."""
    measures = [
        ("training tokens per second", "tokens_per_second", "{:.0f}"),
        ("peak memory, MB", "peak_memory_mb", "{:.0f}"),
        ("start to first finished step, s", "first_step_seconds", "{:.2f}"),
        ("non-padding tokens a step", "tokens_per_step", "{:.0f}"),
        ("loss, first step", "first_loss", "{:.3f}"),
        ("loss, mean of last five", "last_loss", "{:.3f}"),
    ]
    lines = [f"| measure | heirloom | {peer} | ratio |", "|---|---|---|---|"]
    for title, key, form in measures:
        ours, theirs = ([turn[name][key] for turn in turns] for name in ("heirloom", peer))
        ratios = [a / b for a, b in zip(ours, theirs)]
        cells = [spread(ours, form), spread(theirs, form), spread(ratios, "{:.2f}")]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values, form):
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="a Python with requirements.txt")
    parser.add_argument("--heirloom", default=ROOT / "target/release/heirloom", type=Path)
    parser.add_argument("--recipe", default=HERE / "recipe.yaml", type=Path)
    parser.add_argument("--set", action="append", default=[], help="override for both: base.dtype=bfloat16")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-micro-batch-tokens", type=int, nargs="+", default=[1024, 4096],
                        help="the peer runs once with each: its user would look for the best")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/bench-peft/results.json")
    args = parser.parse_args()
    if args.steps <= WARM_STEPS:
        parser.error(f"--steps must be more than {WARM_STEPS}")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"run: other programs are busy here (load {load:.1f}): speeds will not mean much", file=sys.stderr)
    results = Bench(args).run() | {"load_before": load}
    args.output.write_text(json.dumps(results, indent=1, default=str) + "\n")
    print("\n\n".join(table(results["turns"], f"peft-{size}") for size in args.peer_micro_batch_tokens))


if __name__ == "__main__":
    main()
