"""Write a tiny random model for every family, and what Transformers and PEFT compute with it.

    .venv/bin/python scripts/goldens/families.py                  # engine/tests/fixtures/families
    .venv/bin/python scripts/goldens/families.py --output DIR     # elsewhere, to compare
    .venv/bin/python scripts/goldens/families.py llama gemma2     # these cases only

Running it again on the same machine gives the same bytes. The reference runs with eager
attention and eager experts on one thread; every number is of the checkpoint as it stands in
the fixture, loaded again. What each tensor is stands in engine/tests/fixtures/README.md.
"""

import argparse
import contextlib
import copy
import json
import os
import shutil
import tempfile
import warnings
import zlib
from pathlib import Path

# Nothing here comes from a network; PEFT would look for the base's name on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from cases import CASES, VOCAB
from common import (
    documents, draw_adapter, forward, generator, numpy_normal, peft_keys, save, save_adapter,
    token_losses,
)
from old_configs import OLD_CONFIGS

ROOT = Path(__file__).resolve().parents[2]
NEW_TOKENS = 32
# Two experts nearer than this could change places by rounding, two candidates for the next
# token as well: then another seed is taken.
ROUTER_GAP, TOKEN_GAP = 1e-4, 1e-3
# A field that moves the logits by less than this would not be missed by a test at 1e-5.
VISIBLE = 1e-3
# Model types for which PEFT 0.21 turns any target named like an expert's projection into
# all experts: there, other linear layers beside attention go by the name of their weight.
EXPERT_TYPES = ["mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3"]

# The ends of names that published checkpoints have, and Transformers only in files.
PUBLISHED = {
    "mixtral": ".block_sparse_moe.experts.0.w1.weight",
    "qwen3_moe": ".mlp.experts.0.gate_proj.weight",
    "deepseek_v2": ".mlp.experts.0.gate_proj.weight",
    "deepseek_v3": ".mlp.experts.0.gate_proj.weight",
    "gpt_oss": ".mlp.experts.gate_up_proj",
}


def random_model(config, seed):
    """Weights large enough for every part of the model to show, of bfloat16 precision."""
    rng = generator(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    buffers = [(n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
    gemma = config.model_type.startswith("gemma")
    # Where embeddings are scaled and tied, large ones would make every token its own successor.
    scaled = gemma or config.model_type == "granite"
    with torch.no_grad():
        for name, weight in sorted([*model.named_parameters(), *buffers]):
            std = 0.06 if scaled and "embed" in name else 0.2
            if name.endswith(("mlp.gate.weight", "router.weight")):
                std = 0.4
            # Gemma multiplies by 1 + weight.
            centre = 1.0 if "norm" in name and not gemma else 0.0
            weight.copy_(numpy_normal(rng, weight, std) + centre)
    model.to(torch.bfloat16)
    for name, bias in buffers:  # Published in float32.
        model.get_submodule(name.rpartition(".")[0]).e_score_correction_bias.data = (
            bias.to(torch.bfloat16).float())
    return model


def load(folder, dtype=torch.float32, config=None):
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation="eager",
        experts_implementation="eager")
    return model.eval()


def prompts(name, case):
    rng = generator(zlib.crc32(name.encode()) + 1)
    return [torch.from_numpy(rng.integers(0, VOCAB, length)) for length in case.prompts]


def greedy(model, prompt):
    """The continuation, and how far the runner-up was behind at the closest step."""
    # What is unset here is taken from there: nothing may stop it, or ban a token from it.
    model.generation_config = GenerationConfig(pad_token_id=0)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, return_dict_in_generate=True, output_logits=True)
    mask = torch.ones_like(prompt)[None]
    out = model.generate(prompt[None], attention_mask=mask, generation_config=settings)
    gap = min(
        ((best[0] - best[1]) / logits.abs().max()).item()
        for logits in out.logits for best in [logits[0].sort(descending=True).values])
    answer = out.sequences[0, len(prompt):]
    assert answer.tolist() == [logits.argmax().item() for logits in out.logits], "not greedy"
    assert len(answer) == NEW_TOKENS
    return answer, gap


@contextlib.contextmanager
def router_gaps(gaps):
    """Records by how much the last chosen expert or group was ahead of the first left out."""
    functions = torch.topk, torch.Tensor.topk

    def record(original):
        def topk(scores, k, dim=-1, **rest):
            if k < scores.shape[dim]:
                best = original(scores, k + 1, dim=dim).values
                last, first_out = best.select(dim, k - 1), best.select(dim, k)
                # Of probabilities, however small, rounding takes a share; of logits, an amount.
                share = last if (scores >= 0).all() else 1.0
                gap = (last - first_out) / share
                gaps.append(gap[torch.isfinite(gap)].min().item())
            return original(scores, k, dim=dim, **rest)
        return topk

    torch.topk, torch.Tensor.topk = map(record, functions)
    try:
        yield
    finally:
        torch.topk, torch.Tensor.topk = functions


def lora_model(folder, seed):
    """PEFT over all linear layers that Transformers has as such."""
    model = load(folder)
    targets = dict(target_modules="all-linear")
    if model.config.model_type in EXPERT_TYPES:
        linear = [name for name, module in model.named_modules()
                  if isinstance(module, torch.nn.Linear) and name != "lm_head"]
        targets = dict(
            target_modules=[name for name in linear if ".self_attn." in name],
            target_parameters=[f"{name}.weight" for name in linear if ".self_attn." not in name])
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", **targets)
    return draw_adapter(get_peft_model(model, config).eval(), seed)


def compute(name, case, folder, seed):
    """The goldens of a folder, and the adapter they are of; None where rounding could decide."""
    docs = documents(zlib.crc32(name.encode()), case.lengths, VOCAB)
    tensors, gaps = {}, []
    for k, prompt in enumerate(prompts(name, case)):
        with router_gaps(gaps):
            # A model of its own: dynamic scaling remembers a longer sequence.
            answer, gap = greedy(load(folder), prompt)
        if gap < TOKEN_GAP or len(set(answer.tolist())) < 6:
            return None
        tensors |= {f"prompt.{k}": prompt, f"greedy.{k}": answer}
    adapted = lora_model(folder, seed)
    with router_gaps(gaps):
        with torch.no_grad():
            logits, _ = forward(load(folder), docs)
        _, loss = forward(adapted, docs)
    if min(gaps, default=1.0) < ROUTER_GAP:
        return None
    with torch.no_grad():
        coarse, _ = forward(load(folder, torch.bfloat16), docs)
    loss.backward()
    for k, (ids, trained) in enumerate(docs):
        tensors |= {
            f"ids.{k}": ids, f"trained.{k}": trained.to(torch.uint8),
            f"logits.{k}": logits[k], f"nll.{k}": token_losses(logits[k], ids)}
    tensors |= {f"logits_bfloat16.{k}": c for k, c in enumerate(coarse)}
    tensors |= {"loss": loss} | peft_keys(adapted, "grad.", lambda weight: weight.grad)
    return tensors, adapted


# Fields that can be changed with the same weights, and then must change the logits.
COMPUTES = """rms_norm_eps hidden_act hidden_activation sliding_window query_pre_attn_scalar
attn_logit_softcapping final_logit_softcapping embedding_multiplier logits_scaling
residual_multiplier attention_multiplier no_rope_layers norm_topk_prob routed_scaling_factor
num_experts_per_tok topk_group n_group rope_interleave swiglu_limit swiglu_alpha layer_types
original_max_position_embeddings""".split()
# What Transformers reads nowhere, or overrules.
IDLE = {
    "deepseek_v2": ["norm_topk_prob"],
    "gpt_oss": ["hidden_act"],
    "phi3": ["rope_parameters.original_max_position_embeddings"],
}


def tweaked(key, value):
    """Another value that the same weights allow."""
    if key in ["hidden_act", "hidden_activation"]:
        return "relu"
    if key == "layer_types":
        other = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
        return [other[each] for each in value]
    if key in ["num_experts_per_tok", "topk_group"]:
        return value - 1
    if key == "n_group":
        return value // 2
    if key == "original_max_position_embeddings":
        return value * 4
    if key == "no_rope_layers":
        return [1 - each for each in value]
    if isinstance(value, list):
        return [tweaked("", each) for each in value]
    if isinstance(value, bool):
        return not value
    return value * 2 if isinstance(value, int) and value else value * 1.5


def variants(plain):
    """The config with each field that computes changed by itself, by the field's name."""
    idle = list(IDLE.get(plain["model_type"], []))
    if plain["rope_parameters"].get("rope_type") == "default":
        idle.append("original_max_position_embeddings")
    for key in COMPUTES:
        shown = plain.get(key) is not None and key not in idle
        if shown and not (key == "layer_types" and "sliding_attention" not in plain[key]):
            yield key, plain | {key: tweaked(key, plain[key])}
    scaling = plain["rope_parameters"]
    layers = [key for key, value in scaling.items() if isinstance(value, dict)]
    for layer in layers or [None]:
        for key, value in (scaling[layer] if layer else scaling).items():
            whole = key == "partial_rotary_factor" and value == 1.0
            if key == "rope_type" or whole or f"rope_parameters.{key}" in idle:
                continue
            changed = copy.deepcopy(plain)
            spot = changed["rope_parameters"][layer] if layer else changed["rope_parameters"]
            spot[key] = 0.5 if key == "partial_rotary_factor" else tweaked(key, value)
            yield ".".join(filter(None, ["rope_parameters", layer, key])), changed


def check_every_field_shows(name, case, folder):
    docs = documents(zlib.crc32(name.encode()), case.lengths, VOCAB)
    plain = json.loads((folder / "config.json").read_text())
    with torch.no_grad():
        expected, _ = forward(load(folder), docs)
        for key, changed in variants(plain):
            found, _ = forward(load_with(folder, changed), docs)
            moved = max(((f - e).abs().max() / e.abs().max()).item() for f, e in zip(found, expected))
            assert moved >= VISIBLE, f"{name}: {key} does not show ({moved:.0e})"


def load_with(folder, content):
    """The folder's weights under another config.json."""
    with tempfile.TemporaryDirectory() as other:
        (Path(other) / "config.json").write_text(json.dumps(content))
        config = AutoConfig.from_pretrained(other)
    return load(folder, config=config)


def check_old_config(name, case, folder):
    """Transformers computes the same, to the bit, from the older style of the config."""
    content = OLD_CONFIGS[name]
    (folder / "config.old.json").write_text(json.dumps(content, indent=2) + "\n")
    docs = documents(zlib.crc32(name.encode()), case.lengths, VOCAB)
    with torch.no_grad():
        old, _ = forward(load_with(folder, content), docs)
        new, _ = forward(load(folder), docs)
    assert all(map(torch.equal, old, new)), f"{name}: config.old.json computes something else"


def make(name, case, out):
    folder = out / name
    for attempt in range(500):
        shutil.rmtree(folder, ignore_errors=True)
        seed = zlib.crc32(name.encode()) + attempt
        random_model(case.config, seed).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        made = compute(name, case, folder, seed)
        if made:
            break
    else:
        raise SystemExit(f"{name}: no seed without near ties")
    published = PUBLISHED.get(case.config.model_type, "")
    assert any(key.endswith(published) for key in load_file(folder / "model.safetensors"))
    tensors, adapted = made
    save(tensors, folder / "golden.safetensors")
    save_adapter(adapted, folder / "adapter", name)
    check_every_field_shows(name, case, folder)
    if name in OLD_CONFIGS:
        check_old_config(name, case, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{name}: seed {attempt}, {size // 1024} KiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "engine/tests/fixtures/families")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="[default: all]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in args.cases or CASES:
        make(name, CASES[name], args.output)


if __name__ == "__main__":
    main()
