"""Bytes to an engine as somebody else's client would send them, and what an upstream saw of them.

The notation of tests/cases/malformed_*.yaml, an upstream that keeps every request it was sent, and
what must hold of any bytes whatever: all that arrives was judged, let through and not changed.
"""

import asyncio
import base64
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from policies.call import Request
from proxy.gate import Gate
from proxy.live import Live
from tests.proxy.engines.conftest import Proxy

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CREDENTIALS = b"Proxy-Authorization: Basic %b\r\n" % base64.b64encode(b"r1:acme")
TUNNEL = b"CONNECT api.test:80 HTTP/1.1\r\nHost: api.test:80\r\n%b\r\n" % CREDENTIALS

ANSWER_SECONDS = 5.0  # an answer that takes longer is none
QUIET_SECONDS = 0.02  # in which nothing more may come behind the last answer
LOST = (OSError, RuntimeError)
"""What writing to somebody who has hung up raises; the second is uvloop's."""

WAITING_SECONDS = 0.1  # in which what waits for more must not be answered

_REPEATED = re.compile(r"<([^<>]+?)\*(\d+)>")
_METHOD = re.compile(r"<([A-Z]+)( ?/[^<>]*)?>")
_ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|[rnt0\\])")
_PLAIN = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}

ADDED = frozenset(
    b"host content-length transfer-encoding connection x-run-id x-tenant-id accept-encoding".split()
)
"""Fields that an engine writes itself, and frames a message with."""

_HEAD = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (/[!\"$-~]*) HTTP/1\.[01]\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)+)\r\n"
)


def written(text: str, path: str, *, tunnel: bool, value: str = "") -> bytes:
    """The bytes that a row stands for, in the notation of tests/cases/malformed_framing.yaml."""
    authority = "" if tunnel else "http://api.test"
    me = "" if tunnel else CREDENTIALS.decode()

    def head(found: re.Match[str]) -> str:
        target = authority + path + (found[2] or "").strip()
        return f"{found[1]} {target} HTTP/1.1\r\nHost: api.test\r\n{me}"

    text = text.replace("<v>", value).replace("↵", "\r\n")
    text = text.replace("<target>", authority + path).replace("<path>", path).replace("<me>", me)
    before = ""
    while text != before:
        before = text
        text = repeated(_METHOD.sub(head, text))
    text = _ESCAPED.sub(lambda found: _plain(found[1]), text)
    return b"".join(one.encode("latin-1" if one < "\u0100" else "utf-8") for one in text)


def repeated(text: str) -> str:
    return _REPEATED.sub(lambda found: found[1] * int(found[2]), text)


def _plain(escaped: str) -> str:
    return _PLAIN.get(escaped) or chr(int(escaped[1:], 16))


# The upstream


@dataclass(frozen=True, slots=True)
class Seen:
    """One whole request, as a strict reader of RFC 9112 takes it."""

    method: str
    target: str
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for known, value in self.fields if known == name]


@dataclass(slots=True)
class Recorder:
    """An upstream that says `ok` to all. `odd` holds what is no request, `halves` what may become
    one and has not."""

    seen: list[Seen] = field(default_factory=list)
    odd: list[bytes] = field(default_factory=list)
    halves: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        held = bytearray()
        while data := await _some(reader):
            held += data
            while (found := strictly_read(bytes(held))) is not None:
                request, length = found
                del held[:length]
                self.seen.append(request)
                writer.write(OK[:-2] if request.method == "HEAD" else OK)
            if b"\r\n\r\n" in held and not _HEAD.match(held):
                self.odd.append(bytes(held))
                held.clear()
                break
        if held:
            self.halves.append(bytes(held))
        writer.close()

    def of(self, path: str) -> list[Seen]:
        return [one for one in self.seen if re.match(re.escape(path) + r"(?![0-9])", one.target)]


async def _some(reader: asyncio.StreamReader) -> bytes:
    with suppress(OSError):
        return await reader.read(65536)
    return b""


def strictly_read(data: bytes) -> tuple[Seen, int] | None:
    """The first request and its length in bytes; None where it is not whole, or none at all."""
    found = _HEAD.match(data)
    if found is None:
        return None
    lines = [line.partition(b":") for line in found[3].split(b"\r\n")[:-1]]
    fields = tuple((name.lower(), value.strip(b" \t")) for name, _, value in lines)
    named = Counter(name for name, _ in fields)
    if named[b"host"] != 1 or named[b"content-length"] + named[b"transfer-encoding"] > 1:
        return None
    told = dict(fields)
    start = found.end()
    if b"transfer-encoding" in told:
        whole = (
            _dechunked(data[start:]) if told[b"transfer-encoding"].lower() == b"chunked" else None
        )
        if whole is None:
            return None
        body, length = whole
    else:
        length = told.get(b"content-length", b"0")  # type: ignore[assignment]
        if not re.fullmatch(rb"[0-9]{1,18}", length):  # type: ignore[call-overload]
            return None
        length = int(length)
        body = data[start : start + length]
        if len(body) < length:
            return None
    return Seen(found[1].decode(), found[2].decode(), fields, body), start + length


def _dechunked(data: bytes) -> tuple[bytes, int] | None:
    body, at = b"", 0
    while found := re.compile(rb"([0-9a-fA-F]{1,8})\r\n").match(data, at):
        size, at = int(found[1], 16), found.end()
        chunk, end = data[at : at + size], data[at + size : at + size + 2]
        if end != b"\r\n":
            return None
        body, at = body + chunk, at + size + 2
        if not size:
            return body, at
    return None


# What is judged


@dataclass(slots=True)
class Judged:
    """Every request that the gate let through, by the call's id."""

    admitted: dict[str, Request] = field(default_factory=dict)


@asynccontextmanager
async def judging(gate: Gate) -> AsyncIterator[Judged]:
    """While this lasts all that is let through is written down."""
    judged, ask = Judged(), gate.ask

    async def asked(request: Any, *rest: Any, **more: Any) -> Any:
        answer = await ask(request, *rest, **more)
        if isinstance(answer, Live):
            judged.admitted[answer.call_id] = request
        return answer

    gate.ask = asked  # type: ignore[method-assign]
    try:
        yield judged
    finally:
        gate.ask = ask  # type: ignore[method-assign]


def unjudged(recorder: Recorder, judged: Judged, proxy: Proxy) -> list[str]:
    """What an upstream saw that was not let through just so: by method, target, body and fields,
    each as often as it was let through; and by the ledger, which has allowed each of them."""
    allowed = {call["id"] for call in proxy.calls() if call["decision"] == "allow"}
    wrong = [f"{one!r} is no whole request" for one in (*recorder.odd, *recorder.halves)]
    left: dict[tuple[str, str, bytes], list[Request]] = {}
    for call_id, request in judged.admitted.items():
        if call_id in allowed:
            left.setdefault((request.method, request.target, request.body), []).append(request)
    for one in recorder.seen:
        asked = left.get((one.method, one.target, one.body))
        if not asked:
            wrong.append(f"{one} was not let through")
        elif not any(_says_no_more(one, request) for request in asked):
            wrong.append(f"{one} has other fields than {asked}")
        else:
            asked.pop()
    return wrong


def _says_no_more(seen: Seen, request: Request) -> bool:
    sent = {(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers}
    return all((name, value) in sent or name in ADDED for name, value in seen.fields)


# The client


@dataclass(slots=True)
class Told:
    """The statuses of the whole answers to one connection, but for interim ones; `rest` is what
    was no answer; `closed`, whether it was hung up on by the engine."""

    statuses: list[int] = field(default_factory=list)
    closed: bool = False
    rest: bytes = b""


async def told(
    port: int,
    parts: Sequence[bytes],
    *,
    answers: int,
    tunnel: bool = False,
    bodiless: bool = False,
    closes: bool = False,
    pause_seconds: float = 0.01,
) -> Told:
    """Send the parts, and read so many answers, or none for a while; `closes`: to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = Told()
    try:
        if tunnel:
            writer.write(TUNNEL)
            await reader.readuntil(b"\r\n\r\n")
        sending = asyncio.create_task(_sent(writer, parts, pause_seconds))
        wait_seconds = ANSWER_SECONDS if answers or closes else WAITING_SECONDS
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(wait_seconds):
                await _heard(reader, heard, answers if not closes else 1_000, bodiless)
        if not heard.closed and not closes:
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(QUIET_SECONDS):
                    heard.rest += await reader.read(65536)
                    heard.closed = not heard.rest
        sending.cancel()
        with suppress(asyncio.CancelledError, *LOST):
            await sending
    except LOST:
        heard.closed = True
    finally:
        writer.close()
    return heard


async def _sent(writer: asyncio.StreamWriter, parts: Sequence[bytes], pause_seconds: float) -> None:
    for place, part in enumerate(parts):
        if place:
            await asyncio.sleep(pause_seconds)
        writer.write(part)
        await writer.drain()


async def _heard(reader: asyncio.StreamReader, heard: Told, answers: int, bodiless: bool) -> None:
    while len(heard.statuses) < answers or not answers:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError) as error:
            heard.rest += getattr(error, "partial", b"")
            heard.closed = True
            return
        if head[9:10] == b"1":
            continue
        lower = head.lower()
        if not bodiless and b"\r\ncontent-length: " in lower:
            size = int(lower.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(size)
        heard.statuses.append(int(head[9:12]))
