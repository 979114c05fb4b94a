"""Write the numbers that VeRA is tested against, from PEFT and PyTorch.

    .venv/bin/python scripts/goldens/vera.py                 # engine/tests/fixtures/vera
    .venv/bin/python scripts/goldens/vera.py --output DIR    # elsewhere, to compare

Needs the models that make.py and families.py write. What each tensor is stands in
engine/tests/fixtures/README.md.
"""

import argparse
import os
import shutil
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel, VeraConfig, get_peft_model

from adapters import LENGTHS, PLAIN, adamw, load
from common import describe, documents, forward, generator, numpy_normal, save, save_adapter

FIXTURES = Path(__file__).resolve().parents[2] / "engine/tests/fixtures"

# (name, base, what PEFT is told)
CASES = [
    ("all", PLAIN, {"target_modules": "all-linear", "projection_prng_key": 7}),
    ("drawn-again", PLAIN, {
        "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1],
        "projection_prng_key": 4_000_000_000, "save_projection": False}),
    ("biased", "families/llama-bias", {"target_modules": ["k_proj", "up_proj"], "d_initial": 0.5}),
]


def adapted(base, told, seed):
    model = get_peft_model(load(base), VeraConfig(r=6, task_type="CAUSAL_LM", **told)).eval()
    rng = generator(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight.copy_(numpy_normal(rng, weight, 0.5))
    return model


def trained(model, prefix, pick):
    # The name of the adapter is the last part of a vector's.
    return {
        prefix + name.removesuffix(".default"): pick(weight).detach().clone()
        for name, weight in model.named_parameters() if weight.requires_grad
    }


def make(out, seed, name, base, told):
    folder = out / name
    model = adapted(base, told, seed)
    docs = documents(seed, LENGTHS, model.config.vocab_size)
    save_adapter(model, folder / "adapter", base.rsplit("/")[-1])
    again = PeftModel.from_pretrained(load(base), folder / "adapter").eval()
    with torch.no_grad():
        (once, _), (twice, _) = forward(model, docs), forward(again, docs)
    assert all(map(torch.equal, once, twice)), f"{name}: PEFT does not read what it wrote"
    projections = {"vera_A": model.base_model.vera_A["default"], "vera_B": model.base_model.vera_B["default"]}
    optimizer, tensors, course = adamw(model, 1e-2), projections, []
    for step in range(3):
        logits, loss = forward(model, docs)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            tensors = tensors | describe(docs, logits, loss) | trained(model, "grad.", lambda w: w.grad)
        course.append(loss.detach())
        optimizer.step()
    save(tensors | {"losses": torch.stack(course)}, folder / "golden.safetensors")
    before = load(base).state_dict()
    merged = adapted(base, told, seed).merge_and_unload().state_dict()
    save({k: w for k, w in merged.items() if not torch.equal(w, before[k])}, folder / "merged.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIXTURES / "vera")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    shutil.rmtree(out, ignore_errors=True)
    for seed, (name, base, told) in enumerate(CASES, start=80):
        make(out, seed, name, base, told)


if __name__ == "__main__":
    main()
