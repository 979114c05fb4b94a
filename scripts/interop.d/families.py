"""Train, export and load an adapter of every family: our logits against PEFT's.

Started by scripts/fidelity. The models are those of scripts/goldens/cases.py, with the
bundled tokenizer's vocabulary and random weights; nothing of them is kept. For each,
`heirloom train` takes a few steps of LoRA over all linear layers, `heirloom export` writes an
adapter and a merged model, PEFT loads the one and Transformers the other, and both must give
our logits. Prints a row for each case; writes a line of JSON for each to `--json`.
"""

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/goldens"))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from cases import CASES
from check import FLOAT32_LIMIT, Table, our_logits, their_logits, worst
from families import random_model

VOCAB = 1024  # of data/seedling's tokenizer
# Longer than a sliding window, and than the original length of a scaling.
PROMPTS = [7, 60, 150]
STEPS = 6
# Families with routed experts, which have a second case with these adapted, too.
EXPERTS = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"]
LORA = "lora: { rank: 4, alpha: 8, targets: all-linear }"
OF_EXPERTS = LORA.replace(" }", ", target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj] }")
VERA = "vera: { rank: 64, targets: all-linear, projection_prng_key: 5, save_projection: %s }"
RECIPE = """\
heirloom: 1
name: {name}
base:
  model: {base}
  dtype: float32
adapter:
  {adapter}
data:
  purpose: [dpv:ServiceProvision]
  train:
    - path: {rows}
      format: chat
  sequence_length: 256
  packing: true
train:
  epochs: 1
  max_steps: {steps}
  tokens_per_step: 256
  optimizer:
    adamw: {{ lr: 1.0e-2 }}
  seed: 17
track: [jsonl]
"""


def make_base(name, folder):
    config = copy.deepcopy(CASES[name].config)
    config.vocab_size = VOCAB
    dynamic = "dynamic" in json.dumps(config.rope_parameters)
    config.max_position_embeddings = 128 if dynamic else 512
    random_model(config, zlib.crc32(name.encode())).save_pretrained(folder)
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                 "chat_template.jinja", "LICENSE", "README.md"]:
        shutil.copy(ROOT / "data/seedling" / file, folder)


def heirloom(program, work, *arguments):
    """Our program in the working folder; its messages where it fails."""
    command = [program, "--quiet", *map(str, arguments)]
    result = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(" ".join(result.stderr.split()))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")


def round_trip(name, adapter, programs, work):
    """The largest differences: with the adapter, and merged."""
    base = work / "base"
    make_base(name, base)
    (work / "recipe.yaml").write_text(
        RECIPE.format(name=name, base=base, rows=ROOT / "data/catalogue/train-00000.parquet", steps=STEPS,
                      adapter=adapter))
    heirloom(programs.heirloom, work, "train", "recipe.yaml")
    for shape in ["adapter", "merged"]:
        heirloom(programs.heirloom, work, "export", f"runs/{name}", "--to", shape, "-o", shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    prompts = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in PROMPTS]

    adapted = PeftModel.from_pretrained(load(base), work / "adapter")
    check_loaded(adapted, work / "adapter")
    theirs = their_logits(adapted, prompts)
    moved = worst(theirs, their_logits(load(base), prompts))
    if moved < 1e-3:
        raise RuntimeError(f"training moved the logits by {moved:.0e} only")
    ours = our_logits(programs.logits, prompts, base, work / "adapter")
    whole = our_logits(programs.logits, prompts, work / "merged")
    return worst(ours, theirs), worst(whole, their_logits(load(work / "merged"), prompts))


def check_loaded(model, folder):
    """PEFT wraps what the file has and nothing else: it only warns of keys it does not find."""
    wrapped = {
        key.replace(".default.", ".").removesuffix(".default"): weight
        for key, weight in model.named_parameters() if ".lora_" in key or ".vera_" in key}
    saved = load_file(folder / "adapter_model.safetensors")
    # What VeRA shares is no parameter.
    saved = {key: weight for key, weight in saved.items() if key not in ["base_model.vera_A", "base_model.vera_B"]}
    if wrapped.keys() != saved.keys():
        raise RuntimeError(f"PEFT wraps something else: {sorted(wrapped.keys() ^ saved.keys())[:2]}")
    if not all(torch.equal(weight.float(), saved[key].float()) for key, weight in wrapped.items()):
        raise RuntimeError("PEFT loads other numbers")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heirloom", type=Path, required=True, help="the program")
    parser.add_argument("--logits", type=Path, required=True, help="the engine's example `logits`")
    parser.add_argument("--json", type=Path, help="file that gets a line for each case")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="[default: all]")
    args = parser.parse_args()
    args.heirloom, args.logits = args.heirloom.resolve(), args.logits.resolve()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    table, lines = Table(), []
    cases = [(name, name, LORA) for name in CASES]
    cases += [(f"{name}-experts", name, OF_EXPERTS) for name in EXPERTS]
    cases += [("llama-vera", "llama", VERA % "true"), ("qwen3-vera", "qwen3", VERA % "false")]
    if unknown := set(args.cases) - {case for case, _, _ in cases}:
        parser.error(f"no such case: {' '.join(sorted(unknown))}")
    for case, name, adapter in cases:
        if args.cases and case not in args.cases:
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                adapted, merged = round_trip(name, adapter, args, Path(work))
            except Exception as error:  # noqa: BLE001: whatever fails is the verdict
                table.holds(f"{case}: round trip", False, str(error)[:200])
                continue
        table.near(f"{case}: with the adapter, against PEFT", adapted, FLOAT32_LIMIT)
        table.near(f"{case}: merged, against Transformers", merged, FLOAT32_LIMIT)
        kept = dict(case=case, adapter=adapted, merged=merged)
        lines.append(json.dumps(kept, sort_keys=True) + "\n")
    table.print()
    if args.json:
        args.json.write_text("".join(lines))
    return 0 if table.passed() else 1


if __name__ == "__main__":
    sys.exit(main())
