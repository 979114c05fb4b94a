"""Check release folders against Transformers, PEFT, in-toto and huggingface_hub.

Started by scripts/interop. Two numbers are compared by the largest absolute difference over
the largest absolute value of the reference; each check prints that and its limit.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from google.protobuf import json_format
from huggingface_hub import ModelCard
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

# Float32 against float32, the order of additions aside.
FLOAT32_LIMIT = 1e-5
# One unit in the last place of bfloat16, relative to the number it belongs to.
BFLOAT16_ULP = 2.0**-7
# Logits after every merged weight was rounded to bfloat16.
BFLOAT16_LOGITS_LIMIT = 5e-2

CHATS = [
    [{"role": "user", "content": "Two packets of Morning Glory, please, to Mrs O'Hara."}],
    [{"role": "user", "content": "Gruß aus Köln: 3 × Möhre 'Früh' — was kostet das?\n\nDanke!"}],
    [
        {"role": "user", "content": "Do you have leeks?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Then 12 of them, order no. 40718."},
    ],
]


class Table:
    """Rows of (check, difference, limit, verdict)."""

    def __init__(self):
        self.rows = []

    def near(self, check, difference, limit):
        self.rows.append((check, f"{difference:.2e}", f"{limit:.1e}", difference <= limit))

    def holds(self, check, verdict, note=""):
        self.rows.append((check, note, "", bool(verdict)))

    def attempt(self, check, action):
        """Runs `action`; whatever a consumer raises is its verdict."""
        try:
            result = action()
        except Exception as error:  # noqa: BLE001
            self.holds(check, False, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
            return None
        self.holds(check, True)
        return result

    def same_logits(self, check, ours, theirs):
        """`ours` runs our engine; where that fails there is no difference to show."""
        try:
            self.near(check, worst(ours(), theirs), FLOAT32_LIMIT)
        except subprocess.CalledProcessError as error:
            self.holds(check, False, f"our program left with status {error.returncode}")

    def print(self):
        rows = [("check", "largest relative difference", "limit", "verdict")]
        rows += [(c, d, l, "ok" if ok else "FAILED") for c, d, l, ok in self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        rows.insert(1, tuple("-" * width for width in widths))
        for row in rows:
            print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")

    def passed(self):
        return bool(self.rows) and all(ok for *_, ok in self.rows)


def difference(ours, reference):
    if ours.shape != reference.shape:
        return float("inf")
    result = ((ours.float() - reference.float()).abs().max() / reference.float().abs().max()).item()
    return result if result == result else float("inf")


def worst(ours, reference):
    return max(difference(a, b) for a, b in zip(ours, reference, strict=True))


def our_logits(program, prompts, base, adapter=None):
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for ids in prompts:
            out = Path(folder) / "logits.safetensors"
            command = [program, base, "--ids", ",".join(map(str, ids)), "-o", out]
            command += ["--adapter", adapter] if adapter else []
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
            results.append(load_file(out)["logits"])
    return results


@torch.no_grad()
def their_logits(model, prompts):
    return [model.eval()(torch.tensor([ids])).logits[0] for ids in prompts]


def load_base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_prompts(tokenizer, vocabulary):
    """Token ids: the chats as the template renders them, one token, and a long random row."""
    chats = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in CHATS
    ]
    random = torch.randint(vocabulary, (150,), generator=torch.Generator().manual_seed(17))
    return [*chats, [int(random[0])], random.tolist()]


def check_tokenizer(table, name, folder, base_tokenizer):
    tokenizer = table.attempt(f"{name}: AutoTokenizer loads", lambda: AutoTokenizer.from_pretrained(folder))
    if tokenizer is None:
        return
    for tokens, word in [(False, "text"), (True, "tokens")]:
        same = all(
            tokenizer.apply_chat_template(chat, tokenize=tokens, add_generation_prompt=True)
            == base_tokenizer.apply_chat_template(chat, tokenize=tokens, add_generation_prompt=True)
            for chat in CHATS
        )
        table.holds(f"{name}: chat template gives the base's {word}", same)


def check_card(table, name, folder):
    card = table.attempt(f"{name}: ModelCard loads", lambda: ModelCard.load(folder / "README.md"))
    if card is not None:
        for key in ["license", "base_model"]:
            table.holds(f"{name}: card says {key}", card.data.get(key), str(card.data.get(key)))


def check_provenance(table, name, folder):
    path = folder / "provenance.json"

    def parse():
        content = json.loads(path.read_text())
        Statement.copy_from_pb(json_format.ParseDict(content, statement_pb2.Statement())).validate()
        if content["predicateType"] != "https://slsa.dev/provenance/v1":
            raise ValueError(f"predicateType is {content['predicateType']}")
        # Strict: a field that SLSA does not know raises.
        json_format.ParseDict(content["predicate"], provenance_pb2.Provenance())
        return content

    content = table.attempt(f"{name}: in-toto and SLSA parse provenance.json", parse)
    if content is not None:
        wrong = [s["name"] for s in content["subject"] if not subject_holds(folder, s)]
        files = [s for s in content["subject"] if (folder / s["name"]).is_file()]
        table.holds(f"{name}: digests of its {len(files)} files hold", files and not wrong, ", ".join(wrong))


def subject_holds(folder, subject):
    """A subject that names a file has the file's digest; others (the release) have some digest."""
    stated = subject["digest"].get("sha256", "")
    path = folder / subject["name"]
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest() == stated
    return len(stated) == 64 and set(stated) <= set("0123456789abcdef")


def check_adapter(table, folder, args, prompts):
    """Returns PEFT's logits and PEFT's own merge, for the merged release to be compared with."""
    name = folder.name
    model = table.attempt(
        f"{name}: PEFT loads it", lambda: PeftModel.from_pretrained(load_base(args.base), folder)
    )
    if model is None:
        return None
    theirs = their_logits(model, prompts)
    ours = lambda: our_logits(args.logits, prompts, args.base, folder)
    table.same_logits(f"{name}: our logits against PEFT's", ours, theirs)
    moved = worst(theirs, their_logits(load_base(args.base), prompts))
    table.holds(f"{name}: changes the base's logits", moved > FLOAT32_LIMIT, f"{moved:.2e}")
    return theirs, model.merge_and_unload().state_dict()


def check_merged(table, folder, args, prompts, adapted):
    name = folder.name
    model = table.attempt(f"{name}: Transformers loads it", lambda: load_base(folder))
    if model is None:
        return
    theirs = their_logits(model, prompts)
    ours = lambda: our_logits(args.logits, prompts, folder)
    table.same_logits(f"{name}: our logits against Transformers'", ours, theirs)
    if adapted is None:
        return
    coarse = stored_dtype(folder) == "BF16"
    limit = BFLOAT16_LOGITS_LIMIT if coarse else FLOAT32_LIMIT
    table.near(f"{name}: logits against the adapter's", worst(theirs, adapted[0]), limit)
    limit = BFLOAT16_ULP if coarse else FLOAT32_LIMIT
    gap = max(weight_gap(w, adapted[1][key]) for key, w in model.state_dict().items())
    table.near(f"{name}: weights against PEFT's own merge", gap, limit)


def weight_gap(ours, reference):
    """Largest difference relative to each weight; near zero, to a thousandth of the largest."""
    scale = reference.abs().clamp(min=1e-3 * reference.abs().max().item())
    return ((ours - reference).abs() / scale).max().item()


def stored_dtype(folder):
    dtypes = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            dtypes |= {file.get_slice(key).get_dtype() for key in file.keys()}
    return "BF16" if "BF16" in dtypes else "F32"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--logits", required=True, help="the engine's example `logits`")
    parser.add_argument("releases", type=Path, nargs="+")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    table, adapted = Table(), None
    tokenizer, base = AutoTokenizer.from_pretrained(args.base), load_base(args.base)
    prompts = make_prompts(tokenizer, base.config.vocab_size)
    ours = lambda: our_logits(args.logits, prompts, args.base)
    table.same_logits("base: our logits against Transformers'", ours, their_logits(base, prompts))
    # Adapters first: merged releases are compared with the last of them.
    for folder in sorted(args.releases, key=lambda f: not (f / "adapter_config.json").is_file()):
        if (folder / "adapter_config.json").is_file():
            adapted = check_adapter(table, folder, args, prompts)
        else:
            check_merged(table, folder, args, prompts, adapted)
        if (folder / "tokenizer.json").is_file() or not (folder / "adapter_config.json").is_file():
            check_tokenizer(table, folder.name, folder, tokenizer)
        check_card(table, folder.name, folder)
        check_provenance(table, folder.name, folder)
    table.print()
    return 0 if table.passed() else 1


if __name__ == "__main__":
    sys.exit(main())
