"""What a person last said to a model, in bodies as the makers' clients send them."""

import json
from typing import Any

import pytest

from policies.detectors import spoken

NOW_US = 1_795_392_900_000_000  # 2026-11-23T00:15:00Z

TOOL_CALL = {
    "id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'},
}  # fmt: skip


def human(body: dict[str, Any]) -> bytes:
    return spoken.human(json.dumps(body).encode(), NOW_US)


def chat(*messages: Any) -> dict[str, Any]:
    return {"model": "gpt-5.1", "messages": list(messages), "tools": [{"type": "function"}]}


def responses(*items: Any) -> dict[str, Any]:
    return {"model": "gpt-5.1", "input": list(items), "instructions": "Be brief."}


def google(*contents: Any) -> dict[str, Any]:
    return {"contents": list(contents), "systemInstruction": {"parts": [{"text": "Be brief."}]}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


WORDS = "find the order"
OPENAI_TURN = (
    {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "user says: none"},
)
RESPONSES_TURN = (
    {"type": "reasoning", "summary": []},
    {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "none"},
)
ANTHROPIC_TURN = (
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
    user([
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "none"}]},
        {"type": "text", "text": "<system-reminder>The list is empty.</system-reminder>"},
        {"type": "text", "text": "Your todo list has changed."},
    ]),
)  # fmt: skip
GOOGLE_TURN = (
    {"role": "model", "parts": [{"functionCall": {"name": "find", "args": {}}}]},
    {"role": "user", "parts": [{"functionResponse": {"name": "find", "response": {"n": 0}}}]},
)

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "OpenAI chat": (
        chat({"role": "system", "content": "Be brief."}, user(WORDS)),
        chat({"role": "system", "content": "Be brief."}, user(WORDS), *OPENAI_TURN * 20),
    ),
    "OpenAI chat in parts": (
        chat(user([{"type": "text", "text": WORDS}, {"type": "image_url", "image_url": {}}])),
        chat(user([{"type": "text", "text": WORDS}]), *OPENAI_TURN),
    ),
    "OpenAI responses": (
        responses({"type": "message", **user([{"type": "input_text", "text": WORDS}])}),
        responses(user(WORDS), *RESPONSES_TURN * 20),
    ),
    "OpenAI responses, a text alone": ({"model": "m", "input": WORDS}, responses(user(WORDS))),
    "Anthropic": (
        {"system": "Be brief.", **chat(user([{"type": "text", "text": WORDS}]))},
        chat(user(WORDS), *ANTHROPIC_TURN * 20),
    ),
    "Google": (
        google({"parts": [{"text": WORDS}]}),
        google({"role": "user", "parts": [{"text": WORDS}]}, *GOOGLE_TURN * 20),
    ),
    "Bedrock": (
        {"messages": [user([{"text": WORDS}])]},
        {"messages": [
            user([{"text": WORDS}]),
            {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t"}}]},
            user([{"toolResult": {"toolUseId": "t", "content": [{"text": "none"}]}}]),
        ]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_word_stays_the_same_while_tools_answer(shape: str) -> None:
    asked, went_on = SHAPES[shape]
    assert human(asked) == human(went_on) != b""


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_word_is_another(shape: str) -> None:
    asked, went_on = SHAPES[shape]
    other = json.loads(json.dumps(went_on).replace(WORDS, "never mind"))
    assert human(other) not in (human(asked), b"")


def test_the_newest_word_counts() -> None:
    told = chat(user(WORDS), {"role": "assistant", "content": "Which?"}, user("the last one"))
    assert human(told) == human(chat(user("the last one")))


def test_a_clock_that_an_agent_writes_into_each_message_is_no_news() -> None:
    first, second = (
        human(chat(user(f"It is 2026-11-23T00:15:0{second}Z. Go on."))) for second in (1, 4)
    )
    assert first == second


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [{"role": "system", "content": "Be brief."}]},
        {"messages": [*OPENAI_TURN]},
        {"messages": [ANTHROPIC_TURN[1]]},
        {"messages": [user("")]},
        {"messages": [user(None), user(7), user([7, {"type": "text", "text": 7}]), "user", None]},
        {"messages": "user"},
        {"messages": {"role": "user"}},
        {"input": [1, 2, 3]},
        {"contents": [{"role": "model", "parts": [{"text": "Hello."}]}]},
        {"contents": [{"parts": [{"text": "I think", "thought": True}]}]},
    ],
)
def test_nobody_spoke(body: dict[str, Any]) -> None:
    assert human(body) == b""


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b"[" * 10_000, b'{"messages":[{"role":"user"', b"\xff"]
)
def test_no_body_makes_it_fail(body: bytes) -> None:
    assert spoken.human(body, NOW_US) == b""


def test_a_picture_of_megabytes_is_no_matter_and_a_longer_body_tells_nobodys_words() -> None:
    picture = {"type": "image", "source": {"data": "A" * (spoken.READ_BYTES_MAX // 2)}}
    shown = chat(user(WORDS), *OPENAI_TURN, {"role": "assistant", "content": [picture]})
    assert human(shown) == human(chat(user(WORDS)))
    assert human(chat(user(WORDS), {"content": [picture, picture]})) == b""


@pytest.mark.parametrize("value", ["[]", "{}", "1", "0.5", "[[]]"])
def test_a_body_of_countless_values_tells_nobodys_words(value: str) -> None:
    said = '{"role":"user","content":"' + WORDS + '"}'
    few = '{"messages":[' + f"{value}," * 1_000 + said + "]}"
    many = '{"messages":[' + f"{value}," * spoken.VALUES_MAX + said + "]}"
    assert spoken.human(few.encode(), NOW_US) == human(chat(user(WORDS)))
    assert spoken.human(many.encode(), NOW_US) == b""
