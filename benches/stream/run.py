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
HEIRLOOM = "heirloom, packed"
# Tokens of a window; none of the rows is longer.
WINDOW = 4096


def recipe(base, files):
    """What the stream is asked for; JSON is YAML, too."""
    return {
        "heirloom": 1, "name": "bench-stream", "base": {"model": str(base), "dtype": "float32"},
        "adapter": {"lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": "all-linear"}},
        "data": {"purpose": ["dpv:ServiceProvision"], "sequence_length": WINDOW, "packing": "best-fit",
                 "train": [{"path": str(file), "format": "chat"} for file in files]},
        "train": {"epochs": 1, "tokens_per_step": 4 * WINDOW, "seed": 17,
                  "optimizer": {"adamw": {"lr": 1e-3}}}}


def programs(args, base, files):
    """Every program by its name."""
    asked = WORK / "recipe.json"
    asked.write_text(json.dumps(recipe(base, files)))
    peer = [args.python, HERE / "peer.py", base, "--rows", *files]
    found = {
        HEIRLOOM: [args.stream, asked, "--digest"],
        "datasets.map": peer,
        "batched": [*peer, "--batched"],
        f"batched, {args.threads} processes": [*peer, "--batched", "--processes", args.threads],
    }
    if args.pack:
        processes = f"batched, {args.threads} processes"
        found[f"{processes}, pack_dataset"] = [*found[processes], "--pack", WINDOW]
    return found


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
    parser.add_argument("--stream", default=ROOT / "target/release/examples/stream", type=Path)
    parser.add_argument("--rows", type=int, default=10_000, help="long conversations to make, and ten times as many short ones")
    parser.add_argument("--pack", action="store_true", help="let TRL pack, too (it must be installed)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    if not args.stream.exists():
        sys.exit(f"run: no {args.stream}: cargo build --release -p heirloom --example stream")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"run: other programs are busy here (load {load:.1f}): speeds will not mean much", file=sys.stderr)
    # The same processors for all.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    WORK.mkdir(parents=True, exist_ok=True)
    long, short = WORK / f"long-{args.rows}.parquet", WORK / f"short-{args.rows}.parquet"
    make = [f"make.write_rows({str(long)!r}, {args.rows}, False)", f"make.write_rows({str(short)!r}, {10 * args.rows}, True)",
            f"make.write_base({str(WORK / 'bpe-32k')!r})"]
    if not (WORK / "bpe-32k" / "tokenizer.json").exists() or not short.exists():
        subprocess.run([args.python, "-c", "; ".join(["import make", *make])], cwd=HERE, check=True)
    seedling, results = ROOT / "data/seedling", []
    for name, base, files in [("short, seedling's tokenizer", seedling, [short]),
                              ("long, seedling's tokenizer", seedling, [long]),
                              ("long, 32k tokenizer", WORK / "bpe-32k", [long])]:
        results.append(compare(args, name, base, files))
        show(results[-1])
    if args.json:
        machine = {"machine": platform.machine(), "threads": args.threads, "load": load}
        args.json.write_text(json.dumps(machine | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
