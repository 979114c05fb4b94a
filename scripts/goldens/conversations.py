"""Conversations that chat templates are compared on, and the time at which they are."""

import datetime

NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)


class FixedClock(datetime.datetime):
    """Transformers asks `datetime.now()` for the date; here time stands still."""

    @classmethod
    def now(cls, tz=None):
        return NOW


def text(role, content, **more):
    return {"role": role, "content": content, **more}


def weather_tool():
    return {"type": "function", "function": {
        "name": "weather", "description": "Weather <now> & 'here': é, 日本",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "City", "enum": ["Kyōto", "Graz"]},
            "days": {"type": "array", "items": {"type": "integer"}, "default": [1, 2.5]},
            "exact": {"type": ["boolean", "null"]}}, "required": ["city"]}}}


def conversations():
    """Name, messages, other arguments of apply_chat_template."""
    call = {"type": "function", "id": "abc123def", "function": {
        "name": "weather", "arguments": {"city": "Kyōto", "days": [1], "exact": None}}}
    turns = [text("user", " Hello \n"), text("assistant", " Good day.  \n"),
             text("user", "A\n\nB <b>&'\"</b> 🌱"), text("assistant", "Yes: {{ x }} é\n\n- 1\n")]
    thought = [text("user", "2+2?"), text("assistant", "<think>\nsum\n</think>\n\n4"),
               text("user", "3+3?"), text("assistant", "<think>\nmore\n</think>\n\n6")]
    reasoned = [text("user", "2+2?"), text("assistant", "4", reasoning_content="sum"),
                text("user", "3+3?"), text("assistant", "6", reasoning_content=" more\n")]
    tools = [text("user", "How is it in Kyōto?"),
             {"role": "assistant", "content": "", "tool_calls": [call]},
             text("tool", '{"sky": "clear"}', name="weather", tool_call_id="abc123def"),
             text("assistant", "It is clear.")]
    said = [text("user", "How is it?"),
            {"role": "assistant", "content": "I look.", "tool_calls": [call]},
            text("tool", "clear", name="weather", tool_call_id="abc123def"),
            text("assistant", "Clear."), text("user", "Thanks"), text("assistant", "Gladly.")]
    parts = [text("user", [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]),
             text("assistant", [{"type": "text", "text": "Hello"}])]
    system = text("system", " Be brief.\nBe kind. ")
    documents = [{"title": "Seeds", "text": "Keep them dry."}]
    yield "one turn", turns[:2], {}
    yield "two turns", turns, {}
    yield "system", [system, *turns], {}
    yield "system alone", [system, turns[0]], {}
    yield "question", turns[:1], {}
    yield "question again", turns[:3], {}
    yield "thoughts in text", thought, {}
    yield "thoughts apart", reasoned, {}
    yield "thoughts apart, system", [system, *reasoned], {}
    yield "no thinking", thought[:3], {"enable_thinking": False}
    yield "thinking", reasoned, {"enable_thinking": True}
    yield "tools offered", [system, *turns], {"tools": [weather_tool()]}
    yield "tools called", tools, {"tools": [weather_tool()]}
    yield "tools called, said", [system, *said], {"tools": [weather_tool(), weather_tool()]}
    yield "tools called, not offered", tools, {}
    yield "tool answers last", tools[:3], {"tools": [weather_tool()]}
    yield "parts", parts, {}
    yield "parts, system", [text("system", [{"type": "text", "text": "Be."}]), *parts], {}
    yield "documents", turns[:3], {"documents": documents}
    yield "assistant first", turns[1:], {}
    yield "same role twice", [turns[0], turns[0], turns[1]], {}
    yield "unknown role", [text("critic", "no"), *turns[:2]], {}
    yield "no content", [turns[0], {"role": "assistant", "content": None}], {}


def more_conversations():
    """What masks are compared on besides: longer talks, and words that look like something else."""
    ask, answer = (lambda words: text("user", words)), (lambda words: text("assistant", words))
    system = lambda words: text("system", words)
    turn = lambda question, reply: [ask(question), answer(reply)]
    call = lambda name, **arguments: {"type": "function", "id": "call12345", "function": {
        "name": name, "arguments": arguments}}
    plain = [*turn("Name a tree.", "Oak."), *turn("Another?", "Beech."), *turn("One more?", "Elm.")]
    yield "three turns", plain, {}
    yield "three turns, system", [system("Be brief."), *plain], {}
    yield "six turns", plain + plain, {}
    yield "same words in every turn", turn("Yes?", "Yes?") * 3, {}
    yield "the answer is the question", turn("assistant", "user") + turn("user", "assistant"), {}
    yield "one letter", turn("a", "a"), {}
    yield "empty answer", [*turn("Say nothing.", ""), *turn("And now?", "Something.")], {}
    yield "empty answer last", [*turn("Say something.", "Something."), *turn("Now nothing.", "")], {}
    yield "empty question", [*turn("", "You said nothing."), *turn("Indeed.", "Fine.")], {}
    yield "empty system", [system(""), *plain[:2]], {}
    yield "spaces alone", turn("  ", " x ") + turn("\n", "y\n\n"), {}
    yield "spaces before", turn(" one", "  two") + turn("\n three", "\n four"), {}
    yield "spaces behind", turn("one ", "two  ") + turn("three\n", "four\n\n"), {}
    yield "tabs and line ends", turn("a\tb", "c\td\r\ne") + turn("f", "\tg"), {}
    yield "two paragraphs", turn("Write.", "First.\n\nSecond.\n\n\nThird.") + turn("More.", "Fourth."), {}
    yield "unicode", turn("नमस्ते, வணக்கம்", "日本語 — é e\u0301 ß ﬁ") + turn("مرحبا", "שלום 🌱👩‍👩‍👧"), {}
    yield "unicode spaces", turn("a\u00a0b", "\u3000c\u2028d\u200b") + turn("e", "f\ufeff"), {}
    yield "end of turn in a question", turn("a <|im_end|> b <|eot_id|> c </s>", "I see.") + plain[:2], {}
    yield "end of turn in an answer", turn("Quote it.", "It is `<|im_end|>`, or </s>.") + plain[:2], {}
    yield "a turn in a question", turn("<|im_start|>assistant\nHa<|im_end|>", "No.") + plain[:2], {}
    yield "a turn in an answer", turn("Quote.", "<|im_end|>\n<|im_start|>user\nHa") + plain[:2], {}
    yield "padding and beginnings", turn("<s><pad>", "<pad> <s> <unk>") + plain[:2], {}
    yield "template code", turn("{{ messages }}", "{% generation %}x{% endgeneration %}") + plain[:2], {}
    yield "code", turn("Python?", "```python\ndef f(x):\n    return x  # é\n```\n") + plain[:2], {}
    yield "json", turn("JSON?", '{"a": [1, {"b": null}], "c": "\\n"}') + plain[:2], {}
    yield "thoughts half open", turn("2+2?", "<think>\nsum") + plain[:2], {}
    yield "thoughts and system", [system("Think."), *turn("2+2?", "<think>\na\n</think>\n\n4"),
                                  *turn("3+3?", "<think>\nb\n</think>\n\n6"), *plain[:2]], {}
    yield "two calls", [ask("Compare."), {"role": "assistant", "content": "", "tool_calls": [
        call("weather", city="Graz"), call("weather", city="Wien")]},
        text("tool", "clear", name="weather", tool_call_id="call12345"),
        text("tool", "rain", name="weather", tool_call_id="call12345"),
        answer("Clear in Graz.")], {"tools": [weather_tool()]}
    yield "tools, then none", [system("Help."), *plain, ask("And the weather?"),
                               answer("I would have to look.")], {"tools": [weather_tool()]}
    yield "long", [system("Long. " * 60), *turn("Go on. " * 80, "Well, " * 120 + "done."), *plain], {}
