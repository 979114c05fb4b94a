"""Check what describes and commits to data with libraries that we did not write.

mlcroissant validates and loads the `croissant.json` of data sets; pymerkle and hashlib make
the record tree again from the private index, and our proofs are checked against the
specification by an independent implementation. Started by scripts/interop --describe, or by
itself:

    python scripts/interop.d/describe.py --heirloom target/release/heirloom \
        --record-tree target/release/examples/record_tree data/catalogue
"""

import argparse
import hashlib
import hmac
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mlcroissant
import pyarrow.parquet as pq
from pymerkle import InmemoryTree

ROWS = 1112  # of which the example leaves every tenth out: 1,001 leaves
RECORDS_LOADED = 5
MEANINGS = {
    "consent_basis": "https://w3id.org/dpv#hasLegalBasis",
    "consent_status": "https://w3id.org/dpv#hasConsentStatus",
    "consent_purposes": "https://w3id.org/dpv#hasPurpose",
}


def sha256(data):
    return hashlib.sha256(data).digest()


def run(*words, expected=0):
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert ran.returncode == expected, f"{words}: {ran.stdout[-1000:]}{ran.stderr[-2000:]}"
    return ran.stdout + ran.stderr


# Croissant


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def validate(folder):
    said = run(Path(sys.executable).parent / "mlcroissant", "validate", "--jsonld", folder / "croissant.json")
    # Its exit status is 0 with warnings too.
    wrong = [line for line in said.splitlines() if "Found the following" in line or line.strip().startswith("-")]
    assert not wrong, "\n".join(wrong)


def load(folder):
    """Rows as mlcroissant reads them, against the same rows read by pyarrow."""
    dataset = mlcroissant.Dataset(jsonld=folder / "croissant.json")
    sets = dataset.metadata.record_sets
    assert len(sets) == len(list(folder.glob("*.parquet"))), [one.id for one in sets]
    for record_set in sets:
        table = pq.read_table(folder / f"{record_set.id}.parquet").to_pylist()
        count = 0
        for row, record in zip(table, dataset.records(record_set=record_set.id)):
            assert text(record[f"{record_set.id}/record_id"]) == row["record_id"]
            turns = [
                {key.rsplit("/", 1)[1]: text(value) for key, value in turn.items()}
                for turn in record[f"{record_set.id}/messages"]
            ]
            assert turns == row["messages"], turns
            assert set(record) == {f"{record_set.id}/{column}" for column in row}
            count += 1
            if count == RECORDS_LOADED:
                break
        assert count == min(RECORDS_LOADED, len(table)), count
        fields = {field.name: field for field in record_set.fields}
        for column, meaning in MEANINGS.items():
            found = fields[column].equivalentProperty
            found = found if isinstance(found, str) else found[0]
            assert str(found) in (meaning, meaning.replace("https://w3id.org/dpv#", "dpv:")), found


def refuses_another_file(folder):
    """A file that was changed is found by its digest alone."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "data"
        shutil.copytree(folder, copy)
        path = sorted(copy.glob("*.parquet"))[0]
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        dataset = mlcroissant.Dataset(jsonld=copy / "croissant.json")
        try:
            next(iter(dataset.records(record_set=path.stem)))
        except Exception as error:
            text = f"{error}{error.__cause__}"
            assert "sha256" in text.lower() or "hash" in text.lower(), text
            return
        raise AssertionError("mlcroissant loads a file whose digest differs")


def footers_agree(folder):
    said = json.loads((folder / "consent.json").read_text())
    for path in folder.glob("*.parquet"):
        footer = pq.read_metadata(path).metadata[b"consent.v1"]
        assert json.loads(footer) == said, path


# Record tree


def leaf_hash(leaf):
    return sha256(b"\0" + leaf)


def node_hash(left, right):
    return sha256(b"\1" + left + right)


def leads_to(leaf, index, size, path, root):
    """RFC 9162, section 2.1.3.2."""
    if index >= size:
        return False
    place, last, found = index, size - 1, leaf_hash(leaf)
    for sibling in map(bytes.fromhex, path):
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and found == root


class Run:
    def __init__(self, folder):
        self.folder = folder
        self.tree = json.loads((folder / "record_tree.json").read_text())
        self.root = bytes.fromhex(self.tree["root"])
        self.key = bytes.fromhex((folder / "record_key").read_text().strip())
        self.rows = pq.read_table(folder / "record_index.parquet").to_pylist()

    def token(self, record_id):
        return hmac.new(self.key, b"consent/v1 token\0" + record_id.encode(), "sha256").digest()

    def leaf(self, token, salt, digest):
        return token + sha256(b"consent/v1 leaf\0" + salt + digest)


def index_is_as_specified(run):
    tokens = [row["token"] for row in run.rows]
    assert tokens == sorted(tokens) and len(run.rows) == ROWS
    for row in run.rows:
        assert row["token"] == run.token(row["record_id"])
        number = int(row["record_id"].rsplit("-", 1)[1])
        # JCS of the content, by hand.
        assert row["digest"] == sha256(f'{{"text":"{number}"}}'.encode())
        assert row["used"] == (number % 10 != 9) and (row["reason"] is None) == row["used"]
    index = pq.ParquetFile(run.folder / "record_index.parquet")
    columns = [index.metadata.row_group(0).column(at) for at in range(7)]
    assert all(column.has_offset_index and column.has_column_index for column in columns)


def pymerkle_gives_the_same_root(run):
    tree = InmemoryTree(algorithm="sha256")
    leaves = [run.leaf(row["token"], row["salt"], row["digest"]) for row in run.rows if row["used"]]
    assert leaves == sorted(leaves)
    for leaf in leaves:
        tree.append_entry(leaf)
    assert len(leaves) == run.tree["size"] > 1000, len(leaves)
    assert tree.get_root() == run.root
    name = sha256(b"consent/v1 key\0" + run.key).hex()[:16]
    assert run.tree["keyId"] == name and run.tree["algorithm"] == "rfc6962-sha256"


def our_proofs_hold_elsewhere(run_, heirloom):
    first, last = run_.rows[0]["record_id"], run_.rows[-1]["record_id"]
    used = [row["record_id"] for row in run_.rows if row["used"]]
    unused = [row["record_id"] for row in run_.rows if not row["used"]]
    asked = {first, last, used[0], used[-1], *used[3::101], *unused[::20], *map("absent-{}".format, range(12))}
    proof_file = run_.folder / "proof.json"
    for record_id in sorted(asked):
        run(heirloom, "lineage", "prove", "--record", record_id, run_.folder, "-o", proof_file)
        proof = json.loads(proof_file.read_text())
        token, size = run_.token(record_id), run_.tree["size"]
        assert bytes.fromhex(proof["token"]) == token
        kind, evidence = next(iter(proof["proof"].items()))
        assert (kind == "inclusion") == (record_id in used), record_id
        if kind == "inclusion":
            [opened] = evidence
            leaf = run_.leaf(token, bytes.fromhex(opened["salt"]), bytes.fromhex(opened["digest"]))
            assert leads_to(leaf, opened["leaf_index"], size, opened["path"], run_.root)
        else:
            before, after = evidence["before"], evidence["after"]
            for side in filter(None, (before, after)):
                leaf = bytes.fromhex(side["leaf"])
                assert leads_to(leaf, side["leaf_index"], size, side["path"], run_.root)
            assert before is None or bytes.fromhex(before["leaf"])[:32] < token
            assert after is None or bytes.fromhex(after["leaf"])[:32] > token
            low = -1 if before is None else before["leaf_index"]
            assert low + 1 == (size if after is None else after["leaf_index"])
        check = [heirloom, "lineage", "check-proof", proof_file, "--key", run_.folder / "record_key"]
        run(*check, "--root", run_.root.hex())
        run(*check, "--manifest", run_.folder)
        run(*check, "--root", "0" * 64, expected=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heirloom", required=True, type=Path)
    parser.add_argument("--record-tree", required=True, type=Path, help="our example `record_tree`")
    parser.add_argument("folders", nargs="*", default=[Path("data/catalogue")], type=Path)
    arguments = parser.parse_args()
    failures = 0

    def attempt(name, check, *words):
        nonlocal failures
        try:
            check(*words)
            print(f"{name:<72} ok")
        except Exception as error:
            failures += 1
            print(f"{name:<72} FAILED\n  {type(error).__name__}: {error}")

    for folder in arguments.folders:
        attempt(f"{folder}: mlcroissant validates it without a warning", validate, folder)
        attempt(f"{folder}: mlcroissant loads every file as pyarrow does", load, folder)
        attempt(f"{folder}: mlcroissant refuses a changed file", refuses_another_file, folder)
        attempt(f"{folder}: footers say what consent.json says", footers_agree, folder)
    with tempfile.TemporaryDirectory() as place:
        run(arguments.record_tree, place, ROWS)
        made = Run(Path(place))
        attempt("record tree: the index is as specified", index_is_as_specified, made)
        attempt("record tree: pymerkle gives the same root", pymerkle_gives_the_same_root, made)
        attempt("record tree: our proofs hold elsewhere", our_proofs_hold_elsewhere, made, arguments.heirloom)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
