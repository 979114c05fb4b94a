"""Write what sampling is tested against: Transformers' processors, and small tokenizers.

    .venv/bin/python scripts/goldens/sampling.py                 # writes engine/tests/fixtures/sampling
    .venv/bin/python scripts/goldens/sampling.py --output DIR    # elsewhere, to compare

`scores.safetensors`: logits that are drawn, the tokens before them, and the scores after the
list of processors that Transformers' own `_get_logits_processor` builds for each case of
`cases.json`. The draws themselves are not compared: random numbers differ.

`byte-level`, `byte-fallback`, `metaspace`: tokenizers of the three kinds whose decoders treat
spaces and split characters differently, for the text that is shown as it comes.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
VOCAB = 211
ROWS = 6

# Names and values of generation_config.json. What is absent is off, top_k too.
CASES = {
    "greedy-penalty": {"do_sample": False, "repetition_penalty": 1.3},
    "greedy-reward": {"do_sample": False, "repetition_penalty": 0.8},
    "plain": {},
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 2.5},
    "top-k": {"top_k": 7},
    "top-k-one": {"top_k": 1},
    "top-k-beyond-the-vocabulary": {"top_k": 5000},
    "top-p": {"top_p": 0.9},
    "top-p-zero": {"top_p": 0.0},
    "top-p-tiny": {"top_p": 1e-4},
    "top-p-almost-one": {"top_p": 0.9999},
    "min-p": {"min_p": 0.1},
    "min-p-one": {"min_p": 1.0},
    "all": {"repetition_penalty": 1.2, "temperature": 0.8, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    "cold": {"temperature": 0.01, "top_p": 0.5, "top_k": 50},
}


def tiny_model():
    config = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                         intermediate_size=8, vocab_size=VOCAB)
    return LlamaForCausalLM(config)


def processors(model, case):
    config = GenerationConfig(**{"do_sample": True, "top_k": 0} | case)
    # What `generate` fills in where nobody says, except for what a case has just said.
    for key, value in GenerationConfig._get_default_generation_params().items():
        if getattr(config, key, None) is None:
            setattr(config, key, value)
    return model._get_logits_processor(generation_config=config)


def scores():
    rng = np.random.Generator(np.random.PCG64(11))
    logits = torch.from_numpy(rng.standard_normal((ROWS, VOCAB)) * 3).float()
    # Rows of equal logits, where ties decide: among them all, and at the edge of the top k.
    logits[1] = 0.5
    logits[2] = torch.round(logits[2])
    # One token that is nearly certain.
    logits[3, 100] = 40.0
    # As a model in bfloat16 gives them.
    logits[4] = logits[4].bfloat16().float()
    context = torch.from_numpy(rng.integers(0, VOCAB, (ROWS, 40)))
    tensors = {"logits": logits, "context": context}
    model = tiny_model()
    for name, case in CASES.items():
        processed = processors(model, case)(context, logits.clone())
        tensors[f"scores.{name}"] = processed.float().contiguous()
    return tensors


TEXT = ["Hello world, how are you?", " line feeds", "a family and a seed"]


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    merges = [("l", "l"), ("Ġ", "w"), ("o", "r")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def byte_fallback():
    """As Llama 2: Metaspace by its normaliser, unknown characters as bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = sorted({letter for text in TEXT for letter in text} - {" "} | {"▁", "日"})
    for letter in letters:
        vocab[letter] = len(vocab)
    merges = [("▁", "w"), ("o", "r"), ("▁", "▁")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)])
    return tokenizer


def metaspace():
    vocab = {"<unk>": 0, "▁": 1}
    letters = "abcdefghijklmnopqrstuvwxyzHàéε,?.\n\t👩👧🌱日本語のテキスト\u0301\u200d\ufffd"
    for letter in letters:
        vocab.setdefault(letter, len(vocab))
    merges = [("▁", "w"), ("o", "r"), ("▁", "a")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "engine/tests/fixtures/sampling")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    save_file(scores(), out / "scores.safetensors")
    (out / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
    for name, make in [("byte-level", byte_level), ("byte-fallback", byte_fallback), ("metaspace", metaspace)]:
        folder = out / name
        folder.mkdir(exist_ok=True)
        make().save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
