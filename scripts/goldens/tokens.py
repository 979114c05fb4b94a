"""Write the numbers that trained rows of embedding and output are tested against, from PEFT.

    .venv/bin/python scripts/goldens/tokens.py                 # engine/tests/fixtures/tokens
    .venv/bin/python scripts/goldens/tokens.py --output DIR    # elsewhere, to compare

Needs the models that make.py and families.py write. What each tensor is stands in
engine/tests/fixtures/README.md.
"""

import argparse
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from common import documents, draw_adapter, forward, generator, numpy_normal, save, save_adapter

FIXTURES = Path(__file__).resolve().parents[2] / "engine/tests/fixtures"
VOCAB = 97
LENGTHS = [7, 33, 18]
PLAIN, TIED = "tiny-llama", "tiny-llama-tied-sharded"
BOTH = ["embed_tokens", "lm_head"]
NEW = [97, 98, 99]

# (name, base, rows of the resized base, what PEFT is told)
CASES = [
    ("rows-embedding", PLAIN, None, {"trainable_token_indices": [3, 90, 5]}),
    ("rows-each", PLAIN, None, {"trainable_token_indices": {"embed_tokens": [3, 90, 5], "lm_head": [5, 7]}}),
    ("rows-tied", TIED, None, {"trainable_token_indices": [96, 2, 5]}),
    ("whole", PLAIN, None, {"modules_to_save": BOTH}),
    ("whole-tied", TIED, None, {"modules_to_save": BOTH}),
    # One new row more than is trained: it comes with the adapter.
    ("resized", PLAIN, 101, {"trainable_token_indices": dict.fromkeys(BOTH, NEW)}),
    ("resized-tied", TIED, 101, {"trainable_token_indices": NEW}),
    ("resized-mixed", PLAIN, 101, {"trainable_token_indices": NEW, "modules_to_save": ["lm_head"]}),
    # Embeddings that are scaled, logits that are capped or scaled; both tied.
    ("rows-gemma2", "families/gemma2", None, {"trainable_token_indices": [90, 2, 5]}),
    ("rows-granite", "families/granite", None, {"trainable_token_indices": [90, 2, 5]}),
]


def load(base, rows, seed):
    model = AutoModelForCausalLM.from_pretrained(
        FIXTURES / base, dtype=torch.float32, attn_implementation="eager"
    )
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
        rng = generator(seed)
        with torch.no_grad():
            # Where the two are tied, the second draw wins.
            for table in [model.get_input_embeddings().weight, model.get_output_embeddings().weight]:
                table[VOCAB:] = numpy_normal(rng, table[VOCAB:], 0.2)
    return model.eval()


def trained_ids(told):
    indices = told.get("trainable_token_indices") or [3, 90, 5]
    return indices if isinstance(indices, list) else sorted({i for ids in indices.values() for i in ids})


def key_of(name):
    """The key in adapter_model.safetensors of a trained weight."""
    return (
        name.replace(".modules_to_save.default.", ".")
        .replace(".default.", ".")
        .removesuffix(".default")
    )


def make(out, seed, name, base, rows, told):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **told)
    model = draw_adapter(get_peft_model(load(base, rows, seed), config).eval(), seed)
    docs = documents(seed, LENGTHS, rows or model.config.vocab_size)
    for ids, _ in docs:
        # Every third token is one that is trained: in the prompt and as a target.
        ids[::3] = torch.tensor(trained_ids(told))[torch.arange(len(ids[::3])) % len(trained_ids(told))]
    logits, loss = forward(model, docs)
    loss.backward()
    tensors = {"loss": loss.detach().float()}
    for k, (ids, trained) in enumerate(docs):
        tensors |= {f"ids.{k}": ids, f"trained.{k}": trained.to(torch.uint8), f"logits.{k}": logits[k]}
    for key, weight in model.named_parameters():
        if weight.requires_grad:
            tensors[f"grad.{key_of(key)}"] = weight.grad
    save(tensors, out / name / "golden.safetensors")
    # The base as a path from here, so that PEFT sees that it was resized.
    save_adapter(model, out / name / "adapter", base if rows is None else os.path.relpath(FIXTURES / base))
    path = out / name / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace(os.path.relpath(FIXTURES / base), base))
    merged = model.merge_and_unload()
    save(
        {"embed_tokens": merged.get_input_embeddings().weight, "lm_head": merged.get_output_embeddings().weight},
        out / name / "merged.safetensors",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIXTURES / "tokens")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(out, ignore_errors=True)
    for seed, case in enumerate(CASES, start=31):
        make(out, seed, *case)


if __name__ == "__main__":
    main()
