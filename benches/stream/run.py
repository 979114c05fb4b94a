"""Heirloom beside datasets.map: the same rows, tokenizer, template and processors.

    VENV/bin/python benches/stream/run.py            # VENV has requirements.txt

Programs start anew for every repetition and take turns at going first; a first turn of all is
not counted. What is measured, and how, stands in README.md. Prints a Markdown table and, with
`--json`, writes what it is made of.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WORK = ROOT / "runs" / "bench-stream"
HEIRLOOM = "heirloom"


def programs(args, base, files):
    """Every program by its name."""
    peer = [args.python, HERE / "peer.py", base, "--rows", *files]
    return {
        HEIRLOOM: [args.encode, base, *files],
        "datasets.map": peer,
        "batched": [*peer, "--batched"],
        f"batched, {args.threads} processes": [*peer, "--batched", "--processes", args.threads],
    }


def measure(command, threads):
    """What a program says of itself: seconds, rows, tokens, digest."""
    environment = os.environ | {
        "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        # One process may tokenise a batch on all processors; several share them.
        "TOKENIZERS_PARALLELISM": "false" if "--processes" in command else "true",
    }
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"run: {command[0]} failed\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(args, name, base, files):
    """Medians over turns; the ratios are of the same turn."""
    commands = programs(args, base, files)
    order, turns = list(commands), []
    for turn in range(args.repeat + 1):
        order.append(order.pop(0))
        found = {program: measure(commands[program], args.threads) for program in order}
        digests = {(f["rows"], f["tokens"], f["digest"]) for f in found.values()}
        if len(digests) != 1:
            sys.exit(f"run: tokens or masks of {name} differ: {found}")
        # The first turn fills the page cache.
        if turn:
            turns.append(found)
    rows = turns[0][HEIRLOOM]["rows"]
    result = {"rows": name, "count": rows, "tokens": turns[0][HEIRLOOM]["tokens"], "programs": {}}
    for program in commands:
        seconds = [turn[program]["seconds"] for turn in turns]
        ratios = [turn[program]["seconds"] / turn[HEIRLOOM]["seconds"] for turn in turns]
        result["programs"][program] = {
            "seconds": seconds, "rows_per_second": rows / statistics.median(seconds),
            "ratio": statistics.median(ratios), "ratios": ratios}
    return result


def show(result):
    print(f"\n{result['rows']}: {result['count']} rows, {result['tokens']} tokens; tokens and masks of all programs are equal")
    print("| program | rows/s | heirloom is faster by |\n|---|---|---|")
    for program, found in result["programs"].items():
        low, high = min(found["ratios"]), max(found["ratios"])
        ratio = "" if program == HEIRLOOM else f"{found['ratio']:.1f} ({low:.1f} to {high:.1f})"
        print(f"| {program} | {found['rows_per_second']:.0f} | {ratio} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="a Python with requirements.txt")
    parser.add_argument("--encode", default=ROOT / "target/release/examples/encode", type=Path)
    parser.add_argument("--rows", type=int, default=10_000, help="long conversations to make")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    if not args.encode.exists():
        sys.exit(f"run: no {args.encode}: cargo build --release -p heirloom --example encode")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"run: other programs are busy here (load {load:.1f}): speeds will not mean much", file=sys.stderr)
    # The same processors for all.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    WORK.mkdir(parents=True, exist_ok=True)
    long = WORK / f"conversations-{args.rows}.parquet"
    make = f"import make; make.write_rows({str(long)!r}, {args.rows}); make.write_base({str(WORK / 'bpe-32k')!r})"
    if not long.exists() or not (WORK / "bpe-32k" / "tokenizer.json").exists():
        subprocess.run([args.python, "-c", make], cwd=HERE, check=True)
    catalogue, seedling = sorted((ROOT / "data/catalogue").glob("train-*.parquet")), ROOT / "data/seedling"
    results = []
    for name, base, files in [("catalogue, seedling's tokenizer", seedling, catalogue),
                              ("long, seedling's tokenizer", seedling, [long]),
                              ("long, 32k tokenizer", WORK / "bpe-32k", [long])]:
        results.append(compare(args, name, base, files))
        show(results[-1])
    if args.json:
        machine = {"machine": platform.machine(), "threads": args.threads, "load": load}
        args.json.write_text(json.dumps(machine | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
