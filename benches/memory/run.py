"""Predicted beside measured: the most memory of whole runs over a grid of shapes and methods.

    python benches/memory/run.py --python VENV/bin/python
    python benches/memory/run.py --python VENV/bin/python --only nf4 --tensors

Every line of the grid trains a few steps in a process of its own. What is compared, and how,
stands in README.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "engine"))
from work import ROOT, call, environment, machine, write  # noqa: E402

WORK = ROOT / "runs" / "bench-memory"
SHAPES = HERE / "shapes.json"
ENGINE = HERE.parent / "engine"
STEPS = 3
# What a prediction may be off: too high, too low.
BARS = (0.05, -0.02)

# Shape, method, precision, tokens of a window, tokens of a micro-batch and of a step. After each plus
# of the method: `train.activation_checkpointing`, or one of WITH.
GRID = [
    ("256x4", "lora", "bfloat16", 256, 1024, 2048),
    ("256x4", "lora", "float32", 512, 4096, 4096),
    ("256x4", "full", "float32", 256, 2048, 2048),
    ("512x8", "lora", "bfloat16", 512, 2048, 2048),
    ("512x8", "lora", "bfloat16", 2048, 2048, 4096),
    ("512x8", "lora", "float32", 512, 2048, 2048),
    ("512x8", "nf4", "bfloat16", 512, 2048, 2048),
    ("512x8", "nf4", "float32", 1024, 1024, 2048),
    ("512x8", "full", "float32", 512, 1024, 2048),
    ("512x8", "full", "bfloat16", 512, 1024, 2048),
    ("512x8-32k", "lora", "bfloat16", 1024, 1024, 2048),
    ("512x8-32k", "lora", "float32", 256, 512, 1024),
    ("512x8-32k", "full", "float32", 256, 512, 1024),
    ("768x12-32k", "lora", "bfloat16", 1024, 2048, 2048),
    ("768x12-32k", "nf4-double", "bfloat16", 512, 1024, 2048),
    ("768x12-32k", "fp8", "bfloat16", 512, 2048, 2048),
    ("1024x4-32k", "lora", "float32", 512, 1024, 1024),
    ("1024x4-32k", "int8", "bfloat16", 2048, 2048, 2048),
    ("1024x4-32k", "full", "bfloat16", 256, 512, 512),
    ("1024x12", "lora", "bfloat16", 2048, 2048, 2048),
    ("1024x12", "lora", "float32", 1024, 1024, 1024),
    ("1024x12", "nf4", "bfloat16", 2048, 2048, 2048),
    ("1024x12", "nf4-double", "bfloat16", 256, 512, 512),
    ("1024x12", "int8", "bfloat16", 512, 1024, 1024),
    ("1024x12", "fp8", "float32", 512, 512, 512),
    ("512x8", "lora+selective", "bfloat16", 512, 2048, 2048),
    ("512x8", "lora+block", "bfloat16", 512, 2048, 2048),
    ("512x8", "full+block", "float32", 512, 1024, 2048),
    ("768x12-32k", "nf4+selective", "float32", 512, 1024, 1024),
    ("1024x12", "lora+selective", "bfloat16", 2048, 2048, 2048),
    ("1024x12", "nf4+block", "bfloat16", 2048, 2048, 2048),
    ("512x8", "lora+dropout", "float32", 512, 2048, 2048),
    ("512x8", "nf4+dropout", "bfloat16", 512, 2048, 2048),
    ("512x8", "lora+held-out", "float32", 512, 2048, 2048),
    ("512x8", "lora+block+held-out", "float32", 512, 2048, 2048),
    ("512x8", "lora+background", "float32", 512, 512, 1024),
    ("512x8", "full+background", "float32", 512, 1024, 2048),
    # Rows of 512 tokens, in pieces of 384 and 128.
    ("512x8", "lora+apart", "bfloat16", 384, 1920, 1920),
    ("512x8", "lora+apart", "float32", 384, 1920, 1920),
]

# What a line may have beside its method: changes of the recipe.
WITH = {
    "dropout": lambda it: it["adapter"]["lora"].update(dropout=0.05),
    # A fifth of the rows is held out, and measured after each step.
    "held-out": lambda it: (it["data"].update(validation_split=0.2), it["train"].update(validate_every=1)),
    "background": lambda it: it["train"].update(checkpoint_every=1, checkpoint_in_background=True),
    # Windows of one row each, of all lengths.
    "apart": lambda it: it["data"].update(packing=False),
}


def recipe(shape, method, dtype, window, micro, step):
    """Everything that memory hangs on is written out. JSON is YAML, too."""
    method, *rest = method.split("+")
    checkpointing = [word for word in rest if word not in WITH]
    base = {"model": str((WORK / shape / "base").relative_to(ROOT)), "dtype": dtype}
    if method not in ("lora", "full"):
        base["quantization"] = method
    lora = {"lora": {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}}
    made = {
        "heirloom": 1,
        "name": "bench-memory",
        "base": base,
        "adapter": "full" if method == "full" else lora,
        "data": {
            "purpose": ["dpv:ResearchAndDevelopment"],
            "train": [{"path": str((WORK / shape / "rows.parquet").relative_to(ROOT)), "format": "text"}],
            "sequence_length": window, "packing": True, "overlong": "split", "train_on": "all",
        },
        "train": {
            "epochs": 1000, "max_steps": STEPS, "tokens_per_step": step, "micro_batch_tokens": micro,
            "optimizer": {"adamw": {"lr": 1e-4}}, "seed": 17, "checkpoint_every": 0,
            "activation_checkpointing": checkpointing[0] if checkpointing else "none",
            # Runs of a few steps write none beside their steps.
            "checkpoint_in_background": False,
        },
    }
    for word in set(rest) & WITH.keys():
        WITH[word](made)
    return made


def make(args, shape, variables):
    """Model and rows, unless they are there."""
    folder = WORK / shape
    if (folder / "rows.parquet").is_file():
        return
    call([args.python, ENGINE / "make.py", folder, "--shape", shape, "--shapes", SHAPES, "--rows", "64"], variables)
    call([args.heirloom, "data", "import", folder / "rows.jsonl", "-o", folder / "rows.parquet", "--format", "text",
          "--consent", ENGINE / "consent.yaml"], variables)


def peak(command, variables, log):
    """The most memory that a process had resident, in bytes, and what it printed."""
    with open(log, "w") as errors:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=variables, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=errors)
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"run: {command[:2]} failed with status {process.returncode}; see {log}")
    return usage.ru_maxrss * 1024, text


def measure(args, line, variables):
    path = write(WORK / "recipe.json", recipe(*line))
    plan = json.loads(call([args.heirloom, "check", path, "--format", "json"], variables))["plan"]
    run, log = WORK / "run", WORK / "train.log"
    shutil.rmtree(run, ignore_errors=True)
    peaks = []
    for _ in range(args.repeat):
        shutil.rmtree(run, ignore_errors=True)
        peaks.append(peak([args.heirloom, "train", path, "--run", run], variables, log)[0])
    result = {"line": line, "predicted": plan["memory_bytes"], "measured": max(peaks), "all_measured": peaks,
              "at": plan["memory_peak"], "parts": plan["memory"]}
    if args.tensors:
        _, text = peak([args.heirloom, "bench", path, "--steps", "1", "--format", "json"], variables, log)
        result["tensors"] = json.loads(text)["tensor_memory_bytes"]
    return result


def table(results):
    lines = ["| shape | method | precision | window | micro-batch | predicted, MB | measured, MB | off | most at |",
             "|---|---|---|---|---|---|---|---|---|"]
    for result in results:
        shape, method, dtype, window, micro, _ = result["line"]
        off = 100 * (result["predicted"] / result["measured"] - 1)
        numbers = f"{result['predicted'] / 1e6:.0f} | {result['measured'] / 1e6:.0f} | {off:+.1f} %"
        lines.append(f"| {shape} | {method} | {dtype} | {window} | {micro} | {numbers} | {result['at']} |")
    return "\n".join(lines)


def tensors(result):
    """Predicted and counted bytes of tensors alone, in MB."""
    predicted = result["predicted"] - result["parts"]["runtime"]
    rest = (result["measured"] - result["tensors"]) / 1e6
    return f" tensors {predicted / 1e6:.1f} of {result['tensors'] / 1e6:.1f}, runtime {rest:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="a Python with ../engine/requirements.txt")
    parser.add_argument("--heirloom", default=ROOT / "target/release/heirloom", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each line, of which the largest counts")
    parser.add_argument("--only", nargs="+", help="lines that have one of these words")
    parser.add_argument("--tensors", action="store_true", help="count tensors alone, too")
    args = parser.parse_args()
    variables = environment(args.threads) | {"HEIRLOOM_HOME": str(WORK / "home")}
    results = []
    for line in GRID:
        if args.only and not {*args.only} & {*line[:3]}:
            continue
        make(args, line[0], variables)
        results.append(measure(args, line, variables))
        off = 100 * (results[-1]["predicted"] / results[-1]["measured"] - 1)
        beside = tensors(results[-1]) if args.tensors else ""
        print(f"{' '.join(map(str, line))}: {off:+.1f} %{beside}", file=sys.stderr, flush=True)
    write(WORK / "results.json", {"machine": machine(), "steps": STEPS, "results": results})
    print(f"{machine()['cpu']}, {args.threads} threads, {STEPS} steps each\n\n{table(results)}")
    high, low = BARS
    outside = [r for r in results if not low <= r["predicted"] / r["measured"] - 1 <= high]
    if outside:
        sys.exit(f"run: {len(outside)} of {len(results)} predictions are off by more than {high:+.0%} or {low:+.0%}")


if __name__ == "__main__":
    main()
