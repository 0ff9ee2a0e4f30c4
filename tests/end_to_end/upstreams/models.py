"""Model APIs, in the shapes that their SDKs parse. A stream's end waits for its beginning to have
arrived: the gate named after the run is opened by the agent when it has the first event.
"""

import json
from collections.abc import Sequence
from itertools import batched
from typing import Any

from aiohttp import web

from tests.end_to_end.upstreams.serving import gate

WORDS = ("Hel", "lo")
TEN_TOKENS = "abc" * 10  # as they are taken for where nothing is told

Event = tuple[str | None, Any]
"""Name and data of a server-sent event; data that is a string is sent as it stands."""


async def _stream(request: web.Request, first: Sequence[Event], rest: Sequence[Event]) -> Any:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await answer.prepare(request)
    for event in first:
        await answer.write(_wire(event))
    await gate(request.headers["X-Run-Id"])
    for event in rest:
        await answer.write(_wire(event))
    return answer


def _wire(event: Event) -> bytes:
    name, data = event
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


# OpenAI: POST /v1/chat/completions


def _completion(kind: str, choice: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": kind,
        "created": 1_700_000_000,
        "model": "gpt-5.1",
        "choices": [{"index": 0, "finish_reason": None, **choice}],
        **more,
    }


async def chat_completions(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    if "say" in asked:
        return await _said(request, asked["say"])
    if "push" in asked:
        return await _pushed(request, asked)
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"message": message, "finish_reason": "stop"}
        return web.json_response(_completion("chat.completion", choice, usage=usage))
    first, last = (
        (None, _completion("chat.completion.chunk", {"delta": {"content": word}})) for word in WORDS
    )
    stop = _completion("chat.completion.chunk", {"delta": {}, "finish_reason": "stop"})
    rest: list[Event] = [last, (None, stop)]
    if asked.get("stream_options", {}).get("include_usage"):
        rest.append((None, _completion("chat.completion.chunk", {}, choices=[], usage=usage)))
    return await _stream(request, [first], [*rest, (None, "[DONE]")])


async def _said(request: web.Request, text: str) -> web.StreamResponse:
    """These words, a few letters at a time."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await answer.prepare(request)
    for piece in ("".join(letters) for letters in batched(text, 5)):
        delta = {"delta": {"content": piece}}
        await answer.write(_wire((None, _completion("chat.completion.chunk", delta))))
    await answer.write(_wire((None, "[DONE]")))
    return answer


async def _pushed(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
    """So many chunks of ten tokens each, as fast as they are taken, whatever was asked for."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await answer.prepare(request)
    for _ in range(asked["push"]):
        delta = {"delta": {"content": TEN_TOKENS}}
        await answer.write(_wire((None, _completion("chat.completion.chunk", delta))))
    if asked.get("stream_options", {}).get("include_usage"):
        given = 10 * asked["push"]
        usage = {"prompt_tokens": 8, "completion_tokens": given, "total_tokens": 8 + given}
        told = _completion("chat.completion.chunk", {}, choices=[], usage=usage)
        await answer.write(_wire((None, told)))
    await answer.write(_wire((None, "[DONE]")))
    return answer


def openai_app() -> web.Application:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat_completions)
    return app


# Anthropic: POST /v1/messages


def _message(**more: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 0},
        **more,
    }


def _named(kind: str, **more: Any) -> Event:
    return kind, {"type": kind, **more}


async def messages(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    if not asked.get("stream"):
        text = [{"type": "text", "text": "".join(WORDS)}]
        usage = {"input_tokens": 3, "output_tokens": 2}
        return web.json_response(_message(content=text, stop_reason="end_turn", usage=usage))
    first, last = (
        _named("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        for word in WORDS
    )
    block = {"type": "text", "text": ""}
    beginning = [
        _named("message_start", message=_message()),
        _named("content_block_start", index=0, content_block=block),
        first,
    ]
    end = [
        last,
        _named("content_block_stop", index=0),
        _named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
        _named("message_stop"),
    ]
    return await _stream(request, beginning, end)


def anthropic_app() -> web.Application:
    app = web.Application()
    app.router.add_post("/v1/messages", messages)
    return app
