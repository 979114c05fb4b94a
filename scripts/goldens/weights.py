"""Write quantised tensors as they are published, and the numbers that Transformers makes of them.

    .venv/bin/python scripts/goldens/weights.py              # writes engine/tests/fixtures/weights
    .venv/bin/python scripts/goldens/weights.py --output DIR # elsewhere, to compare

The environment is that of make.py. Every file holds the stored tensors under their published
names, and as `float32.NAME` and `bfloat16.NAME` what loading must give, bit for bit.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def every_pattern(rng, *shape):
    """E4M3 values of every bit pattern, the two that are not numbers included."""
    count = int(np.prod(shape))
    codes = np.concatenate([np.arange(256), rng.integers(0, 256, max(0, count - 256))])[:count]
    codes = rng.permutation(codes).astype(np.uint8)
    return torch.from_numpy(codes.reshape(shape)).view(torch.float8_e4m3fn)


def factors(rng, *shape):
    numbers = rng.uniform(0.5, 1, shape) * 2.0 ** rng.integers(-16, 1, shape)
    return torch.from_numpy(np.asarray(numbers, dtype=np.float32))


def fp8(rng):
    tensors = {}

    def add(name, weight, scale, values):
        tensors[name], tensors[f"{name}_scale_inv"] = weight, scale
        for kind, dtype in KINDS.items():
            tensors[f"{kind}.{name}"] = values(weight, scale, dtype)

    def whole(weight, scale, dtype):
        return Fp8Dequantize(None)._dequantize_one(weight, scale, dtype)

    def cut(weight, scale, dtype):
        # `Fp8Dequantize` refuses blocks that are cut off; the same product in float32.
        block = [128, 128]
        return _dequantize_fp8_weight(weight, scale, block, torch.float32).to(dtype)

    add("even.weight", every_pattern(rng, 128, 256), factors(rng, 1, 2), whole)
    add("small_blocks.weight", every_pattern(rng, 48, 32), factors(rng, 3, 2), whole)
    add("cut.weight", every_pattern(rng, 130, 200), factors(rng, 2, 2), cut)
    # Two blocks of 128, the second cut off; not two of 96.
    add("cut_to_half.weight", every_pattern(rng, 192, 16), factors(rng, 2, 1), cut)
    add("one_factor.weight", every_pattern(rng, 24, 16), factors(rng), whole)
    add("experts.down_proj", every_pattern(rng, 3, 32, 16), factors(rng, 3, 2, 1), whole)
    return tensors


def mxfp4(rng):
    name = "mlp.experts.gate_up_proj"
    blocks = torch.from_numpy(rng.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8))
    scales = torch.from_numpy(rng.integers(90, 150, (2, 6, 3), dtype=np.uint8))
    # The ends of the range: what is too small for the dtype, and what is no number.
    scales[0, 0] = torch.tensor([0, 1, 254], dtype=torch.uint8)
    scales[1, 5, 2] = 255
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    for kind, dtype in KINDS.items():
        tensors[f"{kind}.{name}"] = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "engine/tests/fixtures/weights")
    out = parser.parse_args().output
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for seed, make in enumerate([fp8, mxfp4], start=11):
        rng = np.random.Generator(np.random.PCG64(seed))
        tensors = {name: tensor.contiguous() for name, tensor in make(rng).items()}
        save_file(tensors, out / f"{make.__name__}.safetensors")


if __name__ == "__main__":
    main()
