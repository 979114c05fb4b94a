"""The peer: the run of a Heirloom run folder, as a careful user of Transformers and PEFT writes it.

    peer.py RUN --metrics FILE --threads N   trains; one JSON line for each optimiser step
    peer.py RUN --check                      only compares rows and tokens with RUN/recipe.lock

Careful means: SDPA attention, padded micro-batches of conversations of similar length, labels on
the assistant's tokens only, loss normalised by the trained tokens of the whole optimiser step, no
cache of keys and values, tokenising while it goes (its time is reported apart).
"""

import argparse
import hashlib
import json
import math
import random
import sys
import time
from datetime import datetime
from pathlib import Path

START = time.perf_counter()

import pyarrow.parquet as pq
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

CONSENT_COLUMNS = [
    "record_id", "messages", "consent_basis", "consent_status", "consent_purposes",
    "consent_processing", "consent_expires_at", "consent_withdrawn_at", "consent_record_id",
]


def allowed(row, ask, at, until, endless):
    """The consent rule, as far as the benchmark's rows go; the lock's digest says if it is enough."""
    if row["consent_basis"] == "consent":
        if row["consent_status"] not in ("given", "renewed") or not row["consent_record_id"]:
            return False
    elif row["consent_basis"] == "not_personal_data":
        if row["consent_status"] != "not_applicable":
            return False
    else:
        return False
    expires, withdrawn = row["consent_expires_at"], row["consent_withdrawn_at"]
    return (
        (expires > until if expires else endless or row["consent_basis"] != "consent")
        and not (withdrawn and withdrawn <= at)
        and set(ask["purpose"]) <= set(row["consent_purposes"] or [])
        and set(ask["processing"]) <= set(row["consent_processing"] or [])
    )


def read_rows(lock):
    """Conversations of the rows that the run used, in file order; others would be another run."""
    at, until = (datetime.fromisoformat(lock["ask"][key]) for key in ("at", "until"))
    rows = []
    for data in lock["data"]:
        if data["split"] != "train":
            continue
        file = pq.ParquetFile(data["file"]["path"])
        footer = json.loads((file.metadata.metadata or {}).get(b"consent.v1", b"{}"))
        endless = footer.get("defaults", {}).get("expiry") == "endless"
        table = file.read(columns=CONSENT_COLUMNS).to_pylist()
        used = [row for row in table if allowed(row, lock["ask"], at, until, endless)]
        digest = hashlib.sha256("".join(row["record_id"] + "\n" for row in used).encode()).hexdigest()
        if digest != data["used_sha256"]:
            sys.exit(f"peer: {data['file']['path']}: uses {len(used)} rows, the lock {data['rows']['used']}")
        rows += [row["messages"] for row in used]
    return rows


class Tokens:
    """Token ids and labels of each conversation, made when first asked for."""

    def __init__(self, tokenizer, rows):
        self.tokenizer, self.rows, self.known = tokenizer, rows, {}
        self.marked = "generation %}" in tokenizer.chat_template or "generation -%}" in tokenizer.chat_template

    def __getitem__(self, index):
        if index not in self.known:
            self.known[index] = self.render(self.rows[index])
        return self.known[index]

    def render(self, messages):
        if self.marked:
            out = self.tokenizer.apply_chat_template(
                messages, return_dict=True, return_assistant_tokens_mask=True)
            ids, mask = out["input_ids"], out["assistant_masks"]
        else:
            ids, mask = self.render_by_prefix(messages)
        labels = [i if m else -100 for i, m in zip(ids, mask)]
        labels[0] = -100  # Nothing comes before it.
        return ids, labels

    def render_by_prefix(self, messages):
        """For templates without `{% generation %}`: what a turn adds to the text before it."""
        render = lambda m, **kw: self.tokenizer.apply_chat_template(m, tokenize=False, **kw)
        text, spans = render(messages), []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                start = len(render(messages[:i], add_generation_prompt=True))
                spans.append((start, len(render(messages[: i + 1]).rstrip("\n"))))
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        mask = [any(a <= s and e <= b and s < e for a, b in spans) for s, e in out["offset_mapping"]]
        return out["input_ids"], mask


def steps(tokens, recipe, seed):
    """Indices of the conversations of each optimiser step: as many as fit its tokens."""
    room, longest = recipe["train"]["tokens_per_step"], recipe["data"]["sequence_length"]
    rng, step, size = random.Random(seed), [], 0
    while True:
        for index in rng.sample(range(len(tokens.rows)), len(tokens.rows)):
            length = len(tokens[index][0])
            if length > longest:
                continue
            if size + length > room:
                yield step
                step, size = [], 0
            step.append(index)
            size += length


def micro_batches(documents, most):
    """Conversations of similar length together, at most `most` tokens with padding."""
    batch = []
    for document in sorted(documents, key=lambda d: len(d[0])):
        # Sorted, so this one is the longest so far.
        if batch and len(document[0]) * (len(batch) + 1) > most:
            yield pad(batch)
            batch = []
        batch.append(document)
    yield pad(batch)


def pad(batch):
    width = len(batch[-1][0])
    column = lambda which, fill: torch.tensor([d[which] + [fill] * (width - len(d[which])) for d in batch])
    lengths = torch.tensor([[len(ids)] for ids, _ in batch])
    mask = (torch.arange(width)[None] < lengths).long()
    return {"input_ids": column(0, 0), "labels": column(1, -100), "attention_mask": mask}


def build(recipe):
    lora, base = recipe["adapter"]["lora"], recipe["base"]
    model = AutoModelForCausalLM.from_pretrained(
        base["model"], dtype=getattr(torch, base["dtype"]), attn_implementation="sdpa")
    model.config.use_cache = False
    return get_peft_model(model, LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"],
        target_modules=lora["targets"], task_type="CAUSAL_LM"))


def train(recipe, lock, tokens, args):
    torch.manual_seed(recipe["train"]["seed"])
    model = build(recipe).train()
    weights = [w for w in model.parameters() if w.requires_grad]
    adamw, cosine = recipe["train"]["optimizer"]["adamw"], recipe["train"]["schedule"]["cosine"]
    # PyYAML reads 1e-8, without a point, as text.
    lr, eps, decay = (float(adamw[key]) for key in ("lr", "eps", "weight_decay"))
    betas = tuple(map(float, adamw["betas"]))
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=betas, eps=eps, weight_decay=decay)
    total = lock["training"]["steps"]
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(float(cosine["warmup_ratio"]) * total), total)
    most = args.micro_batch_tokens or recipe["train"]["micro_batch_tokens"]
    most = most or min(recipe["train"]["tokens_per_step"], 8192)
    stream, seen, data_seconds = steps(tokens, recipe, recipe["train"]["seed"]), 0, 0.0
    with open(args.metrics, "w") as out:
        for step in range(1, total + 1):
            began = time.perf_counter()
            documents = [tokens[index] for index in next(stream)]
            batches = list(micro_batches(documents, most))
            data_seconds += time.perf_counter() - began
            loss = optimise(model, batches, weights, optimizer, recipe["train"]["clip_grad_norm"])
            schedule.step()
            seen += sum(len(ids) for ids, _ in documents)
            row = {"step": step, "loss": loss, "tokens": seen, "data_seconds": data_seconds,
                   "seconds": time.perf_counter() - START}
            out.write(json.dumps(row) + "\n")
            out.flush()
    model.save_pretrained(Path(args.metrics).with_suffix(".adapter"))


def optimise(model, batches, weights, optimizer, clip):
    """One optimiser step; the mean loss over its trained tokens."""
    trained = sum((batch["labels"] != -100).sum() for batch in batches)
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=trained).loss
        loss.backward()
        total += loss.item()
    if clip:
        torch.nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
    optimizer.zero_grad()
    return total


def check(lock, recipe, tokens):
    """Same rows, same tokens, same labels as Heirloom counted, or the comparison means nothing."""
    longest = recipe["data"]["sequence_length"]
    documents = [d for d in map(tokens.__getitem__, range(len(tokens.rows))) if len(d[0]) <= longest]
    ours = {"tokens": lock["training"]["tokens"], "trained_tokens": lock["training"]["trained_tokens"]}
    theirs = {
        "tokens": sum(len(ids) for ids, _ in documents),
        "trained_tokens": sum(label != -100 for _, labels in documents for label in labels),
    }
    print(json.dumps({"rows": len(tokens.rows), "heirloom": ours, "peft": theirs}))
    return 0 if ours == theirs else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--metrics", default="peer.jsonl")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--micro-batch-tokens", type=int, help="instead of the recipe's")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = yaml.safe_load((args.run / "recipe.yaml").read_text())
    lock = json.loads((args.run / "recipe.lock").read_text())
    tokens = Tokens(AutoTokenizer.from_pretrained(recipe["base"]["model"]), read_rows(lock))
    if args.check:
        return check(lock, recipe, tokens)
    train(recipe, lock, tokens, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
