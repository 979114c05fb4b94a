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
