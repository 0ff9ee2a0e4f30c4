"""Fifty made-up secrets through every kind of message: none is left in the trace's files, and a
harmless word beside each is still found."""

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest
import zstandard

from ledger import trace
from ledger.trace import TraceStore
from ledger.traced import Caught, Side
from tests.end_to_end.made_up_secrets import SHAPELESS, Secret, fifty
from tests.ledger.test_redaction import KEY, caught

SECRETS = fifty()
JSON, TEXT, SSE = "application/json", "text/plain", "text/event-stream"
FORM = "application/x-www-form-urlencoded"
PIECES = 5  # that a stream cuts a secret into


def event(value: Any, name: str = "") -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(value)}\n\n"


def cut(text: str) -> list[str]:
    step = max(1, len(text) // PIECES)
    return [text[at : at + step] for at in range(0, len(text), step)]


def openai(text: str) -> str:
    return event({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]})


def named(secret: Secret, word: str) -> Iterator[tuple[str, str]]:
    """Where the name says that it is one."""
    text = secret.text
    document = json.dumps({"password": text, "note": word})
    yield JSON, document
    yield JSON, json.dumps({"credentials": {"list": [text]}, "note": word}, ensure_ascii=False)
    yield JSON, json.dumps({"function": {"arguments": document}})
    yield JSON, json.dumps([{"name": "DB_PASSWORD", "value": text}, word])
    yield JSON, json.dumps({"echo": f"so {text} it is", "api_key": text, "note": word})
    yield "application/x-ndjson", f"{document}\n{document}\n"
    yield FORM, f"password={quote(text, safe='')}&note={word}"
    yield FORM, f"client_secret={quote_plus(text)}&note={word}"
    yield FORM, f"payload={quote_plus(document)}"
    fields = {"password": text, "note": word}
    part = '--B\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    body = "".join(part.format(name, value) for name, value in fields.items())
    yield "multipart/form-data; boundary=B", f"{body}--B--\r\n"
    yield "text/xml", f"<a><password>{escape(text)}</password><note>{word}</note></a>"
    yield SSE, event({"jsonrpc": "2.0", "result": {"password": text, "note": word}})
    arguments = [
        {"type": "content_block_delta", "index": 0,
         "delta": {"type": "input_json_delta", "partial_json": piece}}
        for piece in cut(document)
    ]  # fmt: skip
    yield SSE, "".join(event(each, "content_block_delta") for each in arguments)
    quoted = text.replace("\n", " ").replace('"', "")
    yield TEXT, f'{word} password="{quoted}"'
    yield TEXT, f"note: {word}\npassword: {quoted}\n"


def bare(secret: Secret, word: str) -> Iterator[tuple[str, str]]:
    """Where nothing but its look says so."""
    text = f"{word} and {secret.text}"
    yield JSON, json.dumps({"note": text})
    yield JSON, json.dumps({secret.text: word})
    yield JSON, json.dumps({"note": base64.b64encode(secret.text.encode()).decode(), "w": word})
    yield JSON, json.dumps({"text": json.dumps({"text": json.dumps({"text": text})})})
    yield FORM, f"note={quote_plus(text)}"
    yield TEXT, text
    yield "", text
    yield "text/xml", f"<note>{escape(text)}</note>"
    yield SSE, openai(text)
    yield SSE, "".join(openai(piece) for piece in cut(f"{text} ok"))
    responses = "response.output_text.delta"
    yield (
        SSE,
        "".join(
            event(
                {"type": responses, "item_id": "i", "sequence_number": n, "delta": piece}, responses
            )
            for n, piece in enumerate(cut(f"{text} ok"))
        ),
    )
    gemini = [{"candidates": [{"content": {"parts": [{"text": p}]}}]} for p in cut(f"{text} ok")]
    yield SSE, "".join(map(event, gemini))
    yield JSON, json.dumps(gemini)
    yield (
        SSE,
        "".join(event({"own": {"shape": piece}}) for piece in cut(secret.text))
        + event({"note": word}),
    )
    yield SSE, "".join(f"data: {piece}\n\n" for piece in (word + " ", *cut(secret.text.split()[0])))
    yield (
        "application/x-ndjson",
        "".join(
            json.dumps({"model": "m", "response": piece}) + "\n" for piece in cut(f"{text} ok")
        ),
    )


def bodies(secret: Secret, word: str) -> list[tuple[str, str]]:
    made = list(named(secret, word))
    return made if secret.kind in SHAPELESS else made + list(bare(secret, word))


def messages_of(secret: Secret, number: int) -> Iterator[tuple[Caught, str]]:
    """Each message as a call of its own, with the word that must be found in it."""
    for at in range(len(bodies(secret, ""))):
        for coded in (False, True):
            word = f"harmless{number}x{at}x{int(coded)}"
            media_type, body = bodies(secret, word)[at]
            raw = body.encode()
            headers: tuple[tuple[str, str], ...] = (("Content-Type", media_type),)
            if coded:
                raw, headers = gzip.compress(raw), (*headers, ("Content-Encoding", "gzip"))
            yield caught(raw, headers=headers, call_id=word), word


def heads_of(secret: Secret, number: int) -> Iterator[Caught]:
    flat = "".join(secret.text.split("\n"))
    headers = (
        ("Authorization", f"Bearer {flat}"), ("X-Api-Key", flat), ("Cookie", f"a=b; s={flat}"),
        ("X-Harmless", f"marker-{number}"),
    )  # fmt: skip
    start = f"GET https://x.example/marker-{number}?token={quote(flat, safe='')}&marker={number}"
    yield caught(b"", headers=headers, start=start, call_id=f"head-{number}")
    echo = json.dumps({"you sent": [flat, quote(flat, safe="")], "note": f"echoed{number}"})
    answer: dict[str, Any] = {"call_id": f"head-{number}", "side": Side.RESPONSE, "start": "200"}
    yield caught(echo.encode(), **answer)
    for side in (Side.UP, Side.DOWN):
        text = json.dumps({"auth": {"token": secret.text}, "note": f"socket{number}"})
        socket: dict[str, Any] = {
            "call_id": f"socket-{number}",
            "side": side,
            "start": "text",
            "headers": (),
        }
        yield caught(text.encode(), **socket)


def everything(data: Path) -> Iterator[tuple[str, bytes]]:
    """The files as they lie there, and each value of each table, unpacked."""
    for path in sorted(data.glob("trace.db*")):
        yield path.name, path.read_bytes()
    reader = trace.open_trace(data)
    assert reader is not None
    tables = [
        name for (name,) in reader.execute("SELECT name FROM sqlite_schema WHERE type='table'")
    ]
    unpack = zstandard.ZstdDecompressor()
    for table in tables:
        for row in reader.execute(f"SELECT * FROM {table}"):
            for value in row:
                if table == "body" and isinstance(value, bytes) and len(value) != 32:
                    value = unpack.decompress(value)
                yield table, value if isinstance(value, bytes) else str(value).encode()
    reader.close()


@pytest.mark.slow
def test_no_secret_is_left_in_the_trace(tmp_path: Path) -> None:
    """15 seconds; 3,000 messages."""
    store = TraceStore.open(tmp_path, KEY, lambda: 0)
    words: dict[str, str] = {}
    for number, secret in enumerate(SECRETS):
        marked = list(messages_of(secret, number))
        words |= {word: secret.kind for _, word in marked}
        store.keep([message for message, _ in marked])
        store.keep(list(heads_of(secret, number)))
    traces = {made.lower(): secret.kind for secret in SECRETS for made in secret.traces()}
    found: set[str] = set()
    places = set()
    for place, content in everything(tmp_path):
        places.add(place)
        lower = content.lower()
        found |= {
            f"{kind} in {place}: {lower[:300]!r}" for made, kind in traces.items() if made in lower
        }
    assert sorted(found)[:3] == []
    assert {"trace.db", "trace.db-wal", "message", "body"} <= places
    reader = trace.open_trace(tmp_path)
    assert reader is not None
    lost = [word for word in words if trace.search(reader, word, 5) != [word]]
    assert [(word, words[word], trace.messages(reader, word)) for word in lost[:2]] == []
    for number in range(len(SECRETS)):
        request, response = trace.messages(reader, f"head-{number}")
        assert f"marker-{number}?token=[redacted:" in request.start
        assert request.start.endswith(f"&marker={number}")
        assert ("X-Harmless", f"marker-{number}") in request.headers
        assert f"echoed{number}" in (response.text or "")
        assert trace.search(reader, f"socket{number}", 5) == [f"socket-{number}"]
    reader.close()
    store.close()


def test_the_corpus_is_what_it_says() -> None:
    assert len(SECRETS) == 50
    assert len({secret.kind for secret in SECRETS}) >= 15
    assert len({secret.text for secret in SECRETS}) == 50
