"""Heirloom beside PEFT on the same steps: tokens per second and peak memory.

    python benches/engine/run.py --python VENV/bin/python                      # LoRA in bfloat16
    python benches/engine/run.py --python VENV/bin/python --quantization nf4   # beside bitsandbytes
    python benches/engine/run.py --python VENV/bin/python --shape 1024x12
    python benches/engine/run.py --python VENV/bin/python --isa AVX512_CORE    # neither AMX nor AVX512-BF16

Programs start anew for every turn and take turns at going first. What is compared, and how,
stands in README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

from work import HERE, ROOT, WORK, arguments, environment, machine, make, recipe, write

# Of both programs: steps that fill caches and compile kernels.
WARM_UP_STEPS = 3


def measure(command, variables, log):
    """What `command` prints, its peak of memory, and the load before it."""
    load = os.getloadavg()[0]
    with open(log, "w") as errors:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=variables, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=errors)
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"run: {command[0]} failed with status {process.returncode}; see {log}")
    return json.loads(text) | {"peak_memory_mb": usage.ru_maxrss / 1024, "load_before": load}


def heirloom(args, path, variables, turn):
    command = [args.heirloom, "bench", path, "--steps", args.steps, "--format", "json"]
    report = measure(command, variables, WORK / f"heirloom-{turn}.log")
    if report["warm_up_steps"] != WARM_UP_STEPS:
        sys.exit("run: the two do not warm up alike")
    return report


def peft(args, path, variables, turn):
    command = [args.python, HERE / "peer.py", path, "--steps", WARM_UP_STEPS + args.steps, "--threads", args.threads]
    report = measure(command, variables, WORK / f"peft-{turn}.log")
    # Of an even number the slower, as `heirloom bench`.
    seconds = statistics.median_high(report["seconds"][WARM_UP_STEPS:])
    return report | {"step_seconds": seconds, "tokens_per_second": report["tokens_per_step"] / seconds}


def table(turns):
    """Medians with their range; the ratio is the median of the ratios of each turn."""
    measures = [("tokens per second", "tokens_per_second", "{:.0f}"), ("seconds a step", "step_seconds", "{:.3f}"),
                ("tokens a step", "tokens_per_step", "{:.0f}"), ("peak memory, MB", "peak_memory_mb", "{:.0f}"),
                ("load average before", "load_before", "{:.2f}")]
    lines = ["| measure | heirloom | peft | ratio |", "|---|---|---|---|"]
    for title, key, form in measures:
        ours, theirs = ([turn[name][key] for turn in turns] for name in ("heirloom", "peft"))
        ratios = [a / b for a, b in zip(ours, theirs) if b]
        ratio = spread(ratios, "{:.2f}") if key != "load_before" and ratios else ""
        lines.append(f"| {title} | {spread(ours, form)} | {spread(theirs, form)} | {ratio} |")
    return "\n".join(lines)


def spread(values, form):
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def operations(turns):
    """Where Heirloom's time goes, in the turn of median speed."""
    ordered = sorted((turn["heirloom"] for turn in turns), key=lambda report: report["tokens_per_second"])
    report = ordered[(len(ordered) - 1) // 2]
    rate = report["matrix_rate"]
    lines = [f"Heirloom's step: {100 * report['matrix_share']:.0f} % of {rate['gflops']:.0f} GFLOP/s ({rate['dtype']}).", "",
             "| operation | seconds | share |", "|---|---|---|"]
    shares = [share for share in report["operations"] if share["share"] >= 0.005]
    return "\n".join(lines + [f"| {s['name']} | {s['seconds']:.4f} | {100 * s['share']:.1f} % |" for s in shares])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments(parser)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--isa", help="most that oneDNN may use (ONEDNN_MAX_CPU_ISA): AVX512_CORE has no AMX and no "
                                      "AVX512-BF16, AVX512_CORE_BF16 no AMX")
    parser.add_argument("--steps", type=int, default=15, help="measured steps of each turn")
    parser.add_argument("--repeat", type=int, default=5, help="turns")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    variables = environment(args.threads, args.isa)
    make(args, variables)
    name = "-".join(filter(None, [args.shape, args.dtype, args.quantization, args.isa]))
    path = write(WORK / f"{name}.recipe.json", recipe(args.shape, args.dtype, args.quantization, WARM_UP_STEPS + args.steps))
    programs, turns = [("heirloom", heirloom), ("peft", peft)], []
    for turn in range(1, args.repeat + 1):
        turns.append({name: program(args, path, variables, turn) for name, program in programs})
        programs.reverse()
        speeds = {name: round(report["tokens_per_second"]) for name, report in sorted(turns[-1].items())}
        print(f"turn {turn} of {args.repeat}: tokens per second {speeds}", file=sys.stderr)
    about = machine()
    settings = {key: str(value) for key, value in vars(args).items()}
    write(WORK / f"{name}.results.json", {"machine": about, "settings": settings, "turns": turns})
    amx = "with AMX" if "amx_bf16" in about["features"] else "without AMX"
    print(f"{name}: {about['cpu']}, {args.threads} threads, {amx} ({', '.join(about['features'])})\n")
    print(table(turns), operations(turns), sep="\n\n")


if __name__ == "__main__":
    main()
