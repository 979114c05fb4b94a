"""The peer of benches/stream: `datasets.map` over rows, with the base folder's own template.

    python benches/stream/peer.py BASE --rows FILE... [--batched] [--processes N] [--pack LENGTH]

As TRL's SFTTrainer maps: `apply_chat_template` of one row, tokenised, with the mask of the
assistant's tokens where the template marks them. Where it does not, the mask is what users
write: the turns' spans from renderings of the first messages, over the tokens' offsets.
With `--pack`, TRL's `pack_dataset` then fills windows, as its SFTTrainer does.
Prints seconds, rows, tokens and a digest of all documents, whatever their order, as JSON.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"


def spans(tokenizer, messages, text):
    """The bytes... characters, here, of every answer through its end-of-turn token."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            render = lambda n, prompt: tokenizer.apply_chat_template(
                messages[:n], tokenize=False, add_generation_prompt=prompt)
            opened, closed = render(index, True), render(index + 1, False)
            assert text.startswith(opened) and text.startswith(closed)
            yield len(opened), len(closed.rstrip())


def masked(tokenizer, messages, text, encoded):
    mask = [0] * len(encoded["input_ids"])
    found = list(spans(tokenizer, messages, text))
    for at, (start, end) in enumerate(encoded["offset_mapping"]):
        mask[at] = int(any(start >= a and end <= b for a, b in found))
    return mask


def row_function(tokenizer, marked):
    def marked_row(row):
        out = tokenizer.apply_chat_template(row["messages"], return_dict=True, tokenize=True,
                                            return_assistant_tokens_mask=True)
        return {"input_ids": out["input_ids"], "assistant_masks": out["assistant_masks"]}

    def plain_row(row):
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return {"input_ids": out["input_ids"],
                "assistant_masks": masked(tokenizer, row["messages"], text, out)}

    return marked_row if marked else plain_row


def batch_function(tokenizer, marked):
    def marked_rows(rows):
        out = tokenizer.apply_chat_template(rows["messages"], return_dict=True, tokenize=True,
                                            return_assistant_tokens_mask=True)
        return {"input_ids": out["input_ids"], "assistant_masks": out["assistant_masks"]}

    def plain_rows(rows):
        texts = tokenizer.apply_chat_template(rows["messages"], tokenize=False)
        out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        each = [{"input_ids": i, "offset_mapping": o}
                for i, o in zip(out["input_ids"], out["offset_mapping"])]
        masks = [masked(tokenizer, *row) for row in zip(rows["messages"], texts, each)]
        return {"input_ids": out["input_ids"], "assistant_masks": masks}

    return marked_rows if marked else plain_rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--batched", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--pack", type=int, help="length of windows")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        # Nothing may be left over from the run before.
        os.environ["HF_DATASETS_CACHE"] = cache
        import datasets
        from transformers import AutoTokenizer

        datasets.disable_progress_bars()
        tokenizer = AutoTokenizer.from_pretrained(args.base)
        marked = "{%- generation" in tokenizer.chat_template
        if args.pack:
            from trl.data_utils import pack_dataset
        rows = datasets.load_dataset("parquet", data_files=args.rows, split="train")
        # What it does not need shall not cost it time.
        rows = rows.select_columns(["messages"])
        make = batch_function if args.batched else row_function
        began = time.perf_counter()
        done = rows.map(make(tokenizer, marked), batched=args.batched,
                        num_proc=args.processes if args.processes > 1 else None,
                        remove_columns=rows.column_names, load_from_cache_file=False)
        windows = len(pack_dataset(done, args.pack, "bfd")) if args.pack else None
        seconds = time.perf_counter() - began
        digest, tokens = 0, 0
        for row in done.with_format("numpy").iter(1000):
            for ids, mask in zip(row["input_ids"], row["assistant_masks"]):
                tokens += len(ids)
                # Nothing comes before the first token, so it carries no loss.
                document = ids.astype("<u4").tobytes() + b"\0" + mask.astype("u1")[1:].tobytes()
                digest += int.from_bytes(hashlib.sha256(document).digest()[:16], "little")
        print(json.dumps({"seconds": seconds, "rows": len(done), "tokens": tokens, "windows": windows,
                          "digest": f"{digest % (1 << 128):032x}"}))


if __name__ == "__main__":
    main()
