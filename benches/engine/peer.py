"""The peer: Transformers and PEFT on the rows and the recipe of a Heirloom bench or run.

    peer.py RECIPE_JSON --steps N                 prints step times as JSON
    peer.py RECIPE_JSON --steps N --adapter DIR   starts from this adapter

Losses are printed, too; with `adapter: full` every weight is trained, without PEFT.

RECIPE_JSON is a resolved recipe as JSON, as run.py and curves.py write it. What a careful user
writes who wants speed: SDPA attention, whole sequences of equal length without padding and so
without a mask, fused AdamW, no key/value cache, no gradient checkpointing (slower), logits in
float32 as Transformers' loss has them. The quantised base is bitsandbytes' `Linear4bit` with
nested or plain scales and the recipe's dtype as its compute dtype; its norms stay as they are stored
(`prepare_model_for_kbit_training` would turn them, the embedding and the output projection into
float32, which is slower).
"""

import argparse
import json
import math
import time
from pathlib import Path

import pyarrow.parquet as parquet
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, get_cosine_schedule_with_warmup


def sequences(recipe):
    """Token ids of the rows in the order of the file, `[rows, sequence_length]`."""
    tokenizer = AutoTokenizer.from_pretrained(recipe["base"]["model"])
    length, rows = recipe["data"]["sequence_length"], []
    for text in parquet.read_table(recipe["data"]["train"][0]["path"], columns=["text"])["text"].to_pylist():
        ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
        assert len(ids) == length, f"a row has {len(ids)} tokens, not {length}"
        rows.append(ids)
    return torch.tensor(rows)


def build(recipe, adapter):
    base = recipe["base"]
    dtype = getattr(torch, base["dtype"])
    quantized = base.get("quantization", "none")
    settings = {}
    if quantized.startswith("nf4"):
        settings = {"device_map": "cpu", "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=quantized == "nf4-double")}
    model = AutoModelForCausalLM.from_pretrained(base["model"], dtype=dtype, attn_implementation="sdpa", **settings)
    model.config.use_cache = False
    if recipe["adapter"] == "full":
        return model
    lora = recipe["adapter"]["lora"]
    if adapter:
        return PeftModel.from_pretrained(model, adapter, is_trainable=True)
    return get_peft_model(model, LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"],
        target_modules="all-linear", task_type="CAUSAL_LM"))


def optimizer_of(recipe, weights, steps):
    adamw, schedule = recipe["train"]["optimizer"]["adamw"], recipe["train"]["schedule"]["cosine"]
    optimizer = torch.optim.AdamW(weights, lr=adamw["lr"], betas=tuple(adamw["betas"]), eps=adamw["eps"],
                                  weight_decay=adamw["weight_decay"], fused=True)
    warm = math.ceil(schedule["warmup_ratio"] * steps)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warm, steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = json.loads(args.recipe.read_text())
    rows, train = sequences(recipe), recipe["train"]
    batch = train["tokens_per_step"] // recipe["data"]["sequence_length"]
    torch.manual_seed(train["seed"])
    model = build(recipe, args.adapter).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, schedule = optimizer_of(recipe, weights, args.steps)
    seconds, losses = [], []
    for step in range(args.steps):
        began = time.perf_counter()
        ids = rows[[(step * batch + place) % len(rows) for place in range(batch)]]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if train["clip_grad_norm"]:
            torch.nn.utils.clip_grad_norm_(weights, train["clip_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    print(json.dumps({
        "seconds": seconds, "losses": losses, "tokens_per_step": ids.numel(), "threads": torch.get_num_threads(),
        "trainable": sum(weight.numel() for weight in weights), "capability": torch.backends.cpu.get_cpu_capability()}))


if __name__ == "__main__":
    main()
