"""Make what benches/engine measures on: a Llama with random weights, and rows that fill windows.

    python benches/engine/make.py OUT --shape 31m [--rows N] [--shapes FILE] [--without-weights]

Writes OUT/base (Transformers' own format, bfloat16, a byte-level BPE tokenizer of the shape's
vocabulary) and OUT/rows.jsonl, whose texts have exactly as many tokens as a window, so that
neither program pads, nor has a boundary of documents within a sequence. Everything is drawn
from a seed. Without weights the base is config.json and the tokenizer, for programs that draw
their own; a shape that is only ever used so may have fewer tokens than rows of its tables.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
SEED = 17


def tokenizer(size, draw):
    """A byte-level BPE trained on made-up words, and those of its tokens that are whole words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    word = lambda: "".join(draw.choices(letters, k=draw.randint(2, 6)))
    words = [" " + word() for _ in range(2 * size)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(words, trainer)
    if trained.get_vocab_size() != size:
        raise SystemExit(f"make: the tokenizer has {trained.get_vocab_size()} tokens, not {size}")
    # Each stands alone wherever it is put: the split at spaces comes before any merge.
    whole = sorted({word for word in words if len(trained.encode(word).ids) == 1})
    return trained, whole


def text(words, length, draw):
    """A text of so many tokens, the one that ends it included; few words come often."""
    return "".join(words[min(int(draw.paretovariate(0.8)), len(words)) - 1] for _ in range(length - 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", default="31m")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--shapes", type=Path, default=Path(__file__).with_name("shapes.json"))
    parser.add_argument("--without-weights", action="store_true")
    args = parser.parse_args()
    chosen = json.loads(args.shapes.read_text())[args.shape]
    shape, length = chosen["model"], chosen["length"]
    draw = random.Random(SEED)
    trained, words = tokenizer(chosen.get("tokens", shape["vocab_size"]), draw)
    draw.shuffle(words)
    texts = [text(words, length, draw) for _ in range(args.rows)]
    for one in texts:
        assert len(trained.encode(one).ids) == length - 1
    shutil.rmtree(args.out, ignore_errors=True)
    base = args.out / "base"
    base.mkdir(parents=True)
    (args.out / "rows.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    fast = PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=END, model_max_length=length)
    fast.save_pretrained(base)
    torch.manual_seed(SEED)
    config = LlamaConfig(**shape, max_position_embeddings=length, tie_word_embeddings=False, dtype="bfloat16",
                         bos_token_id=None, eos_token_id=trained.token_to_id(END), pad_token_id=None)
    with torch.device("meta" if args.without_weights else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    if args.without_weights:
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(base)
    else:
        model.save_pretrained(base)
    count = sum(weight.numel() for weight in model.parameters())
    print(json.dumps({"shape": args.shape, "parameters": count, "words": len(words), "rows": len(texts), "length": length}))


if __name__ == "__main__":
    main()
