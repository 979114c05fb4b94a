"""Write what optimisers and schedules are tested against: the real ones, over several steps.

    .venv/bin/python scripts/goldens/optimizers.py                 # writes engine/tests/fixtures/optimizers
    .venv/bin/python scripts/goldens/optimizers.py --output DIR    # elsewhere, to compare

`schedules.json`: what Transformers' `get_scheduler` multiplies the peak by at every step of runs.

`steps.safetensors`: weights of several shapes, their gradients at each step, and for each case
of `cases.json` the weights after every step of `torch.optim.AdamW` and `Muon`, bitsandbytes'
`AdamW8bit` and `Lion`, and Transformers' `Adafactor`, with PEFT's groups for LoRA+. bitsandbytes
has no AdamW of eight bits for the CPU: the blocks go through its own plain PyTorch
(`optimizer_update_8bit_blockwise_pytorch`), small tensors through its CPU's 32 bits.

`neftune.safetensors`: embedded tokens with the noise of Transformers' `neftune_post_forward_hook`.
"""

import argparse
import json
import os
from pathlib import Path

# bitsandbytes compiles its plain PyTorch, which changes last digits by machine.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes as bnb
import torch
from bitsandbytes.backends.triton.kernels_optim import optimizer_update_8bit_blockwise_pytorch
from bitsandbytes.functional import create_dynamic_map, optimizer_update_32bit
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, get_scheduler
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.optimization import Adafactor

from common import generator, numpy_normal, save

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
RUNS = [(100, 3), (10, 0), (37, 12)]

# The first word is Transformers', the settings are those of a recipe, then those of Transformers.
SCHEDULES = [
    ("constant", "constant_with_warmup", {}, {}),
    ("linear", "linear", {}, {}),
    ("cosine", "cosine", {}, {}),
    ("cosine", "cosine_with_min_lr", {"min_lr_ratio": 0.1}, {"min_lr_rate": 0.1}),
    ("cosine_with_restarts", "cosine_with_restarts", {}, {}),
    ("cosine_with_restarts", "cosine_with_restarts", {"num_cycles": 3}, {"num_cycles": 3}),
    ("inverse_sqrt", "inverse_sqrt", {}, {}),
    ("inverse_sqrt", "inverse_sqrt", {"timescale": 20}, {"timescale": 20}),
    *[("warmup_stable_decay", "warmup_stable_decay",
       {"decay_steps": decay, "warmup_type": up, "decay_type": down, "min_lr_ratio": floor},
       {"num_decay_steps": decay, "warmup_type": up, "decay_type": down, "min_lr_ratio": floor})
      for decay, up, down, floor in [(5, "linear", "cosine", 0.0), (8, "cosine", "1-sqrt", 0.1),
                                     (3, "1-sqrt", "linear", 0.25)]],
]

# Matrices (tall, wide, and one too small for eight bits), a stack of matrices, a vector, the embedding.
SHAPES = {
    "model.layers.0.mlp.up_proj.weight": (65, 64),
    "model.layers.0.mlp.down_proj.weight": (60, 71),
    "model.layers.0.self_attn.k_proj.weight": (16, 24),
    "model.layers.0.mlp.experts.gate_up_proj": (2, 12, 20),
    "model.norm.weight": (64,),
    "model.embed_tokens.weight": (64, 65),
}
STACK = "model.layers.0.mlp.experts.gate_up_proj"
MATRICES = [name for name in SHAPES if "layers" in name and name != STACK]


def schedules(out):
    tables = []
    for steps, warmup in RUNS:
        for word, name, settings, theirs in SCHEDULES:
            optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
            schedule = get_scheduler(name, optimizer, warmup, steps, theirs)
            factors = [float(schedule.lr_lambdas[0](step)) for step in range(steps)]
            settings = {"warmup_steps": warmup} | settings
            tables.append({"steps": steps, "schedule": {word: settings}, "factors": factors})
    # A line for each: they are long.
    lines = ",\n".join(json.dumps(table) for table in tables)
    (out / "schedules.json").write_text(f"[\n{lines}\n]\n")


class AdamW8bit(bnb.optim.AdamW8bit):
    """bitsandbytes' own, whose blocks go through its plain PyTorch."""

    def update_step(self, group, p, gindex, pindex):
        state, config = self.state[p], self.get_config(gindex, pindex, group)
        if state["state1"].dtype == torch.float32:
            return super().update_step(group, p, gindex, pindex)
        state["step"] += 1
        optimizer_update_8bit_blockwise_pytorch(
            p, p.grad, state["state1"], state["state2"], *config["betas"], 0.0, 0.0, config["eps"],
            state["step"], config["lr"], state["qmap1"], state["qmap2"], state["absmax1"],
            state["absmax2"], config["weight_decay"], 1.0, False, optimizer_name="adam")


def groups(weights, decay):
    """As Transformers' `Trainer`: vectors do not decay."""
    matrices = [w for w in weights if w.dim() > 1]
    vectors = [w for w in weights if w.dim() == 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def adamw(weights, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return torch.optim.AdamW(groups(weights, weight_decay), lr=lr, betas=betas, eps=eps)


def adamw_8bit(named):
    weights = list(named.values())
    optimizer = AdamW8bit(groups(weights, 0.1), lr=1e-2, betas=(0.9, 0.95))
    # As Transformers' `Trainer` does with embeddings.
    embedding = named["model.embed_tokens.weight"]
    manager = bnb.optim.GlobalOptimManager.get_instance()
    manager.register_parameters([embedding])
    manager.override_config(embedding, "optim_bits", 32)
    return [optimizer]


def adafactor(**settings):
    def make(named):
        groups_ = groups(list(named.values()), 0.1)
        return [Adafactor(groups_, lr=1e-2, relative_step=False, **settings)]
    return make


def muon(**settings):
    def make(named):
        rest = [weight for name, weight in named.items() if name not in MATRICES]
        matrices = [named[name] for name in MATRICES]
        return [torch.optim.Muon(matrices, lr=2e-2, **settings), adamw(rest)]
    return make


ADAMW = {"lr": 1e-2, "betas": [0.9, 0.95], "weight_decay": 0.1}
CASES = {
    "adamw": ({"adamw": ADAMW}, lambda named: [adamw(list(named.values()))]),
    "adamw_8bit": ({"adamw_8bit": ADAMW}, adamw_8bit),
    "adafactor": ({"adafactor": {"lr": 1e-2, "weight_decay": 0.1}}, adafactor(scale_parameter=False)),
    "adafactor-scaled": (
        {"adafactor": {"lr": 1e-2, "weight_decay": 0.1, "scale_parameter": True, "beta1": 0.9,
                       "clip_threshold": 0.5, "decay_rate": -0.7, "eps": [1e-20, 0.01]}},
        adafactor(scale_parameter=True, beta1=0.9, clip_threshold=0.5, decay_rate=-0.7,
                  eps=(1e-20, 0.01))),
    "lion": ({"lion": {"lr": 1e-2, "weight_decay": 0.1}},
             lambda named: [bnb.optim.Lion(groups(list(named.values()), 0.1), lr=1e-2)]),
    "muon": ({"muon": {"lr": 2e-2, "adamw": ADAMW}}, muon()),
    "muon-plain": (
        {"muon": {"lr": 2e-2, "weight_decay": 0.0, "momentum": 0.8, "nesterov": False, "ns_steps": 3,
                  "adjust_lr_fn": "match_rms_adamw", "adamw": ADAMW}},
        muon(weight_decay=0.0, momentum=0.8, nesterov=False, ns_steps=3,
             adjust_lr_fn="match_rms_adamw")),
}


def steps(out):
    rng = generator(31)
    like = {name: torch.empty(shape) for name, shape in SHAPES.items()}
    start = {name: numpy_normal(rng, tensor, 0.2) for name, tensor in like.items()}
    gradients = [{name: numpy_normal(rng, tensor, 10.0 ** -(step % 3)) for name, tensor in like.items()}
                 for step in range(STEPS)]
    tensors = {f"start.{name}": tensor for name, tensor in start.items()}
    for step, gradient in enumerate(gradients, start=1):
        tensors |= {f"gradient_{step}.{name}": tensor for name, tensor in gradient.items()}
    for case, (_, make) in CASES.items():
        named = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
        optimizers = make(named)
        for step, gradient in enumerate(gradients, start=1):
            for name, weight in named.items():
                weight.grad = gradient[name].clone()
            for optimizer in optimizers:
                optimizer.step()
        for name, weight in named.items():
            tensors[f"after.{case}.{name}"] = weight
        if case == "adamw_8bit":
            tensors |= packed(named, optimizers[0])
    tensors |= {"map.signed": create_dynamic_map(True), "map.unsigned": create_dynamic_map(False)}
    save(tensors, out / "steps.safetensors")
    recipes = {case: settings for case, (settings, _) in CASES.items()}
    (out / "cases.json").write_text(json.dumps(recipes, indent=1) + "\n")


def packed(named, optimizer):
    """What is remembered in eight bits."""
    tensors = {}
    for name, weight in named.items():
        state = optimizer.state[weight]
        if state["state1"].dtype == torch.uint8:
            for key in ["state1", "state2", "absmax1", "absmax2"]:
                tensors[f"{key}.{name}"] = state[key].flatten()
    return tensors


def loraplus(out):
    """Two steps of AdamW with PEFT's groups, on gradients that are drawn."""
    config = LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=1, intermediate_size=24, vocab_size=30)
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    rng, tensors = generator(32), {}
    key = lambda name: name.replace(".default.", ".")
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for name, weight in named.items():
            weight.copy_(numpy_normal(rng, weight, 0.2))
            tensors[f"start.{key(name)}"] = weight.clone()
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0,
                                          loraplus_weight_decay=0.1)
    for step in [1, 2]:
        for name, weight in named.items():
            weight.grad = numpy_normal(rng, weight, 1.0)
            tensors[f"gradient_{step}.{key(name)}"] = weight.grad
        optimizer.step()
    tensors |= {f"after.{key(name)}": weight for name, weight in named.items()}
    save(tensors, out / "loraplus.safetensors")


def neftune(out):
    """Of the embedding of the fixture `tiny-llama`."""
    weight = load_file(ROOT / "engine/tests/fixtures/tiny-llama/model.safetensors")["model.embed_tokens.weight"]
    embedding = torch.nn.Embedding.from_pretrained(weight).train()
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(neftune_post_forward_hook)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]])
    torch.manual_seed(6)
    save({"ids": ids[0], "noisy": embedding(ids)[0]}, out / "neftune.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "engine/tests/fixtures/optimizers")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    schedules(out)
    steps(out)
    loraplus(out)
    neftune(out)


if __name__ == "__main__":
    main()
