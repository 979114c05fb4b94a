"""Write what Transformers makes of our own chat templates and small tokenizers.

    python -m venv .venv && .venv/bin/pip install -r scripts/goldens/requirements.txt
    .venv/bin/python scripts/goldens/templates.py                 # writes tests/fixtures
    .venv/bin/python scripts/goldens/templates.py --output DIR    # elsewhere, to compare

Reads tests/fixtures/templates/*.jinja, which are written by hand, and renders each for every
conversation of conversations.py into goldens.json beside them. Makes a tokenizer of every
kind that published models have in tests/fixtures/tokenizers, each with the ids of the same
nasty texts. Running it again gives the same bytes.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from conversations import FixedClock, conversations
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
SPECIAL = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
PLAIN = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
WORDS = ["the", "and", "Hello", "Good", "day", "you", "is", "It", "clear", "sum", "how", "ing"]
# Every way of saying how an added token meets the text around it.
FLAGGED = [
    AddedToken("[left]", lstrip=True), AddedToken("[right]", rstrip=True),
    AddedToken("[both]", lstrip=True, rstrip=True), AddedToken("word", single_word=True),
    AddedToken("Lowered", normalized=True), AddedToken("Exact", normalized=False),
    AddedToken("  ", normalized=False), AddedToken("\n\n", normalized=False),
]
NASTY = [
    "", " ", "  ", "\n", "\n\n\n", "\t \r\n", "Hello", " Hello", "Hello ", "  Hello  you  ",
    "Hello\nGood day", "it's you'll IT'S", "12345 1,000.50", "é e\u0301 ﬁ Å ℌ", "日本語 テスト",
    "🌱👩‍👩‍👧‍👦🇦🇹", "\u200b\u200d\ufeff\u00a0\u2028\u0085", "a\u0000b\u0007\u001f", "مرحبا שלום",
    "<s>Hello</s>", "<|user|>\nHello<|end|>\n<|assistant|>\n", "<|user|> Hello <|end|> you",
    "a [left] b [right] c [both] d", "[left][right]  [both]", "word words sword word. (word)",
    "Lowered lowered LOWERED Exact exact", "<think>\nsum\n</think>\n\nHello", "<|end", "<<s>>",
    "▁Hello ▁", "Ġ Ċ", "##ing", "<0x41><0x0A>", "a" * 300, "ab " * 50 + "\n" * 9, "()[]{};:'\"\\/",
    "def f(x):\n    return x  # é\n\n\n", "{{ x }} {% y %}", "İıẞß", "ﷺ\u0e33\u0e4d", "\ud7ff\ue000",
]


def byte_level():
    """As GPT-2, Llama 3 and Qwen have it: bytes in disguise, split by an expression."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges, tokens = [], list(alphabet)
    for word in [w for word in WORDS for w in (word, "Ġ" + word)] + ["ĊĊ", "ĠĠĠĠ"]:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    # With trimmed offsets Transformers finds no token for a space that opens an answer, and
    # gives up the rest of its mask; the published ones of the last years do not trim either.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def spelled(space):
    """The pieces of a SentencePiece vocabulary: bytes, characters, words."""
    letters = [chr(c) for c in range(33, 127)] + ["é", "日", "本"]
    words = [w[:end] for word in WORDS for w in (word, space + word) for end in range(2, len(w) + 1)]
    fixed = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return list(dict.fromkeys([*fixed, space, *letters, *words]))


def byte_fallback_bpe():
    """As Llama 2 and Mistral have it: spaces become ▁, what is unknown becomes bytes."""
    tokens = spelled("▁")
    merges = [(t[:-1], t[-1]) for t in tokens
              if len(t) > 1 and not t.startswith("<") and t[:-1] in tokens]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges,
                                     unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                           decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def unigram():
    """As T5 and XLM-R have it: pieces with scores, a metaspace that opens every part."""
    pieces = [(t, -2.0 * (i > 260) - len(t) / 8 - i / 1000) for i, t in enumerate(spelled("▁"))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer


def word_piece():
    """As BERT has it: lower case, words split at every sign."""
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *(chr(c) for c in range(33, 127)), "日",
              *(f"##{chr(c)}" for c in range(97, 123)), *(w.lower() for w in WORDS), "##ing"]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


KINDS = [byte_level, byte_fallback_bpe, unigram, word_piece]


def save_tokenizers(out):
    """Each with its files as Transformers writes them, and the ids that it gives."""
    for make in KINDS:
        folder = out / make.__name__
        tokenizer = make()
        tokenizer.add_special_tokens([*NAMED.values(), *SPECIAL])
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t in PLAIN])
        tokenizer.add_tokens(FLAGGED)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMED)
        fast.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder)
        cases = []
        for text in NASTY:
            ids = loaded(text, add_special_tokens=False)["input_ids"]
            assert ids == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(
                text, add_special_tokens=False).ids
            cases.append({"text": text, "ids": ids,
                          "decoded": loaded.decode(ids, skip_special_tokens=True,
                                                   clean_up_tokenization_spaces=False)})
        write(folder / "ids.json", cases)


def save_templates(out, sources, tokenizer_folder):
    """Every template with every conversation: its text and mask, or that it is refused."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    talks = [{"name": name, "messages": messages, "others": others}
             for name, messages, others in conversations()]
    cases = []
    for path in sorted(sources.glob("*.jinja")):
        # Without universal newlines: the carriage returns belong to a template.
        tokenizer.chat_template = path.read_bytes().decode()
        for number, talk in enumerate(talks):
            for prompt in (False, True):
                case = {"template": path.name, "conversation": number, "prompt": prompt}
                cases.append(case | expected(tokenizer, talk, prompt))
    write(out / "goldens.json", {"conversations": talks, "cases": cases})


def expected(tokenizer, talk, prompt):
    try:
        text = tokenizer.apply_chat_template(
            talk["messages"], tokenize=False, add_generation_prompt=prompt, **talk["others"])
    except Exception as error:  # whatever Jinja, Python or the template raises
        return {"refused": type(error).__name__}
    if "endgeneration" not in tokenizer.chat_template or prompt:
        return {"text": text}
    found = tokenizer.apply_chat_template(
        talk["messages"], return_dict=True, return_assistant_tokens_mask=True, **talk["others"])
    # Runs of equal values, the first of zeros: short to read in a difference.
    runs, value = [0], 0
    for bit in found["assistant_masks"]:
        if bit != value:
            runs.append(0)
            value = bit
        runs[-1] += 1
    return {"text": text, "mask_runs": runs}


def write(path, value):
    text = json.dumps(value, ensure_ascii=False, indent=1)
    # A lone surrogate cannot stand in a file; none of our texts has one.
    path.write_text(text + "\n", encoding="utf-8")


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--output", type=Path, default=ROOT)
    out = options.parse_args().output
    chat_template_utils.datetime = FixedClock
    shutil.rmtree(out / "tokenizers", ignore_errors=True)
    (out / "templates").mkdir(parents=True, exist_ok=True)
    save_tokenizers(out / "tokenizers")
    save_templates(out / "templates", ROOT / "templates", out / "tokenizers" / "byte_level")


if __name__ == "__main__":
    main()
