"""What a model was asked and answered, in the forms of all APIs, and which calls are looked at."""

import json
from typing import Any

import pytest

from proxy.report_decisions import DECISIONS_MAX, answered, asked, chosen

ASKED: list[tuple[str, Any, str]] = [
    (
        "OpenAI chat",
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "pay it"}]},
        "[message 2 of 2] user: pay it",
    ),
    (
        "an answer of a tool",
        {"messages": [{"role": "tool", "tool_call_id": "t", "content": "paid"}]},
        "[message 1 of 1] tool: paid",
    ),
    (
        "Anthropic",
        {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": "paid"},
            {"type": "text", "text": "go on"},
        ]}]},
        "[message 1 of 1] user: paid\ngo on",
    ),
    ("OpenAI responses, a text", {"input": "pay it"}, "pay it"),
    (
        "OpenAI responses, a list",
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "pay it"}]}]},
        "[message 1 of 1] user: pay it",
    ),
    ("Gemini", {"contents": [{"role": "user", "parts": [{"text": "pay it"}]}]},
     "[message 1 of 1] user: pay it"),
    ("a plain prompt", {"prompt": "pay it"}, "pay it"),
    ("something else", {"model": "x"}, '{"model": "x"}'),
    ("no object", [1, 2], "[1, 2]"),
]  # fmt: skip

ANSWERED: list[tuple[str, Any, str]] = [
    (
        "OpenAI chat",
        {"choices": [{"message": {"content": "I pay.", "tool_calls": [
            {"id": "t", "type": "function", "function": {"name": "pay", "arguments": '{"n":1}'}},
        ]}}]},
        'I pay.\ncalls pay with {"n":1}',
    ),
    (
        "Anthropic",
        {"content": [
            {"type": "text", "text": "I pay."},
            {"type": "tool_use", "id": "t", "name": "pay", "input": {"n": 1}},
        ]},
        'I pay.\ncalls pay with {"n": 1}',
    ),
    (
        "OpenAI responses",
        {"output": [
            {"type": "message", "content": [{"type": "output_text", "text": "I pay."}]},
            {"type": "function_call", "name": "pay", "arguments": '{"n":1}'},
        ]},
        'I pay.\ncalls pay with {"n":1}',
    ),
    (
        "Gemini",
        {"candidates": [{"content": {"parts": [
            {"text": "I pay."}, {"functionCall": {"name": "pay", "args": {"n": 1}}},
        ]}}]},
        'I pay.\ncalls pay with {"n": 1}',
    ),
    (
        "a stream that was put together, which tells its text twice",
        {"events": 3, "stream": [
            {"data": {"choices": [{"delta": {"content": "I pay."}}]}},
            {"data": {"output_text": "I pay."}},
        ]},
        "I pay.",
    ),
    ("something else", {"id": "x"}, '{"id": "x"}'),
]  # fmt: skip


@pytest.mark.parametrize("name, body, expect", ASKED, ids=[row[0] for row in ASKED])
def test_what_a_model_was_asked(name: str, body: Any, expect: str) -> None:
    assert asked(json.dumps(body)) == expect


@pytest.mark.parametrize("name, body, expect", ANSWERED, ids=[row[0] for row in ANSWERED])
def test_what_a_model_answered(name: str, body: Any, expect: str) -> None:
    assert answered(json.dumps(body)) == expect


@pytest.mark.parametrize("text", ["", "no JSON {", "5", "[" * 100_000, '{"a":' * 50_000])
def test_what_cannot_be_read_stands_as_it_was_kept(text: str) -> None:
    assert asked(text) == text
    assert answered(text) == text


def test_the_first_bad_call_and_both_ends_of_the_evidence_are_looked_at() -> None:
    many = [f"c{number}" for number in range(32)]
    found = chosen("first", many, ["w1", "w2"])
    assert len(found) == DECISIONS_MAX
    assert found[:2] == ["first", "c0"]
    assert "c31" in found
    assert chosen("", ["a"], ["a", "b"]) == ["a", "b"]
    assert chosen("a", ["a", "b"], []) == ["a", "b"]
