"""Write the perplexities that Transformers' guide computes, for `heirloom eval --suite perplexity`.

    .venv/bin/python scripts/goldens/perplexity.py           # writes engine/tests/fixtures/perplexity
    .venv/bin/python scripts/goldens/perplexity.py --check MODEL TEXT WINDOW STRIDE [DTYPE]

The second form prints the figures for any model folder and text, to compare with. The loop is
that of the guide "Perplexity of fixed-length models". `nll` is the mean over the scored tokens;
`guide_nll` is the guide's own figure, whose weights count one token too few in each window that
overlaps the one before it, and which is no number (here null) where a last window has one token.
The environment is that of make.py.
"""

import argparse
import json
import math
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "engine/tests/fixtures"
TEXT = FIXTURES / "perplexity/text.txt"
# Without overlap, with, with much; the whole; a last window of one token (301 = 3 * 100 + 1).
TINY = [(64, 64), (64, 32), (50, 17), (2, 2), (2, 1), (256, 256), (100, 100)]
SEEDLING = [(128, 128), (128, 64), (100, 7), (512, 512), (2048, 2048)]


def load(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def figures(model, ids, window, stride):
    total, tokens, guide_total, guide_tokens, previous, windows = 0.0, 0, 0.0, 0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        new = end - previous
        inputs = torch.tensor(ids[begin:end])[None]
        labels = inputs.clone()
        labels[:, :-new] = -100
        with torch.no_grad():
            output = model(inputs, labels=labels)
        shifted = labels[0, 1:]
        each = F.cross_entropy(output.logits[0, :-1].float(), shifted, reduction="none")
        total += each.double().sum().item()
        tokens += (shifted != -100).sum().item()
        weight = (labels != -100).sum().item() - 1
        guide_total += output.loss.item() * weight
        guide_tokens += weight
        previous, windows = end, windows + 1
        if end == len(ids):
            break
    guide = guide_total / max(guide_tokens, 1)
    return {
        "window": window, "stride": stride, "nll": total / tokens, "tokens": tokens,
        "windows": windows, "guide_nll": None if math.isnan(guide) else guide,
    }


def fixtures(out):
    rng = np.random.Generator(np.random.PCG64(21))
    tiny = rng.integers(0, 97, 301).tolist()
    model = load(FIXTURES / "tiny-llama", torch.float32)
    seedling = ROOT / "data/seedling"
    ids = AutoTokenizer.from_pretrained(seedling)(TEXT.read_text())["input_ids"]
    result = {"tiny-llama": {"ids": tiny, "cases": [figures(model, tiny, *c) for c in TINY]}}
    model = load(seedling, torch.float32)
    result["seedling"] = {"ids": ids, "cases": [figures(model, ids, *c) for c in SEEDLING]}
    (out / "expected.json").write_text(json.dumps(result) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=TEXT.parent)
    parser.add_argument("--check", nargs="+", metavar="ARGUMENT")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check is None:
        return fixtures(arguments.output)
    folder, text, window, stride, *dtype = arguments.check
    ids = AutoTokenizer.from_pretrained(folder)(Path(text).read_text())["input_ids"]
    model = load(folder, getattr(torch, *dtype) if dtype else torch.float32)
    print(json.dumps(figures(model, ids, int(window), int(stride)), indent=2))


if __name__ == "__main__":
    main()
