"""Compare chat templates between Transformers and Heirloom: texts and loss masks.

    python scripts/interop.d/templates.py --render target/debug/examples/render

Fetches the TRL and Axolotl packages from PyPI into a temporary folder and takes every chat
template that they carry, and our own. Renders more than 50 conversations with each, by both,
and compares texts and refusals; then the tokens that carry loss (`train_on: assistant` and
`last`) with what the rules of masks.py say. Prints tables; exits with 1 when anything differs.
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

from conversations import NOW, FixedClock, conversations, more_conversations
from masks import Rules, verdict
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

PACKAGES = ["trl", "axolotl"]
MODES = ["assistant", "last"]
ROOT = Path(__file__).resolve().parents[2]
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
    """Yields package, name and source of every template: ours, then those of the packages."""
    yield "ours", "seedling", (ROOT / "data/seedling/chat_template.jinja").read_bytes().decode()
    for path in sorted((ROOT / "tests/fixtures/templates").glob("*.jinja")):
        # Prints lists as Python does, which is not followed for every character; what is, is
        # held by the goldens.
        if path.stem != "strings":
            yield "ours", path.stem, path.read_bytes().decode()
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
    return out["assistant_masks"]


def requests(templates, folder):
    """Every comparison: its names, Transformers' answer, and the question to ours."""
    for number, (package, name, source) in enumerate(templates):
        base = Path(folder) / f"{number:03}"
        tokenizer = write_base(base, source)
        marked = bool(GENERATION.search(source))
        for title, messages, others in [*conversations(), *more_conversations()]:
            for prompt in (False, True):
                expected = reference(tokenizer, messages, others, prompt)
                answers = any(message["role"] == "assistant" for message in messages)
                masks = MODES if not prompt and answers and "text" in expected else []
                if masks and marked:
                    expected["mask"] = reference_mask(tokenizer, messages, others)
                variables = {k: v for k, v in others.items() if k not in ("tools", "documents")}
                conversation = {"messages": messages, "variables": variables,
                                **{k: others[k] for k in ("tools", "documents") if k in others}}
                yield (package, name, title, prompt), tokenizer, expected, {
                    "folder": str(base), "conversation": conversation,
                    "add_generation_prompt": prompt, "masks": masks}, others


def compare(names, tokenizer, expected, request, others, ours):
    """Yields what was compared, the verdict and why."""
    if "refused" in expected or "refused" in ours:
        both = "refused" in expected and "refused" in ours
        yield "text", "", "both refuse" if both else "DIFFERENT", ours
        return
    yield "text", "", "equal" if expected["text"] == ours["text"] else "DIFFERENT", ours
    if expected["text"] != ours["text"] or not request["masks"]:
        return
    rules = Rules(tokenizer, request["conversation"]["messages"], others, expected["text"])
    for mode in request["masks"]:
        rule, answer = rules.answer(names[1], expected.get("mask"), mode == "last")
        mask = ours["masks"][mode]
        yield mode, rule, verdict(rules, answer, mask), mask


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--render", required=True, help="the built example `render`")
    options.add_argument("--verbose", action="store_true", help="print what differs or is refused")
    options = options.parse_args()
    chat_template_utils.datetime = FixedClock
    counts, reasons = collections.defaultdict(collections.Counter), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        templates = list(fetch(folder))
        asked = list(requests(templates, folder))
        lines = "\n".join(json.dumps(request) for *_, request, _ in asked)
        answers = subprocess.run([options.render, NOW.isoformat() + "Z"], input=lines,
                                 stdout=subprocess.PIPE, text=True, check=True)
        answers = [json.loads(line) for line in answers.stdout.split("\n") if line]
        assert len(answers) == len(asked), "an answer is missing"
    for question, ours in zip(asked, answers):
        for what, rule, found, why in compare(*question, ours):
            counts[question[0][0], what, rule][found] += 1
            if "refused" in found:
                reasons[re.sub(r"[0-9]+", "N", why["refused"])] += 1
            if options.verbose and found not in ("equal", "both refuse", "within", "no rule"):
                print(question[0], what, rule, found, str(why)[:300])
    report(templates, counts, reasons)
    sys.exit(1 if any(count["DIFFERENT"] for count in counts.values()) else 0)


def report(templates, counts, reasons):
    carried = collections.Counter(package for package, *_ in templates)
    print("templates: " + ", ".join(f"{n} of {package}" for package, n in sorted(carried.items())))
    columns = ["equal", "within", "both refuse", "refused", "no rule", "no rule, refused", "DIFFERENT"]
    print("\t".join(["package", "compared", "rule", *columns]))
    for (package, what, rule), count in sorted(counts.items()):
        print("\t".join([package, what, rule, *(str(count[column]) for column in columns)]))
    print("masks are refused because:")
    for reason, count in reasons.most_common():
        print(f"{count}\t{reason}")


if __name__ == "__main__":
    main()
