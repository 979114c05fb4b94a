"""Which tokens of a conversation are the assistant's, by rules that are not Heirloom's.

Four rules, the first that has an answer decides:

1. For our own templates, the conversation written by hand as pieces of text, each learned or
   not.
2. Where the template marks the assistant's words with {% generation %}, the mask of
   Transformers.
3. Where Transformers renders the messages before a turn (with the opening of an answer) and
   those through it to beginnings of the whole text, what is between the two, through the last
   special token.
4. Otherwise, marks around a turn's words, rendered by Transformers: the words through the
   special token after them must be learned, and what stands between the opening of the turn
   and the words may be.

A rule gives two sets of characters: those that must be learned, and those that may be.
"""

OPEN, CLOSE = "\ue000\ue001", "\ue002\ue003"


def bars(end):
    """Templates that open a turn by its role between bars."""
    def pieces(messages):
        for message in messages:
            learned = message["role"] == "assistant"
            yield f"<|{message['role']}|>\n", False
            yield message["content"] + end, learned
            yield "\n", False
    return pieces


def plain(messages):
    yield "<s>", False
    yield from bars("<|end|>")(messages)


def inst(messages):
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    for index, message in enumerate(messages):
        if message["role"] == "user":
            head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system is not None and index == 1 else ""
            yield "<s>[INST] " + head + message["content"].strip() + " [/INST]", False
        elif message["role"] == "assistant":
            yield " " + message["content"].strip() + " </s>", True


def thinking(messages):
    if messages[0]["role"] != "system":
        yield "<|im_start|>system\nBe helpful.<|im_end|>\n", False
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    for index, message in enumerate(messages):
        yield f"<|im_start|>{message['role']}\n", False
        words, thought = message["content"], ""
        if message["role"] == "assistant" and "</think>" in words:
            thought, words = words.split("</think>")[0], words.split("</think>")[-1].lstrip("\n")
            thought = thought.rstrip("\n").split("<think>")[-1].lstrip("\n")
        if message["role"] == "assistant" and index > last and (index + 1 == len(messages) or thought):
            words = "<think>\n" + thought.strip("\n") + "\n</think>\n\n" + words.lstrip("\n")
        yield words + "<|im_end|>", message["role"] == "assistant"
        yield "\n", False


BY_HAND = {"seedling": bars("<|end|>"), "plain": plain, "inst": inst, "thinking": thinking}


def by_hand(name, messages, text, last):
    """Pieces that make up the very text, or no answer."""
    simple = all(set(m) == {"role", "content"} and isinstance(m["content"], str) for m in messages)
    if name not in BY_HAND or not simple:
        return None
    pieces = list(BY_HAND[name](messages))
    if "".join(piece for piece, _ in pieces) != text:
        return None
    final = max((i for i, (_, learned) in enumerate(pieces) if learned), default=None)
    learned, at = set(), 0
    for index, (piece, is_learned) in enumerate(pieces):
        if is_learned and (not last or index == final):
            learned |= set(range(at, at + len(piece)))
        at += len(piece)
    return learned, learned


class Rules:
    """The rules for one rendered conversation."""

    def __init__(self, tokenizer, messages, others, text):
        self.tokenizer, self.messages, self.others, self.text = tokenizer, messages, others, text
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        self.ids, self.offsets = found["input_ids"], found["offset_mapping"]
        # A beginning of sequence that a conversation brings along is not put before it again.
        self.doubled = 0
        while self.ids[self.doubled:self.doubled + 2] == [tokenizer.bos_token_id] * 2:
            self.doubled += 1
        del self.ids[:self.doubled], self.offsets[:self.doubled]
        special = set(tokenizer.all_special_ids) | {
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = [place for i, place in zip(self.ids, self.offsets) if i in special]

    def render(self, messages, prompt=False):
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt, **self.others)
        except Exception:  # whatever Jinja, Python or the template raises
            return None

    def opening(self, index):
        """What opens an answer, before any thought."""
        before = self.messages[:index]
        if not before:
            return None
        asked, prompt = self.render(before), self.render(before, prompt=True)
        if asked is None or prompt is None or not prompt.startswith(asked):
            return None
        return prompt[len(asked):].split("<think>")[0] or None

    def between(self, index):
        """Rule 3."""
        before = self.messages[:index]
        prompt = self.render(before, prompt=True) if before else None
        through = self.text if index + 1 == len(self.messages) else self.render(self.messages[:index + 1])
        if not prompt or not through or not self.text.startswith(prompt) or not self.text.startswith(through):
            return None
        ends = [b for a, b in self.special if a >= len(prompt) and b <= len(through)]
        if not ends or self.text[ends[-1]:len(through)].strip():
            return "refuse"
        learned = set(range(len(prompt), ends[-1]))
        return learned, learned

    def words(self, index):
        """Where a turn's words stand, without what a template may take off them."""
        message = self.messages[index]
        content = message.get("content")
        if not isinstance(content, str) or "tool_calls" in message:
            return None
        core = content.rsplit("</think>")[-1].strip()
        at = content.rfind(core)
        if not core or at < 0:
            return None
        marked = content[:at] + OPEN + core + CLOSE + content[at + len(core):]
        other = self.render([*self.messages[:index], message | {"content": marked},
                             *self.messages[index + 1:]])
        if other is None or other.count(OPEN) != 1 or other.replace(OPEN, "").replace(CLOSE, "") != self.text:
            return None
        start = other.index(OPEN)
        return start, start + len(core)

    def marked(self, index):
        """Rule 4."""
        words, opening = self.words(index), self.opening(index)
        if words is None or opening is None:
            return None
        start, end = words
        head = self.text.rfind(opening, 0, start)
        ends = [b for a, b in self.special if a >= end]
        # A template may open the answer with less than the prompt has.
        if head < 0 or not ends or self.text[end:ends[0]].strip() and not any(
                a >= end and not self.text[end:a].strip() and b == ends[0] for a, b in self.special):
            return None
        return set(range(start, ends[0])), set(range(head + len(opening), ends[0]))

    def answer(self, name, assistant_mask, last):
        """Sets of characters, `refuse`, or None where no rule has an answer."""
        turns = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        found = by_hand(name, self.messages, self.text, last)
        if found:
            return "by hand", found
        if assistant_mask is not None:
            return "marked", self.of_mask(assistant_mask, turns, last)
        required, allowed, rule = set(), set(), "between"
        for index in turns[-1:] if last else turns:
            found = self.between(index)
            if found is None:
                found, rule = self.marked(index), "around"
            if found is None or found == "refuse":
                return rule, found
            required |= found[0]
            allowed |= found[1]
        return rule, (required, allowed)

    def of_mask(self, mask, turns, last):
        mask = mask[self.doubled:]
        learned = {c for (a, b), bit in zip(self.offsets, mask) if bit for c in range(a, b)}
        if last:
            asked = self.render(self.messages[:turns[-1]]) if turns[-1] else ""
            words, opening = self.words(turns[-1]), self.opening(turns[-1])
            if asked is not None and self.text.startswith(asked):
                head = len(asked)
            elif words is None or opening is None:
                return None
            else:
                head = self.text.rfind(opening, 0, words[0])
            if head < 0:
                return None
            # A template may mark what it writes before the turn's own words, after the turn
            # before it.
            before = self.render(self.messages[:turns[-2] + 1]) if len(turns) > 1 else ""
            floor = len(before) if before and self.text.startswith(before) else 0
            while head > floor and head - 1 in learned:
                head -= 1
            learned = {c for c in learned if c >= head}
        return learned, learned

    def tokens(self, characters):
        """Tokens that stand for such characters alone; nothing comes before the first, and
        padding that stands in a text is not learned."""
        inside = [all(c in characters for c in range(a, b)) and b > a and token != self.tokenizer.pad_token_id
                  for token, (a, b) in zip(self.ids, self.offsets)]
        return [False, *inside[1:]]


def verdict(rules, answer, ours):
    """Compares a mask with what a rule says."""
    if answer is None:
        return "no rule, refused" if "refused" in ours else "no rule"
    if answer == "refuse":
        return "both refuse" if "refused" in ours else "DIFFERENT"
    required, allowed = (rules.tokens(characters) for characters in answer)
    if "refused" in ours:
        empty = "no token" in ours["refused"] and not any(required)
        return "both refuse" if empty else "refused"
    if ours["tokens"] != rules.ids:
        return "DIFFERENT"
    if ours["trained"] == required:
        return "equal"
    within = all(o or not r for o, r in zip(ours["trained"], required))
    within = within and all(a or not o for o, a in zip(ours["trained"], allowed))
    return "within" if within else "DIFFERENT"
