"""Make Parquet of any size with consent columns, from a seed: what benches/scale measures on.

    python benches/scale/rows.py OUT --kind long|short --bytes N | --rows N [--groups import|pyarrow]

Long rows are conversations of four or six messages, 600 tokens on average; short ones have a
line of question and a line of answer. Messages are drawn from a pool, and each gets a number
of its own, so that no two are the same. `--groups import` ends row groups, pages and writes
the page index as `heirloom data import` does; `--groups pyarrow` leaves all that to pyarrow.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

sys.path.append(str(Path(__file__).resolve().parents[1] / "stream"))
import make  # noqa: E402

GROUP_ROWS, GROUP_BYTES, PAGE_ROWS = 8192, 16 << 20, 1024
FOOTER = {"schema": "consent/v1", "dataset_id": "urn:uuid:3c8e6f0a-5b7d-4f2e-9d41-6a0f5c2b7e19",
          "controller": "Nobody (made up)", "jurisdictions": [], "dpv_version": "2.3",
          "snapshot_at": "2026-11-01T00:00:00Z", "defaults": {"license": "CC0-1.0", "expiry": "endless"},
          "sources": {"made": "Written by benches/scale/rows.py from a seed."}}
MESSAGE = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
TEXTS = ["record_id", "consent_record_id", "messages.list.element.content"]


def pools(kind):
    """Contents of questions and of answers."""
    writer = make.Writer(7)
    if kind == "short":
        line = lambda low, high: " ".join(writer.drawn(writer.random.randint(low, high))).capitalize()
        return [pyarrow.array([line(3, 9) + "?" for _ in range(30_000)]),
                pyarrow.array([line(1, 7) + "." for _ in range(30_000)])]
    text = lambda low, high: writer.text(writer.random.randint(low, high))
    return [pyarrow.array([text(1, 4) for _ in range(6_000)]),
            pyarrow.array([text(4, 12) for _ in range(12_000)])]


def messages(draw, pool, count, kind):
    """So many conversations."""
    turns = numpy.ones(count, "i4") if kind == "short" else draw.integers(2, 4, count, "i4")
    offsets = numpy.concatenate([[0], numpy.cumsum(2 * turns)]).astype("i4")
    number = int(offsets[-1])
    picks = [texts.take(pyarrow.array(draw.integers(0, len(texts), number // 2))) for texts in pool]
    both = pyarrow.concat_arrays(picks)
    order = numpy.arange(number).reshape(2, -1).T.ravel()
    content = both.take(pyarrow.array(order))
    marks = pyarrow.array([f"{mark:x}" for mark in draw.integers(0, 1 << 40, number)])
    content = compute.binary_join_element_wise(content, marks, " ")
    roles = pyarrow.array(["user", "assistant"]).take(pyarrow.array(numpy.arange(number) % 2))
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.StructArray.from_arrays([roles, content], fields=list(MESSAGE)))


def table(draw, pool, first, count, kind):
    """Rows from number `first` on, every one with a consent that was given."""
    numbers = [f"{number:012x}" for number in range(first, first + count)]
    same = lambda value, type: pyarrow.repeat(pyarrow.scalar(value, type), count)
    text, time = pyarrow.string(), pyarrow.timestamp("us", "UTC")
    texts = pyarrow.list_(text)
    columns = {
        "record_id": pyarrow.array(["0198f2c0-5d2e-7aa0-8c4e-" + number for number in numbers]),
        "messages": messages(draw, pool, count, kind),
        "subject_ref": pyarrow.FixedSizeBinaryArray.from_buffers(
            pyarrow.binary(32), count, [None, pyarrow.py_buffer(draw.bytes(32 * count))]),
        "consent_basis": same("consent", text), "consent_status": same("given", text),
        "consent_purposes": same(["dpv:ServiceProvision", "dpv:ResearchAndDevelopment"], texts),
        "consent_processing": same(["ai:ModelFineTuning"], texts),
        "consent_given_at": same(1_750_000_000_000_000, time),
        "consent_expires_at": same(4_000_000_000_000_000, time),
        "consent_withdrawn_at": pyarrow.nulls(count, time),
        "consent_record_id": pyarrow.array(["urn:uuid:5d1c4a64-0f3b-4b0e-8a53-" + number for number in numbers]),
        "special_category": same("none", text), "source_id": same("made", text),
        "license": same("CC0-1.0", text), "model_generated": pyarrow.nulls(count, text)}
    done = pyarrow.table(columns)
    return done.replace_schema_metadata({"consent.v1": json.dumps(FOOTER, separators=(",", ":"), sort_keys=True)})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=["long", "short"], default="long")
    parser.add_argument("--bytes", type=float, default=float("inf"), help="on disk, about")
    parser.add_argument("--rows", type=int, default=sys.maxsize)
    parser.add_argument("--groups", choices=["import", "pyarrow"], default="import")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw, pool, first = numpy.random.default_rng(args.seed), pools(args.kind), 0
    probe = table(numpy.random.default_rng(0), pool, 0, 1000, args.kind)
    of_row = probe["messages"].nbytes / 1000
    rows = min(GROUP_ROWS, int(GROUP_BYTES / of_row))
    style = {"compression": "snappy"}
    if args.groups == "import":
        style = {"compression": "zstd", "compression_level": 3, "write_page_index": True, "max_rows_per_page": PAGE_ROWS,
                 "use_dictionary": ["consent_basis", "consent_status", "special_category", "source_id", "license",
                                    "consent_purposes.list.element", "consent_processing.list.element", "messages.list.element.role"]}
    else:
        # What `write_table` makes of a whole table.
        rows = 1 << 20
    with parquet.ParquetWriter(args.out, probe.schema, **style) as writer:
        while first < args.rows and args.out.stat().st_size < args.bytes:
            count = min(rows, args.rows - first)
            writer.write_table(table(draw, pool, first, count, args.kind), row_group_size=rows)
            first += count
    print(json.dumps({"rows": first, "bytes": args.out.stat().st_size, "rows_of_group": rows, "bytes_of_row": of_row}))


if __name__ == "__main__":
    main()
