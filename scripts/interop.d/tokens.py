"""Check added tokens and trained rows, from a recipe to releases, with Transformers and PEFT.

Trains a few steps on a base that lacks the tokens of a template, exports both kinds of release
and loads them as people will. Started by scripts/interop, or by itself:

    python scripts/interop.d/tokens.py --heirloom target/release/heirloom \
        --logits target/release/examples/logits --base data/seedling
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

# Float32 against float32, the order of additions aside.
LIMIT = 1e-5
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENS = ["<|im_start|>", "<|im_end|>"]
CHAT = [
    {"role": "user", "content": "Do you have leeks?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Then 12 of them, please."},
]
RECIPE = """
heirloom: 1
name: chatml
base: {{ model: {base}, chat_template: {template}, added_tokens: ["<|im_start|>", "<|im_end|>"] }}
adapter: {{ lora: {{ rank: 4, alpha: 8{more} }} }}
data:
  purpose: [dpv:ServiceProvision]
  train:
    - {{ path: data/catalogue/validation.parquet, format: chat }}
  sequence_length: 256
train: {{ epochs: 1, max_steps: 4, tokens_per_step: 512, seed: 3, optimizer: {{ adamw: {{ lr: 1.0e-2 }} }} }}
"""
# What the recipe trains besides, by name.
KINDS = {"rows": "", "whole": ", modules_to_save: [embed_tokens, lm_head]"}


def untied(base, folder):
    """The base with an output projection of its own, in float32 so that merging rounds nothing."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state = {key: weight.clone() for key, weight in model.state_dict().items()}
    state["lm_head.weight"] = state["lm_head.weight"].flip(1)
    model.config.tie_word_embeddings = False
    model = type(model)(model.config)
    model.load_state_dict(state)
    return save(model, base, folder)


def tied(base, folder):
    return save(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), base, folder)


def save(model, base, folder):
    model.save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "README.md"]:
        if (base / name).is_file():
            shutil.copy(base / name, folder / name)
    return folder


class Checks:
    def __init__(self, arguments):
        self.heirloom, self.logits, self.failed = arguments.heirloom, arguments.logits, 0

    def say(self, check, holds, note=""):
        self.failed += not holds
        print(f"{'ok    ' if holds else 'FAILED'} {check}{f' ({note})' if note else ''}")

    def run(self, *words):
        subprocess.run([str(word) for word in (self.heirloom, *words)], check=True, stdout=subprocess.DEVNULL)

    def ours(self, ids, base, adapter=None):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.safetensors"
            words = [self.logits, base, "--ids", ",".join(map(str, ids)), "-o", out]
            words += ["--adapter", adapter] if adapter else []
            subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
            return load_file(out)["logits"]

    @torch.no_grad()
    def same(self, check, ours, model, ids):
        theirs = model.eval()(torch.tensor([ids])).logits[0].float()[:, : ours.shape[1]]
        apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        self.say(check, apart <= LIMIT, f"{apart:.1e}")


def check(checks, name, base, more, place):
    (place / "chatml.jinja").write_text(CHATML)
    recipe = place / f"{name}.yaml"
    recipe.write_text(RECIPE.format(base=base, template=place / "chatml.jinja", more=more))
    run, adapter, merged = (place / f"{name}-{kind}" for kind in ["run", "adapter", "merged"])
    checks.run("--quiet", "train", recipe, "--run", run)
    for kind, folder in [("adapter", adapter), ("merged", merged)]:
        checks.run("--quiet", "export", run, "--to", kind, "-o", folder)
        checks.run("--quiet", "verify", folder)
        checks.run("--quiet", "generate", folder, "--prompt", "Do you have leeks?", "--max-new-tokens", 4)
        checks.run("--quiet", "eval", folder, "--suite", "perplexity", "--text", place / "chatml.jinja")

    reference = AutoTokenizer.from_pretrained(base)
    rows = len(reference)
    reference.add_tokens(TOKENS, special_tokens=True)
    reference.chat_template = CHATML
    ids = reference.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    for kind, folder in [("adapter", adapter), ("merged", merged)]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
        checks.say(f"{name}: tokenizer of the {kind} gives Transformers' ids", found == ids)
        checks.say(f"{name}: and as many tokens", len(tokenizer) == len(reference) == rows + 2)
        plain = tokenizer.decode(ids, skip_special_tokens=True)
        checks.say(f"{name}: and takes them for special", not any(token in plain for token in TOKENS))
    stops = GenerationConfig.from_pretrained(merged).eos_token_id
    checks.say(f"{name}: generation ends at <|im_end|>", reference.convert_tokens_to_ids("<|im_end|>") in stops)

    ours = checks.ours(ids, base, adapter)
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    checks.same(f"{name}: AutoPeftModel gives our logits", ours, model, ids)
    resized = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    resized.resize_token_embeddings(len(reference))
    model = PeftModel.from_pretrained(resized, adapter)
    checks.same(f"{name}: PeftModel on a resized base gives our logits", ours, model, ids)
    again = place / f"{name}-again"
    model.save_pretrained(again, save_embedding_layers=False)
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in [adapter, again])
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    checks.say(f"{name}: PEFT writes the tensors that we wrote", same)
    full = place / f"{name}-full"
    model.save_pretrained(full)
    checks.same(f"{name}: we read what PEFT writes with its embeddings", checks.ours(ids, base, full), model, ids)
    saved = json.loads((adapter / "adapter_config.json").read_text())
    other = json.loads((again / "adapter_config.json").read_text())
    keys = ["modules_to_save", "trainable_token_indices"]
    equal = all(saved.get(key) == other.get(key) for key in keys)
    checks.say(f"{name}: and the settings", equal, str({key: other.get(key) for key in keys}))

    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    checks.same(f"{name}: merged model gives our logits", checks.ours(ids, merged), whole, ids)
    checks.same(f"{name}: and those of the adapter", ours, whole, ids)
    is_tied = whole.get_input_embeddings().weight is whole.get_output_embeddings().weight
    was_tied = AutoModelForCausalLM.from_pretrained(base).config.tie_word_embeddings
    checks.say(f"{name}: tied if it was, and can be", is_tied == (was_tied and not more), str(is_tied))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ["heirloom", "logits", "base"]:
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checks = Checks(arguments)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for base in [tied, untied]:
            path = base(arguments.base, place / base.__name__)
            for kind, more in KINDS.items():
                check(checks, f"{base.__name__}-{kind}", path, more, place)
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    main()
