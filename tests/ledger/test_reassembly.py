"""Streams put together: what of each provider's events is joined, and what stays apart."""

import json
from typing import Any

import pytest

from ledger import reassembly
from ledger.reassembly import EVENTS_MAX

Events = list[tuple[str, Any]]


def stream(events: Events) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


def put_together(text: str, is_cut: bool = False, secret: str = "\0") -> list[Any]:
    told = reassembly.event_stream(text, is_cut, lambda shown: shown.replace(secret, "[*]"))
    assert told is not None
    return [part["data"] for part in json.loads(told)["stream"]]


def chat(**delta: Any) -> tuple[str, Any]:
    return "", {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def tool(index: int, **function: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": function}]}


def test_openai_chat() -> None:
    (whole,) = put_together(
        stream(
            [
                chat(role="assistant", content=""),
                chat(content="Hel"),
                chat(content="lo"),
                chat(**tool(0, name="pay", arguments="")),
                chat(**tool(0, arguments='{"to":')),
                chat(**tool(1, name="log", arguments="{}")),
                chat(**tool(0, arguments='"ada"}')),
                ("", {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
                ("", {"id": "c", "choices": [], "usage": {"total_tokens": 7}}),
            ]
        )
    )
    (choice,) = whole["choices"]
    assert choice["delta"]["content"] == "Hello"
    assert choice["finish_reason"] == "stop"
    calls = [each["function"] for each in choice["delta"]["tool_calls"]]
    assert calls == [
        {"name": "pay", "arguments": '{"to":"ada"}'},
        {"name": "log", "arguments": "{}"},
    ]
    assert whole["usage"] == {"total_tokens": 7}


def test_openai_responses() -> None:
    kind = "response.output_text.delta"
    events: Events = [
        (kind, {"type": kind, "item_id": item, "sequence_number": n, "delta": piece,
                "obfuscation": "xyz"})
        for n, (item, piece) in enumerate([("a", "Hel"), ("b", "Good"), ("a", "lo"), ("b", "bye")])
    ]  # fmt: skip
    done = {"type": "response.completed", "response": {"usage": {"total_tokens": 7}}}
    first, second, last = put_together(stream([*events, ("response.completed", done)]))
    assert (first["delta"], second["delta"], last) == ("Hello", "Goodbye", done)


def test_anthropic_messages() -> None:
    def block(index: int, **delta: Any) -> tuple[str, Any]:
        kind = "content_block_delta"
        return kind, {"type": kind, "index": index, "delta": delta}

    parts = put_together(
        stream(
            [
                ("message_start", {"type": "message_start", "message": {"model": "m"}}),
                block(0, type="thinking_delta", thinking="hm"),
                block(0, type="thinking_delta", thinking="m"),
                block(0, type="signature_delta", signature="s"),
                block(1, type="text_delta", text="Hel"),
                block(1, type="text_delta", text="lo"),
                block(2, type="input_json_delta", partial_json='{"a"'),
                block(2, type="input_json_delta", partial_json=":1}"),
            ]
        )
    )
    assert [part.get("delta") for part in parts] == [
        None,
        {"type": "thinking_delta", "thinking": "hmm"},
        {"type": "signature_delta", "signature": "s"},
        {"type": "text_delta", "text": "Hello"},
        {"type": "input_json_delta", "partial_json": '{"a":1}'},
    ]


def test_gemini() -> None:
    def chunk(*parts: Any, count: int) -> tuple[str, Any]:
        usage = {"totalTokenCount": count}
        return "", {"candidates": [{"content": {"parts": list(parts)}}], "usageMetadata": usage}

    calls = [{"functionCall": {"name": "pay", "args": {"n": n}}} for n in (1, 2)]
    (whole,) = put_together(
        stream(
            [
                chunk({"text": "Hel"}, count=1),
                chunk({"text": "lo"}, count=2),
                chunk(calls[0], count=3),
                chunk(calls[1], count=4),
                chunk({"text": "bye"}, count=5),
            ]
        )
    )
    parts = whole["candidates"][0]["content"]["parts"]
    assert parts == [{"text": "Hello"}, *calls, {"text": "bye"}]
    assert whole["usageMetadata"] == {"totalTokenCount": 5}


def test_messages_of_mcp_stay_apart() -> None:
    events: Events = [("", {"jsonrpc": "2.0", "id": n, "result": {"n": n}}) for n in range(3)]
    assert put_together(stream(events)) == [data for _, data in events]


def test_equal_values_of_unlike_events_are_not_lost() -> None:
    events: Events = [("", {"sku": "a", "n": 1}), ("", {"sku": "b", "n": 1}), ("", {"sku": "a"})]
    assert put_together(stream(events)) == [data for _, data in events]


def test_values_that_make_a_secret_are_given_up_for_it() -> None:
    events: Events = [("", {"own": "sec", "n": 1}), ("", {"own": "ret", "n": 2})]
    assert put_together(stream(events), secret="secret") == [{"own": "secret", "n": [1, 2]}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_the_standard_says(end: str) -> None:
    text = "\ufeff: comment\nid: 7\nevent: e\ndata: a\ndata:b\nretry: 5\n\ndata: c\n\n"
    assert put_together(text.replace("\n", end)) == ["a\nb", "c"]


def test_of_a_stream_that_was_cut_the_last_event_is_dropped() -> None:
    text = 'data: {"text": "a"}\n\ndata: {"text": "half a sec'
    assert put_together(text, is_cut=True) == [{"text": "a"}]
    assert put_together(text) == [{"text": "a"}, "[an event that could not be read]"]


def test_events_are_bounded() -> None:
    assert reassembly.event_stream("data: 1\n\n" * EVENTS_MAX, False, str) is None
    assert reassembly.event_stream("data: 1\n\n" * (EVENTS_MAX - 1), False, str) is not None


@pytest.mark.parametrize("text", ["", "{}", "[1]\n[2]", '{"a": 1}\nno JSON', "{}\n[]"])
def test_what_is_no_stream_of_objects_is_left_as_it_is(text: str) -> None:
    assert reassembly.lines(text, False, str) is None
    assert reassembly.array(text, str) is None
