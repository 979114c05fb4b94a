"""The peer on a device: Transformers, PEFT and Liger kernels on the rows and the recipe of a bench.

    peer.py RECIPE_JSON --steps N --device cuda [--liger]      prints step times and memory as JSON

What ../engine/peer.py is on the processor, for a base that is too large to be carried: its
weights are drawn on the device. SDPA attention, fused AdamW, no key/value cache, no gradient
checkpointing; with `--liger` Liger's norms, rotary embedding, SwiGLU and its linear cross-entropy
without logits, as its authors apply them. The quantised base is bitsandbytes' `Linear4bit`, the
output projection left out as Transformers leaves it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from peer import optimizer_of, sequences  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402


def quantize(model, kind, dtype):
    """Every linear layer but the output projection in four bits, one after another."""
    import bitsandbytes

    targets = [(name, layer) for name, layer in model.named_modules()
               if isinstance(layer, torch.nn.Linear) and name != "lm_head"]
    for name, layer in targets:
        device = layer.weight.device
        packed = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=dtype,
                                            compress_statistics=kind == "nf4-double", quant_type="nf4", device="meta")
        packed.weight = bitsandbytes.nn.Params4bit(layer.weight.data.to("cpu"), requires_grad=False, quant_type="nf4",
                                                   compress_statistics=kind == "nf4-double", module=packed)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed.to(device))
        layer.weight = None
    # PEFT looks at these to wrap such layers.
    model.is_loaded_in_4bit = model.is_quantized = True


def build(recipe, device, liger):
    base, lora = recipe["base"], recipe["adapter"]["lora"]
    dtype, kind = getattr(torch, base["dtype"]), base.get("quantization", "none")
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    config = AutoConfig.from_pretrained(base["model"])
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if kind.startswith("nf4"):
        quantize(model, kind, dtype)
    elif kind != "none":
        raise SystemExit(f"peer: nothing here trains over a base in {kind}")
    model.config.use_cache = False
    return get_peft_model(model, LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"],
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM"))


class Device:
    """What is asked of a device, and of the processor where there is none."""

    def __init__(self, name):
        self.name, self.cuda = name, name.startswith("cuda")

    def finish(self):
        if self.cuda:
            torch.cuda.synchronize()

    def forget_peak(self):
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self):
        return torch.cuda.max_memory_allocated() if self.cuda else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--liger", action="store_true")
    args = parser.parse_args()
    recipe = json.loads(args.recipe.read_text())
    device, rows, train = Device(args.device), sequences(recipe), recipe["train"]
    length = recipe["data"]["sequence_length"]
    batch, micro = train["tokens_per_step"] // length, train["micro_batch_tokens"] // length
    torch.manual_seed(train["seed"])
    model = build(recipe, args.device, args.liger).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, schedule = optimizer_of(recipe, weights, args.steps)
    rows = rows.to(args.device)
    # Of training, not of how the base was made.
    device.forget_peak()
    seconds, losses = [], []
    for step in range(args.steps):
        device.finish()
        began = time.perf_counter()
        chosen = rows[[(step * batch + place) % len(rows) for place in range(batch)]]
        mean = 0.0
        for ids in chosen.split(micro):
            loss = model(input_ids=ids, labels=ids).loss * (len(ids) / batch)
            loss.backward()
            mean += loss.detach()
        torch.nn.utils.clip_grad_norm_(weights, train["clip_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(mean))
        device.finish()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({
        "seconds": seconds, "losses": losses, "tokens_per_step": chosen.numel(), "peak_memory_bytes": device.peak(),
        "trainable": sum(weight.numel() for weight in weights), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
