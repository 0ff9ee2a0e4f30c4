"""Usage is asked for where a client did not, and the client sees nothing of it."""

import json
import random
from collections.abc import Sequence

import pytest

from policies.call import Request
from policies.model_request import read_model_request
from policies.policy import Tool
from proxy.usage_asked import EVENT_BYTES_MAX, WithoutUsage, asking

CHAT = "/v1/chat/completions"
OPENAI = Tool(name="openai", model_api="openai")


def asked(body: bytes, path: str = CHAT, tool: Tool = OPENAI) -> bytes | None:
    request = Request("POST", "https", "api.openai.com", 443, path, (), body)
    return asking(tool, request, read_model_request(path.partition("?")[0], body))


# The request


@pytest.mark.parametrize(
    "body, edited",
    [
        (
            b'{"model":"m","stream":true}',
            b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b' { "stream" : true , "n": 1.0 } \n',
            b' { "stream" : true , "n": 1.0,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream_options": null, "stream": true}',
            b'{"stream_options": {"include_usage":true}, "stream": true}',
        ),
        (
            b'{"stream":true,"stream_options":{"include_obfuscation":false},"seed":7}',
            b'{"stream":true,"stream_options":'
            b'{"include_obfuscation":false,"include_usage":true},"seed":7}',
        ),
        (
            b'{"stream":true,"stream_options" :\n {"include_usage":false}}',
            b'{"stream":true,"stream_options" :\n {"include_usage":true}}',
        ),
        (
            b'{"stream":true,"messages":[{"content":"\\"stream_options\\": {}"}]}',
            b'{"stream":true,"messages":[{"content":"\\"stream_options\\": {}"}],'
            b'"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream":true,"metadata":{"stream_options":{"x":1}}}',
            b'{"stream":true,"metadata":{"stream_options":{"x":1}},'
            b'"stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_usage_is_asked_for_and_all_else_stays(body: bytes, edited: bytes) -> None:
    assert asked(body) == edited
    told = json.loads(edited)
    assert told["stream_options"]["include_usage"] is True
    read = read_model_request(CHAT, edited)
    assert read is not None
    assert read.asks_usage


@pytest.mark.parametrize(
    "path",
    [
        "/openai/deployments/gpt/chat/completions?api-version=2025-01-01",
        "/openai/v1/chat/completions",
        "/v1/completions",
        "/api/v1/chat/completions",
    ],
)
def test_azure_gateways_and_plain_completions_are_asked_too(path: str) -> None:
    assert asked(b'{"stream":true}', path) is not None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m"}',
        b'{"stream":false}',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":7}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":true,"stream_options":{},"stream_options":{}}',
        b'{"stream":true,"metadata":{"stream_options":1},"stream_options":{}}',
        b'["stream"]',
        b"",
        b"stream",
    ],
)
def test_what_asks_already_or_is_unclear_goes_as_it_came(body: bytes) -> None:
    assert asked(body) is None


def test_a_body_whose_digest_was_sent_goes_as_it_came() -> None:
    body = b'{"stream":true}'
    sealed = (("content-digest", "sha-256=:AAAA:"),)
    request = Request("POST", "https", "api.openai.com", 443, CHAT, sealed, body)
    assert asking(OPENAI, request, read_model_request(CHAT, body)) is None


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/v1/messages"])
def test_other_apis_go_as_they_came(path: str) -> None:
    assert asked(b'{"stream":true}', path) is None


@pytest.mark.parametrize("tool", [Tool(name="llama"), Tool(name="a", model_api="anthropic")])
def test_who_does_not_speak_openai_is_not_asked(tool: Tool) -> None:
    assert asked(b'{"stream":true}', tool=tool) is None


# The answer

WORD = {"choices": [{"index": 0, "delta": {"content": 'Hi \u2028 "usage": {}'}}], "usage": None}
USAGE = {"id": "c", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
AZURE = {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
MORE = {"choices": [], "usage": {"prompt_tokens": 3}, "error": {"message": "the agent's to read"}}
BOTH = {"choices": [{"index": 0, "finish_reason": "stop"}], "usage": {"total_tokens": 5}}
ENDS = (b"\n", b"\r\n", b"\r")


def data(told: object, end: bytes = b"\n") -> bytes:
    return b"data: " + json.dumps(told).encode() + end * 2


def filtered(parts: Sequence[bytes]) -> bytes:
    held = WithoutUsage()
    return b"".join([held.feed(part) for part in parts] + [held.rest()])


def stream(end: bytes) -> tuple[bytes, bytes]:
    """A stream that tells its usage, and the same without that."""
    before = [
        data(AZURE, end),
        b": keep-alive" + end * 2,
        b"event: x" + end + data(WORD, end),
        b"data: {not json" + end * 2,
        data(BOTH, end) + end,
        data(MORE, end),
    ]
    after = [b"data: [DONE]" + end * 2, data(WORD, end)[:-1]]
    pretty = json.dumps(USAGE, indent=1).splitlines()
    lines = end.join(b"data:" + line.encode() for line in pretty) + end * 2
    told = [*before, data(USAGE, end), *after[:1], b"id: 7" + end + lines, *after[1:]]
    return b"".join(told), b"".join([*before, *after])


@pytest.mark.parametrize("end", ENDS)
def test_the_event_that_was_asked_for_is_taken_out_and_nothing_else(end: bytes) -> None:
    told, without = stream(end)
    assert filtered([told]) == without
    assert filtered([told[at : at + 1] for at in range(len(told))]) == without


@pytest.mark.parametrize("end", ENDS)
def test_any_split_gives_the_same_bytes(end: bytes) -> None:
    told, without = stream(end)
    for at in range(len(told)):
        assert filtered([told[:at], told[at:]]) == without, at
    dice = random.Random(7)
    for _ in range(300):
        marks = sorted(dice.randrange(len(told)) for _ in range(dice.randrange(12)))
        parts = [told[a:b] for a, b in zip([0, *marks], [*marks, len(told)], strict=True)]
        assert filtered(parts) == without, marks


def test_random_bytes_that_tell_no_usage_go_as_they_came() -> None:
    dice = random.Random(11)
    letters = [b"\r", b"\n", b"data: ", b"{", b"}", b'"usage"', b":", b"[]", b'"choices"', b"x"]
    for _ in range(500):
        parts = [b"".join(dice.choices(letters, k=dice.randrange(8))) for _ in range(20)]
        assert filtered(parts) == b"".join(parts)


def test_an_event_flows_as_soon_as_it_has_ended() -> None:
    held = WithoutUsage()
    assert held.feed(data(WORD)[:-1]) == b""
    assert held.feed(b"\n") == data(WORD)
    assert held.feed(data(USAGE) + data(WORD)) == data(WORD)


def test_a_stream_that_ends_with_the_usage_unended_does_not_tell_it() -> None:
    assert filtered([data(WORD), data(USAGE)[:-2]]) == data(WORD)


def test_a_long_event_flows_before_it_ends_and_what_follows_is_looked_at_again() -> None:
    long = b"data: " + b"x" * (EVENT_BYTES_MAX * 2) + b"\n\n"
    held = WithoutUsage()
    flowed = held.feed(long[: EVENT_BYTES_MAX + 100])
    assert len(flowed) >= EVENT_BYTES_MAX
    flowed += held.feed(long[EVENT_BYTES_MAX + 100 :] + data(USAGE) + data(WORD))
    assert flowed == long + data(WORD)
