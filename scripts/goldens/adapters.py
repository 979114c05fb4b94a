"""Write the numbers that every kind of adapter is tested against, from PEFT and PyTorch.

    .venv/bin/python scripts/goldens/adapters.py                 # engine/tests/fixtures/adapters
    .venv/bin/python scripts/goldens/adapters.py --output DIR    # elsewhere, to compare

Needs the models that make.py and families.py write. What each tensor is stands in
engine/tests/fixtures/README.md.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common import describe, documents, forward, generator, numpy_normal, save, save_adapter

FIXTURES = Path(__file__).resolve().parents[2] / "engine/tests/fixtures"
VOCAB = 97
LENGTHS = [7, 33, 18]
PLAIN, BIASED = "tiny-llama", "families/llama-bias"
QV = ["q_proj", "v_proj"]
PATTERNS = {
    "use_rslora": True,
    # The first that names a layer counts.
    "rank_pattern": {"model.layers.1.self_attn.q_proj": 6, "q_proj": 2},
    "alpha_pattern": {"v_proj": 3, "mlp.down_proj": 20},
}

# (name, base, what PEFT is told)
CASES = [
    ("patterns", PLAIN, {"target_modules": "all-linear", "exclude_modules": ["o_proj", "model.layers.0.mlp.up_proj"], **PATTERNS}),
    ("layers", PLAIN, {"target_modules": [*QV, "down_proj"], "layers_to_transform": [1]}),
    ("bias-all", BIASED, {"target_modules": QV, "bias": "all"}),
    ("bias-lora-only", BIASED, {"target_modules": ["q_proj", "gate_proj"], "bias": "lora_only"}),
    ("dora", PLAIN, {"target_modules": "all-linear", "use_dora": True}),
    ("dora-bias", BIASED, {"target_modules": [*QV, "down_proj"], "use_dora": True, "bias": "lora_only", **PATTERNS}),
]

# Starts that are taken out of the base again, which PEFT converts when it saves.
STARTS = [("pissa", "pissa"), ("pissa-niter", "pissa_niter_8"), ("olora", "olora")]

CURVE_STEPS = 50


def load(base):
    return AutoModelForCausalLM.from_pretrained(
        FIXTURES / base, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def draw(model, seed):
    """Everything trained moves away from its start, where zeros would hide half the numbers."""
    rng = generator(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if not weight.requires_grad:
                continue
            if "magnitude" in name:
                weight.mul_(1 + numpy_normal(rng, weight, 0.2))
            elif name.endswith(".bias"):
                weight.add_(numpy_normal(rng, weight, 0.2))
            else:
                weight.copy_(numpy_normal(rng, weight, 0.2))
    return model


def adapted(base, told, seed):
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **told)
    return draw(get_peft_model(load(base), config), seed).eval()


def key_of(name):
    """The key in adapter_model.safetensors of a trained weight."""
    name = name.replace(".default.", ".")
    return name.removesuffix(".weight") if "magnitude" in name else name


def trained(model, prefix, pick):
    return {
        prefix + key_of(name): pick(weight).detach().clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def adamw(model, lr):
    weights = [w for w in model.parameters() if w.requires_grad]
    return torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)


def make(out, seed, name, base, told):
    folder = out / name
    model = adapted(base, told, seed)
    save_adapter(model, folder / "adapter", base.rsplit("/")[-1])
    saved = set(load_file(folder / "adapter" / "adapter_model.safetensors"))
    docs = documents(seed, LENGTHS, model.config.vocab_size)
    optimizer, tensors, course = adamw(model, 1e-2), {}, []
    for step in range(3):
        logits, loss = forward(model, docs)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            tensors |= describe(docs, logits, loss)
            # A copy: the optimiser's first step comes before the file is written.
            tensors |= trained(model, "grad.", lambda weight: weight.grad)
        course.append(loss.detach())
        optimizer.step()
    tensors["losses"] = torch.stack(course)
    assert {key.removeprefix("grad.") for key in tensors if key.startswith("grad.")} == saved
    save(tensors, folder / "golden.safetensors")
    before = load(base).state_dict()
    merged = adapted(base, told, seed).merge_and_unload().state_dict()
    save({k: w for k, w in merged.items() if not torch.equal(w, before[k])}, folder / "merged.safetensors")


def start(out, seed, name, word):
    """The start itself, then three steps from it, written as PEFT converts it."""
    folder = out / name
    torch.manual_seed(seed)
    told = dict(r=4, lora_alpha=8, target_modules=[*QV, "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load(PLAIN), LoraConfig(**told, init_lora_weights=word)).eval()
    docs = documents(seed, LENGTHS, VOCAB)
    # What a layer gives while it starts: `B A` does not depend on the signs of a decomposition.
    products = {}
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            products["start." + path.removeprefix("base_model.model.")] = (b @ a).detach().clone()
    with tempfile.TemporaryDirectory() as initial:
        model.save_pretrained(initial)
        optimizer, tensors, course = adamw(model, 1e-2), dict(products), []
        for step in range(3):
            logits, loss = forward(model, docs)
            optimizer.zero_grad()
            loss.backward()
            course.append(loss.detach())
            optimizer.step()
        logits, loss = forward(model, docs)
        tensors |= describe(docs, logits, loss)
        tensors["losses"] = torch.stack(course)
        model.peft_config["default"].init_lora_weights = word
        save_adapter(model, folder / "adapter", PLAIN, path_initial_model_for_weight_conversion=initial)
    save(tensors, folder / "golden.safetensors")


def curve(out):
    """Losses of many steps of DoRA from PEFT's own start, whose A is written down."""
    torch.manual_seed(77)
    told = {"target_modules": "all-linear", "use_dora": True}
    model = get_peft_model(load(PLAIN), LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **told)).eval()
    save_adapter(model, out / "dora-curve" / "adapter", PLAIN)
    docs = documents(9, LENGTHS, VOCAB)
    optimizer, course = adamw(model, 5e-3), []
    for _ in range(CURVE_STEPS):
        logits, loss = forward(model, docs)
        optimizer.zero_grad()
        loss.backward()
        if not course:
            tensors = describe(docs, logits, loss)
        course.append(loss.detach())
        optimizer.step()
    save(tensors | {"losses": torch.stack(course)}, out / "dora-curve" / "golden.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIXTURES / "adapters")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(out, ignore_errors=True)
    for seed, (name, base, told) in enumerate(CASES, start=40):
        make(out, seed, name, base, told)
    for seed, (name, word) in enumerate(STARTS, start=60):
        start(out, seed, name, word)
    curve(out)


if __name__ == "__main__":
    main()
