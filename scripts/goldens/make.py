"""Write the numbers that the engine is tested against, from Transformers, PEFT and PyTorch.

    python -m venv .venv && .venv/bin/pip install -r scripts/goldens/requirements.txt
    .venv/bin/python scripts/goldens/make.py                 # writes engine/tests/fixtures
    .venv/bin/python scripts/goldens/make.py --output DIR    # elsewhere, to compare

Running it again on the same machine gives the same bytes: weights and inputs are drawn by
NumPy's PCG64 (the same on every machine), everything computed runs on one thread. What each
tensor is stands in engine/tests/fixtures/README.md.
"""

import argparse
import os
import shutil
from pathlib import Path

# Nothing here comes from a network; PEFT would look for the base's name on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from common import (
    describe, documents, draw_adapter, forward, generator, numpy_normal, peft_keys, save,
    save_adapter,
)

ROOT = Path(__file__).resolve().parents[2]
VOCAB = 97
# One token; a few; more than a few; more than a block of 128 that attention may work in.
MODEL_LENGTHS = [1, 7, 33, 150]
TRAINING_LENGTHS = [7, 33, 18]


def random_model(config, seed):
    """A Llama whose weights are large enough for every part of it to show in the logits."""
    rng = generator(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" in name:
                weight.copy_(1 + numpy_normal(rng, weight, 0.2))
            else:
                weight.copy_(numpy_normal(rng, weight, 0.2))
    return model


def save_models(out):
    common = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, vocab_size=VOCAB, max_position_embeddings=256,
        bos_token_id=0, eos_token_id=1,
    )
    plain = random_model(LlamaConfig(**common, tie_word_embeddings=False), seed=1)
    plain.save_pretrained(out / "tiny-llama")
    # What the plain one leaves at its usual value is unusual here.
    unusual = LlamaConfig(
        **common, tie_word_embeddings=True, head_dim=16, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    tied = random_model(unusual, seed=2).to(torch.bfloat16)
    tied.save_pretrained(out / "tiny-llama-tied-sharded", max_shard_size="24KB")


def load(folder, dtype=torch.float32):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def save_logits(out, name):
    docs = documents(3, MODEL_LENGTHS, VOCAB)
    with torch.no_grad():
        tensors = describe(docs, *forward(load(out / name), docs))
        coarse, _ = forward(load(out / name, torch.bfloat16), docs[:3])
    for k, logits in enumerate(coarse):
        tensors[f"logits_bfloat16.{k}"] = logits
    save(tensors, out / f"{name}.logits.safetensors")


def save_full_gradients(out, name):
    """Gradients of every weight; of tied embeddings, the sum of both uses."""
    model, docs = load(out / name), documents(4, TRAINING_LENGTHS, VOCAB)
    logits, loss = forward(model, docs)
    loss.backward()
    tensors = describe(docs, logits, loss)
    for key, weight in model.named_parameters():
        tensors[f"grad.{key}"] = weight.grad
    tensors["grad_norm"] = torch.nn.utils.get_total_norm([w.grad for w in model.parameters()])
    save(tensors, out / f"{name}.full.safetensors")


def lora_model(out, targets, seed):
    """PEFT over tiny-llama."""
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, bias="none",
                        target_modules=targets, task_type="CAUSAL_LM")
    return draw_adapter(get_peft_model(load(out / "tiny-llama"), config).eval(), seed)


def save_lora(out, name, targets, seed):
    folder = out / name
    model = lora_model(out, targets, seed)
    save_adapter(model, folder / "adapter", "tiny-llama")
    docs = documents(4, TRAINING_LENGTHS, VOCAB)
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    tensors, course, norms = {}, [], []
    for step in range(1, 4):
        logits, loss = forward(model, docs)
        optimizer.zero_grad()
        loss.backward()
        if step == 1:
            tensors |= describe(docs, logits, loss)
            # A copy: clipping changes gradients in place.
            tensors |= peft_keys(model, "grad.", lambda weight: weight.grad)
        norms.append(torch.nn.utils.clip_grad_norm_(weights, 1.0))
        assert norms[-1] > 1.0, "clipping would not show"
        optimizer.step()
        course.append(loss.detach())
        if step != 2:
            tensors |= peft_keys(model, f"after_{step}.", lambda weight: weight)
    tensors |= {"losses": torch.stack(course), "grad_norms": torch.stack(norms)}
    save(tensors, folder / "lora.safetensors")
    save(merged(out, targets, seed), folder / "merged.safetensors")


def merged(out, targets, seed):
    """The weights that merging changes, by their key in the base's model.safetensors."""
    base = load_file(out / "tiny-llama" / "model.safetensors")
    model = lora_model(out, targets, seed).merge_and_unload()
    return {k: w for k, w in model.state_dict().items() if not torch.equal(w, base[k])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "engine/tests/fixtures")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    names = ["tiny-llama", "tiny-llama-tied-sharded"]
    adapters = {"lora-all-linear": "all-linear", "lora-qv": ["q_proj", "v_proj"]}
    for folder in [*names, *adapters]:
        shutil.rmtree(out / folder, ignore_errors=True)
    save_models(out)
    for name in names:
        save_logits(out, name)
    save_full_gradients(out, "tiny-llama-tied-sharded")
    for seed, (name, targets) in enumerate(adapters.items(), start=5):
        save_lora(out, name, targets, seed)


if __name__ == "__main__":
    main()
