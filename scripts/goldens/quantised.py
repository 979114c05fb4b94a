"""Write weights that bitsandbytes and Transformers quantise, and what models compute with them.

    .venv/bin/python scripts/goldens/quantised.py              # writes engine/tests/fixtures/quantised
    .venv/bin/python scripts/goldens/quantised.py --output DIR # elsewhere, to compare

The environment is that of make.py. On the CPU, one thread. What each tensor is stands in
engine/tests/fixtures/README.md.
"""

import argparse
import os
from pathlib import Path
from types import SimpleNamespace

# Nothing here comes from a network; PEFT would look for the base's name on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

import bitsandbytes.functional as bnb
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.utils import logging

from common import documents, forward, generator, numpy_normal, peft_keys, save

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "engine/tests/fixtures"
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def normal(seed, *shape, std=0.02, dtype=torch.float32):
    return numpy_normal(generator(seed), torch.empty(shape), std).to(dtype)


def between_codes():
    """Values half way between two codes, and their neighbours, in blocks of two sizes."""
    codes = bnb.get_4bit_type("nf4", device="cpu")
    half = (codes[:-1] + codes[1:]) / 2
    beside = [torch.nextafter(half, torch.full_like(half, side)) for side in (-2.0, 2.0)]
    block = torch.cat([torch.ones(1), half, *beside, codes, torch.zeros(2)])
    assert len(block) == 64
    return torch.stack([block, -block, block * 3.7, block * 1e-3])


def nf4_weights():
    zeros = normal(21, 4, 64)
    zeros[1] = 0
    rest = normal(22, 3, 40)
    rest.view(-1)[64:] = 0
    yield "float32", normal(11, 24, 100)
    yield "bfloat16", normal(12, 24, 100, dtype=torch.bfloat16)
    yield "float16", normal(13, 24, 100, dtype=torch.float16)
    # Of an odd number of values the last has a half byte to itself.
    yield "odd", normal(14, 7, 33)
    yield "one", normal(15, 1, 1)
    yield "zeros", zeros
    # The last block is not full, and all of it is zero.
    yield "zero_rest", rest
    yield "between", between_codes()
    yield "tiny", normal(16, 5, 50, std=1e-39)
    # Scales that are all the same leave nothing when their mean is taken off.
    yield "even", torch.ones(6, 64)
    # Three blocks of 256 scales, the last not full.
    yield "many", normal(17, 300, 128, dtype=torch.bfloat16) * torch.arange(1, 301)[:, None]


def nf4():
    tensors = {}
    for name, weight in nf4_weights():
        packed, state = bnb.quantize_4bit(weight, quant_type="nf4")
        again, double = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        assert torch.equal(packed, again)
        tensors |= {
            f"weight.{name}": weight, f"packed.{name}": packed.view(-1),
            f"absmax.{name}": state.absmax, f"codes.{name}": double.absmax,
            f"scales.{name}": double.state2.absmax, f"offset.{name}": double.offset.view(1)}
        tensors["table"] = double.state2.code
        if name == "many":
            continue
        for kind, dtype in KINDS.items():
            state.dtype = double.dtype = dtype
            tensors[f"plain.{kind}.{name}"] = bnb.dequantize_4bit(packed, state)
            tensors[f"double.{kind}.{name}"] = bnb.dequantize_4bit(packed, double)
    return tensors


def int8_weights():
    return [("float32", normal(31, 9, 50)), ("bfloat16", normal(32, 16, 33, dtype=torch.bfloat16))]


def int8_of(weight):
    values, absmax, _ = bnb.int8_vectorwise_quant(weight)
    return values, absmax


def int8():
    tensors = {}
    for name, weight in int8_weights():
        values, absmax = int8_of(weight)
        tensors |= {f"weight.{name}": weight, f"values.{name}": values.view(torch.uint8),
                    f"absmax.{name}": absmax}
        for kind, dtype in KINDS.items():
            tensors[f"{kind}.{name}"] = bnb.int8_vectorwise_dequant(values, absmax).to(dtype)
    return tensors


def fp8_weights():
    zeros = normal(43, 32, 48)
    zeros[:16, 16:32] = 0
    yield "rows", normal(41, 12, 50), (1, 50)
    yield "blocks", normal(42, 64, 96, dtype=torch.bfloat16), (32, 32)
    yield "zeros", zeros, (16, 16)


def fp8_of(weight, block):
    config = SimpleNamespace(weight_block_size=block, scale_fmt=None)
    quantise = Fp8Quantize(SimpleNamespace(quantization_config=config))
    return tuple(quantise._quantize_one("weight", weight).values())


def fp8():
    tensors = {}
    for name, weight, block in fp8_weights():
        values, scales = fp8_of(weight, block)
        tensors |= {f"weight.{name}": weight, f"values.{name}": values.view(torch.uint8),
                    f"scales.{name}": scales, f"block.{name}": torch.tensor(block)}
        for kind, dtype in KINDS.items():
            tensors[f"{kind}.{name}"] = Fp8Dequantize(None)._dequantize_one(values, scales, dtype)
    return tensors


def unpacked(weight, double):
    """What bitsandbytes' own bytes and scales stand for.

    Its dequantize_4bit on CPUs (0.50.2) gives other numbers for rows of 32:
    0.37 of the weight for 32 x 32 normal numbers, where the format's error is 0.09.
    """
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    absmax = state.absmax
    if double:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    codes = torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], 1).view(-1)[: weight.numel()].long()
    factors = absmax.repeat_interleave(state.blocksize)[: weight.numel()]
    return (state.code[codes] * factors).view(weight.shape)


def four_bits(double=False, skip=()):
    return dense(lambda weight: unpacked(weight, double), skip)


def dense(through, skip=()):
    """Every linear weight taken through a format and back."""
    model = AutoModelForCausalLM.from_pretrained(
        FIXTURES / "tiny-llama", dtype=torch.float32, attn_implementation="eager")
    for name, module in model.named_modules():
        kept = any(name == each or f".{each}" in f".{name}" for each in ("lm_head", *skip))
        if isinstance(module, torch.nn.Linear) and not kept:
            module.weight.data = through(module.weight.data)
    return model


def through_fp8(weight):
    values, scales = fp8_of(weight, (1, weight.shape[1]))
    return Fp8Dequantize(None)._dequantize_one(values, scales, torch.float32)


MODELS = {
    "nf4": four_bits,
    "nf4-double": lambda: four_bits(double=True),
    "nf4-unquantized": lambda: four_bits(skip=["model.layers.0", "down_proj"]),
    "int8": lambda: dense(lambda weight: bnb.int8_vectorwise_dequant(*int8_of(weight))),
    "fp8": lambda: dense(through_fp8),
}


def whole(make):
    """Logits, loss and gradients of the adapter `lora-all-linear` over a quantised base."""
    adapted = PeftModel.from_pretrained(
        make(), FIXTURES / "lora-all-linear/adapter", is_trainable=True)
    # Nothing is dropped out.
    adapted.train()
    docs = documents(51, [7, 33, 18], 97)
    logits, loss = forward(adapted, docs)
    loss.backward()
    tensors = {"loss": loss} | peft_keys(adapted, "grad.", lambda weight: weight.grad)
    for k, (ids, trained) in enumerate(docs):
        tensors |= {f"ids.{k}": ids, f"trained.{k}": trained.to(torch.uint8), f"logits.{k}": logits[k]}
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIXTURES / "quantised")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for make in [nf4, int8, fp8]:
        save(make(), out / f"{make.__name__}.safetensors")
    for name, make in MODELS.items():
        save(whole(make), out / f"tiny-llama.{name}.safetensors")


if __name__ == "__main__":
    main()
