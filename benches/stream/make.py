"""Make what benches/stream compares on: long conversations, and a tokenizer of 32 768 tokens.

Nothing is fetched and nothing is random twice: the words are put together from syllables with
a seed and drawn as in a language, few of them often and most of them rarely. Writes
conversations, long or short, with a consent for every row, and a base folder with a byte-level
BPE trained on other such text.
"""

import json
import random

VOCABULARY = 60_000
SPECIAL = ["<|begin|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
# As Llama 3 and the models after it split their text.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}"
    "{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}")


class Writer:
    """Text whose words come as often as a language's."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        words = random.Random(0)
        onsets = "b br c ch cl d dr f fl g gr h j k l m n p pl qu r s sh st t th tr v w z".split()
        nuclei = "a e i o u ai ea ie oo ou".split()
        codas = ["", "", "n", "r", "s", "t", "l", "nd", "st", "ng", "m", "ck"]
        syllable = lambda: words.choice(onsets) + words.choice(nuclei) + words.choice(codas)
        made = {"".join(syllable() for _ in range(words.choice([1, 1, 2, 2, 3, 4])))
                for _ in range(2 * VOCABULARY)}
        self.words = sorted(made)
        words.shuffle(self.words)
        # The short ones are the frequent ones.
        self.words = sorted(self.words[:VOCABULARY], key=len)
        total, self.cumulative = 0.0, []
        for rank in range(len(self.words)):
            total += 1 / (rank + 3)
            self.cumulative.append(total)

    def drawn(self, count):
        return self.random.choices(self.words, cum_weights=self.cumulative, k=count)

    def sentence(self):
        words = self.drawn(self.random.randint(5, 22))
        kind = self.random.random()
        if kind < 0.15:
            words.insert(self.random.randrange(len(words)), str(self.random.randrange(10_000)))
        if kind > 0.9:
            words[0] += "'s"
        if kind > 0.95:
            words.append(self.random.choice(["Zürich", "naïve", "日本語", "Δx", "नमस्ते", "🌱"]))
        if len(words) > 12:
            words[len(words) // 2] += ","
        return " ".join(words).capitalize() + self.random.choice(".....?!:")

    def code(self):
        name, argument = self.drawn(2)
        lines = [f"def {name}({argument}):"]
        lines += [f"    {w} = {argument}[{self.random.randrange(99)}] + {v}" for w, v in
                  zip(self.drawn(5), self.drawn(5))]
        return "```python\n" + "\n".join([*lines, f"    return {argument}"]) + "\n```"

    def text(self, sentences):
        paragraphs, left = [], sentences
        while left > 0:
            count = min(left, self.random.randint(2, 5))
            paragraphs.append(" ".join(self.sentence() for _ in range(count)))
            left -= count
        if self.random.random() < 0.15:
            paragraphs.append(self.code())
        return "\n\n".join(paragraphs)

    def conversation(self):
        messages = []
        if self.random.random() < 0.5:
            messages.append(("system", self.text(1)))
        for _ in range(self.random.choice([2, 2, 3])):
            messages.append(("user", self.text(self.random.randint(1, 4))))
            messages.append(("assistant", self.text(self.random.randint(4, 12))))
        return [{"role": role, "content": content} for role, content in messages]

    def exchange(self):
        return [{"role": "user", "content": self.sentence()},
                {"role": "assistant", "content": self.sentence()}]


def write_rows(path, count, short):
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = Writer(1)
    rows = [writer.exchange() if short else writer.conversation() for _ in range(count)]
    text = pa.string()
    texts = pa.list_(text)
    same = lambda value, type: pa.repeat(pa.scalar(value, type), count)
    table = pa.table({
        "record_id": pa.array([f"row-{number:07}" for number in range(count)]),
        "messages": pa.array(rows, pa.list_(pa.struct([("role", text), ("content", text)]))),
        "subject_ref": pa.nulls(count, pa.binary(32)),
        "consent_basis": same("consent", text), "consent_status": same("given", text),
        "consent_record_id": same("urn:uuid:5d1c4a64-0f3b-4b0e-8a53-f4c9ab02d1e8", text),
        "consent_given_at": same(1_750_000_000_000_000, pa.timestamp("us", "UTC")),
        "consent_expires_at": same(4_000_000_000_000_000, pa.timestamp("us", "UTC")),
        "consent_withdrawn_at": pa.nulls(count, pa.timestamp("us", "UTC")),
        "consent_purposes": same(["dpv:ServiceProvision"], texts),
        "consent_processing": same(["ai:ModelFineTuning"], texts),
        "source_id": same("made", text), "license": same("CC0-1.0", text)})
    footer = {"schema": "consent/v1", "dataset_id": "urn:uuid:8f6a3d5e-2c4b-4c53-a0ce-7d1b9e0f4a36",
              "controller": "Nobody (made up)", "jurisdictions": [], "dpv_version": "2.3",
              "snapshot_at": "2026-11-01T00:00:00Z", "defaults": {"license": "CC0-1.0", "expiry": "endless"},
              "sources": {"made": "Written by benches/stream/make.py from a seed."}}
    table = table.replace_schema_metadata({"consent.v1": json.dumps(footer, sort_keys=True)})
    pq.write_table(table, path, row_group_size=1000, compression="zstd")


def write_base(folder, size=32_768):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    writer = Writer(2)
    texts = (message["content"] for _ in range(3000) for message in writer.conversation())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>",
                                   eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
