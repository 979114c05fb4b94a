"""Write the table of docs/reference/families.md from what scripts/fidelity measured.

    table.py FOLDER DOCUMENT        # FOLDER has tests.jsonl and round-trip.jsonl

One significant digit, and nothing about the day or the machine: the table changes where
something changed.
"""

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- fidelity: begin -->", "<!-- fidelity: end -->"
HEADER = """\
| family | case | logits | losses | gradients | bfloat16 | greedy | in PEFT | merged |
|---|---|---|---|---|---|---|---|---|
"""


def lines(path):
    return {line["case"]: line for line in map(json.loads, path.read_text().splitlines())}


def error(value):
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def row(test, trip):
    errors = test["errors"]
    same, total = test["greedy"]
    cells = [
        f"`{test['model_type']}`",
        f"`{test['case']}`",
        error(max(errors["logits"], errors["incremental"])),
        error(errors["loss"]),
        error(errors["gradient"]),
        f"{errors['bfloat16']:.1f}",
        f"{same} of {total}",
        error(trip["adapter"]),
        error(trip["merged"]),
    ]
    return "| " + " | ".join(cells) + " |\n"


def main():
    folder, document = map(Path, sys.argv[1:])
    tests, trips = lines(folder / "tests.jsonl"), lines(folder / "round-trip.jsonl")
    missing = tests.keys() ^ trips.keys()
    if missing:
        sys.exit(f"table: measured on one side only: {', '.join(sorted(missing))}")
    rows = [row(tests[case], trips[case]) for case in sorted(tests)]
    before, rest = document.read_text().split(BEGIN)
    _, after = rest.split(END)
    document.write_text(f"{before}{BEGIN}\n{HEADER}{''.join(rows)}{END}{after}")


if __name__ == "__main__":
    main()
