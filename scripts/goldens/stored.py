"""Write whole tiny models with quantised weights, as published, and the logits of Transformers.

    .venv/bin/python scripts/goldens/stored.py              # writes engine/tests/fixtures/stored
    .venv/bin/python scripts/goldens/stored.py --output DIR # elsewhere, to compare

The environment is that of make.py. DeepSeek-V3 in fp8 with block scales and gpt-oss in mxfp4,
both loaded by Transformers with its own `dequantize=True`.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM, DeepseekV3Config, FineGrainedFP8Config, GptOssConfig, Mxfp4Config,
)

from cases import CASES
from families import random_model

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 16
# What DeepSeek leaves unquantised beside embeddings and norms.
PLAIN = ("embed_tokens", "lm_head", "norm", "mlp.gate.")


def quantise_fp8(tensors):
    """Every linear weight to E4M3, with the factor of each block of 16 by 16 beside it."""
    result = {}
    for name, weight in sorted(tensors.items()):
        if any(part in name for part in PLAIN) or weight.dim() != 2:
            result[name] = weight
            continue
        rows, columns = weight.shape
        padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK)
        padded[:rows, :columns] = weight.float()
        blocks = padded.view(-1, BLOCK, padded.shape[1] // BLOCK, BLOCK)
        scale = blocks.abs().amax(dim=(1, 3)) / 448.0
        coded = (blocks / scale[:, None, :, None]).view(padded.shape)[:rows, :columns]
        result[name] = coded.to(torch.float8_e4m3fn).contiguous()
        result[f"{name}_scale_inv"] = scale.contiguous()
    return result


def draw_mxfp4(tensors, rng):
    """Experts as blocks of 32 numbers of four bits; any bits are numbers."""
    result = {}
    for name, weight in sorted(tensors.items()):
        if not name.endswith(("gate_up_proj", "down_proj")):
            result[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        blocks = rng.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
        scales = rng.integers(122, 126, (experts, outputs, inputs // 32), dtype=np.uint8)
        result[f"{name}_blocks"] = torch.from_numpy(blocks)
        result[f"{name}_scales"] = torch.from_numpy(scales)
    return result


def write(folder, config, seed, quantise, described, loading):
    shutil.rmtree(folder, ignore_errors=True)
    random_model(config, seed).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "model.safetensors"
    save_file(quantise(load_file(path)), path, metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | {"quantization_config": described}
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", quantization_config=loading)
    ids = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).integers(0, 96, 40))
    with torch.no_grad():
        logits = model.eval().float()(ids[None], use_cache=False).logits[0]
    trained = torch.ones(len(ids), dtype=torch.uint8)
    golden = {"ids.0": ids, "trained.0": trained, "logits.0": logits.contiguous()}
    save_file(golden, folder / "golden.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "engine/tests/fixtures/stored")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
           "weight_block_size": [BLOCK, BLOCK]}
    # Whole blocks only: of one that is cut off at an edge, Transformers infers another size.
    config = DeepseekV3Config(**CASES["deepseek_v3"].config.to_dict() | {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "v_head_dim": 8,
        "head_dim": 16, "qk_head_dim": 24, "moe_intermediate_size": 16})
    write(out / "deepseek_v3-fp8", config, 31, quantise_fp8, fp8,
          FineGrainedFP8Config(weight_block_size=(BLOCK, BLOCK), dequantize=True))
    config = GptOssConfig(**CASES["gpt_oss"].config.to_dict() | {"intermediate_size": 32})
    rng = np.random.Generator(np.random.PCG64(32))
    write(out / "gpt_oss-mxfp4", config, 32, lambda tensors: draw_mxfp4(tensors, rng),
          {"quant_method": "mxfp4"}, Mxfp4Config(dequantize=True))


if __name__ == "__main__":
    main()
