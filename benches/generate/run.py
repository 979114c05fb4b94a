"""Heirloom beside Transformers: the same model, threads, prompts and number of new tokens.

    VENV/bin/python benches/generate/run.py            # VENV has requirements.txt

Both decode greedily, past every end-of-sequence token, and take turns at going first. What is
measured, and how, stands in README.md. Prints a Markdown table.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WORK = ROOT / "runs" / "bench-generate"

# As many tokens as a short question has; of different lengths, so that a batch is padded.
PROMPT_TOKENS = [40, 64, 52, 33, 47, 60, 38, 56]
STATS = re.compile(r"(\d+) prompt tokens in ([\d.]+) s, (\d+) tokens in ([\d.]+) s")


def make_model(folder):
    """A Llama of 31 million parameters with random weights and the seedling's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "model.safetensors").exists():
        return
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        intermediate_size=1408, vocab_size=8192, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        (folder / name).write_bytes((ROOT / "data/seedling" / name).read_bytes())


def prompts(model, count):
    """Plain texts that have these numbers of tokens with the model's tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    # Letters with spaces between them are a token or two each: cut until it fits.
    words = ("a b c d e f g h i j k l m n o p q r s t u v w x y z " * 4).split()
    texts = []
    for length in PROMPT_TOKENS[:count]:
        text = ""
        for word in words:
            longer = (text + " " + word).strip()
            if len(tokenizer.encode(longer).ids) > length:
                break
            text = longer
        texts.append(text)
    return texts


def environment(threads):
    count = str(threads)
    return os.environ | {
        "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "RAYON_NUM_THREADS": count,
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }


def checked(command, threads):
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment(threads),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"run: {command[0]} failed\n{done.stdout}{done.stderr}")
    return done


def heirloom(args, model, dtype, requests, batch):
    answers = WORK / "answers.jsonl"
    done = checked(
        [args.heirloom, "generate", model, "--raw", "--input", requests, "--output", answers,
         "--greedy", "--ignore-eos", "--max-new-tokens", args.new_tokens, "--stats",
         "--batch-size", batch, "--dtype", dtype], args.threads)
    _, prefill, tokens, decode = map(float, STATS.search(done.stderr).groups())
    texts = [json.loads(line)["text"] for line in answers.read_text().splitlines()]
    return {"prefill_seconds": prefill, "tokens_per_second": tokens / decode, "texts": texts}


def transformers(args, model, dtype, requests, batch):
    done = checked(
        [args.python, HERE / "peer.py", model, requests, "--dtype", dtype, "--threads", args.threads,
         "--new-tokens", args.new_tokens], args.threads)
    return json.loads(done.stdout.splitlines()[-1])


def compare(args, model, dtype, batch):
    requests = WORK / "requests.jsonl"
    requests.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts(model, batch)))
    programs = {"heirloom": heirloom, "transformers": transformers}
    names, turns = list(programs), []
    for turn in range(args.repeat + 1):
        names.reverse()
        found = {name: programs[name](args, model, dtype, requests, batch) for name in names}
        # The first turn fills the page cache.
        if turn:
            turns.append(found)
    texts = [turns[0][name]["texts"] for name in programs]
    same = sum(ours == theirs for ours, theirs in zip(*texts))
    cells = []
    for key, better in [("tokens_per_second", 1), ("prefill_seconds", -1)]:
        ours, theirs = ([turn[name][key] for turn in turns] for name in programs)
        ratios = [(a / b) ** better for a, b in zip(ours, theirs)]
        form = "{:.1f}" if better > 0 else "{:.3f}"
        cells += [spread(ours, form), spread(theirs, form), spread(ratios, "{:.2f}")]
    return f"| {model.name} | {dtype} | {batch} | " + " | ".join(cells) + f" | {same} of {batch} |"


def spread(values, form):
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="a Python with requirements.txt")
    parser.add_argument("--heirloom", default=ROOT / "target/release/heirloom", type=Path)
    parser.add_argument("--models", nargs="+", type=Path, help="instead of the seedling and the random one")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="at most 8")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"run: other programs are busy here (load {load:.1f}): speeds will not mean much", file=sys.stderr)
    # The same cores for both, without hopping between them.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    if not args.models:
        make_model(WORK / "llama-31m")
        args.models = [ROOT / "data/seedling", WORK / "llama-31m"]
    columns = ["model", "dtype", "batch", "heirloom, tokens/s", "transformers, tokens/s", "ratio",
               "heirloom, first tokens s", "transformers, first tokens s", "ratio", "same text"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for model in args.models:
        for dtype in args.dtypes:
            for batch in args.batches:
                print(compare(args, model, dtype, batch), flush=True)


if __name__ == "__main__":
    main()
