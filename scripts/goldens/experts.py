"""Write the numbers that adapters of routed experts are tested against, from PEFT and PyTorch.

    .venv/bin/python scripts/goldens/experts.py                 # engine/tests/fixtures/experts
    .venv/bin/python scripts/goldens/experts.py --output DIR    # elsewhere, to compare

Needs the models that families.py writes. What each tensor is stands in
engine/tests/fixtures/README.md.
"""

import argparse
import os
import shutil
import zlib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from cases import CASES as FAMILIES, VOCAB
from adapters import adamw
from common import describe, documents, draw_adapter, forward, peft_keys, save, save_adapter
from families import ROUTER_GAP, load, router_gaps

FIXTURES = Path(__file__).resolve().parents[2] / "engine/tests/fixtures"
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
LENGTHS = [7, 33, 18]

# (name, family, what PEFT is told)
CASES = [
    ("mixtral", "mixtral", {"target_modules": ["q_proj"], "target_parameters": [GATE_UP, DOWN]}),
    ("qwen3_moe", "qwen3_moe", {"target_modules": [], "target_parameters": [DOWN, GATE_UP]}),
    ("gpt_oss", "gpt_oss", {"target_modules": ["q_proj", "o_proj"], "target_parameters": [GATE_UP, DOWN]}),
    ("deepseek_v3", "deepseek_v3", {"target_modules": ["o_proj"], "target_parameters": [GATE_UP, DOWN], "use_rslora": True}),
    # One of the two, and one of them in one block alone: the keys differ from block to block.
    ("down", "mixtral", {
        "target_modules": ["v_proj"], "target_parameters": [DOWN, f"layers.1.{GATE_UP}"],
        "rank_pattern": {f"layers.1.{DOWN}": 3}, "alpha_pattern": {GATE_UP: 5}}),
]


def adapted(base, told, seed):
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **told)
    return draw_adapter(get_peft_model(load(FIXTURES / "families" / base), config), seed).eval()


def checkpoint_weights(model, base, folder):
    """The weights by the keys of the checkpoint, which Transformers splits when it saves."""
    model.save_pretrained(folder)
    stored = load_file(FIXTURES / "families" / base / "model.safetensors")
    merged = load_file(folder / "model.safetensors")
    shutil.rmtree(folder)
    assert merged.keys() == stored.keys()
    return {key: weight for key, weight in merged.items() if not torch.equal(weight, stored[key].float())}


def make(out, name, base, told):
    folder = out / name
    docs = documents(zlib.crc32(name.encode()), LENGTHS, VOCAB)
    for seed in range(500):
        gaps = []
        model = adapted(base, told, seed)
        with router_gaps(gaps), torch.no_grad():
            forward(model, docs)
        if min(gaps) >= ROUTER_GAP:
            break
    else:
        raise SystemExit(f"{name}: no seed without near ties")
    save_adapter(model, folder / "adapter", base)
    again = PeftModel.from_pretrained(load(FIXTURES / "families" / base), folder / "adapter").eval()
    with torch.no_grad():
        (once, _), (twice, _) = forward(model, docs), forward(again, docs)
    assert all(map(torch.equal, once, twice)), f"{name}: PEFT does not read what it wrote"
    optimizer, tensors, course = adamw(model, 1e-3), {}, []
    for step in range(3):
        logits, loss = forward(model, docs)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            tensors |= describe(docs, logits, loss) | peft_keys(model, "grad.", lambda weight: weight.grad)
        course.append(loss.detach())
        optimizer.step()
    save(tensors | {"losses": torch.stack(course)}, folder / "golden.safetensors")
    merged = adapted(base, told, seed).merge_and_unload()
    save(checkpoint_weights(merged, base, folder / "merged"), folder / "merged.safetensors")
    print(f"{name}: seed {seed}, closest choice {min(gaps):.0e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIXTURES / "experts")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(out, ignore_errors=True)
    for name, base, told in CASES:
        make(out, name, base, told)


if __name__ == "__main__":
    main()
