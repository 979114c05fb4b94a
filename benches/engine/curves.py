"""The losses of Heirloom and of PEFT, step by step: the same, or something is wrong.

    python benches/engine/curves.py --python VENV/bin/python                      # LoRA, float32
    python benches/engine/curves.py --python VENV/bin/python --quantization nf4
    python benches/engine/curves.py --python VENV/bin/python --method dora        # or full

Same rows in the same order, same initial adapter (Heirloom's, which PEFT loads), same settings;
full training begins with the base, and its peer is Transformers alone;
Heirloom once with its fused operations and once with plain ones (HEIRLOOM_OPS=reference).
Exit status 0 only if every loss is within --within of the peer's, relatively.
"""

import argparse
import json
import shutil
import sys

from work import HERE, ROOT, WORK, arguments, call, environment, machine, make, recipe, write


# What `HEIRLOOM_OPS` is for either way of computing.
OPERATIONS = {"fused": "", "plain": "reference"}


def train(args, path, variables, name, operations, sets=()):
    """A run of Heirloom; its folder."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    words = [word for pair in [*sets, *args.set] for word in ("--set", pair)]
    variables = variables | {"HEIRLOOM_OPS": OPERATIONS[operations]}
    call([args.heirloom, "train", path, "--run", folder.relative_to(ROOT), *words], variables)
    return folder


def change(planned, method):
    """Makes the recipe of LoRA one of another method."""
    if method == "dora":
        planned["adapter"]["lora"]["use_dora"] = True
    if method == "full":
        planned["adapter"] = "full"
        # All weights move: with LoRA's rate they would leave what they know at once.
        planned["train"]["optimizer"]["adamw"]["lr"] = 1e-4
    return planned


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments(parser)
    parser.add_argument("--set", action="append", default=[], help="for Heirloom alone, KEY=VALUE")
    parser.add_argument("--method", choices=["lora", "dora", "full"], default="lora")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--within", type=float, default=1e-3)
    args = parser.parse_args()
    variables = environment(args.threads)
    make(args, variables)
    name = f"curves-{args.shape}-{args.method}-{args.quantization}"
    planned = change(recipe(args.shape, "float32", args.quantization, args.steps), args.method)
    path = write(WORK / f"{name}.recipe.json", planned)
    command = [args.python, HERE / "peer.py", path, "--steps", args.steps, "--threads", args.threads]
    if args.method != "full":
        # The first step of a warm-up has a learning rate of 0: its adapter is the initial one.
        initial = train(args, path, variables, f"{name}-initial", "fused", ["train.max_steps=1"]) / "adapter"
        command += ["--adapter", initial]
    theirs = json.loads(call(command, variables))["losses"]
    result = {"machine": machine(), "steps": args.steps, "peer": theirs, "within": args.within}
    print(f"{name}: {len(theirs)} steps, the peer's loss {theirs[0]:.6f} to {theirs[-1]:.6f}")
    for operations in OPERATIONS:
        ours = losses(train(args, path, variables, f"{name}-{operations}", operations))
        if len(ours) != len(theirs):
            sys.exit(f"curves: {len(ours)} losses here, {len(theirs)} there")
        differences = [abs(a - b) / abs(b) for a, b in zip(ours, theirs)]
        worst = max(range(len(ours)), key=differences.__getitem__)
        result[operations] = {"heirloom": ours, "largest_difference": differences[worst]}
        print(f"{operations} operations: {ours[0]:.6f} to {ours[-1]:.6f}, largest relative difference "
              f"{differences[worst]:.2e}, at step {worst + 1}; allowed {args.within:.0e}")
    write(WORK / f"{name}.results.json", result)
    return 0 if all(result[operations]["largest_difference"] <= args.within for operations in OPERATIONS) else 1


if __name__ == "__main__":
    sys.exit(main())
