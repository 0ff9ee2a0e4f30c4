"""What upstreams do wrong, by the names that tests/cases/upstream_faults.yaml has for it."""

import struct
from collections.abc import Awaitable, Callable
from functools import partial

from h2.errors import ErrorCodes

from tests.end_to_end.misbehaving import OK, One, Script, Two

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HUGE_BYTES = 70_000  # more than any head may have
FLOOD = 2_000
GARBAGE = b"NONSENSE\r\n\r\n" * 20

# The faults, for both versions


async def resets_after_head(one: One | Two) -> None:
    await one.head()
    one.reset()


async def resets_after_half(one: One | Two) -> None:
    await one.half()
    one.reset()


async def resets_after_request(one: One | Two) -> None:
    await one.request()
    one.reset()


async def closes_after_request(one: One | Two) -> None:
    await one.request()


async def _first_bytes(one: One) -> None:
    """Of a request that is read no further, and so was not seen."""
    await one.reader.readexactly(1)


async def resets_unread(one: One) -> None:
    await _first_bytes(one)
    one.reset()


async def closes_at_once(one: One | Two) -> None:
    """Before a request could be sent: whoever asks waits for this (`closed`)."""


async def stalls(one: One | Two) -> None:
    await one.request()
    await one.upstream.go.wait()


async def answers_late(one: One | Two) -> None:
    await one.request()
    await one.upstream.go.wait()
    await one.answer()
    await one.until_left()


async def waits_for_the_end(one: One | Two) -> None:
    await one.request()
    await one.until_left()


async def answers_once(one: One | Two) -> None:
    """And meets the next request with a reset."""
    await one.request()
    await one.answer()
    await one.head()
    one.reset()


async def talks_nonsense(one: One | Two) -> None:
    await one.request()
    await one.say(GARBAGE)
    await one.upstream.go.wait()


def says(*parts: bytes, then: str = "close", body: str = "request") -> Script:
    """HTTP/1: these bytes after a request; then it closes, resets or stays silent."""

    async def script(one: One) -> None:
        await (one.head() if body == "head" else one.request())
        await one.say(*parts)
        if then == "reset":
            one.reset()
        elif then == "abort":
            one.writer.transport.abort()  # the socket is closed, and TLS says no goodbye
        elif then == "stall":
            await one.upstream.go.wait()

    return script


def _status1(code: int) -> Script:
    length = b"" if code == 204 else b"Content-Length: 2\r\n"
    body = b"" if code == 204 else b"no"
    return says(b"HTTP/1.1 %d X\r\nX-A: b\r\n%b\r\n%b" % (code, length, body))


ANSWERS = (200, 204, 302, 400, 401, 404, 409, 421, 422, 425, 429, 500, 502, 503)

HTTP1: dict[str, Script] = {
    "resets unread": resets_unread,
    "closes unread": _first_bytes,
    "resets after the head": resets_after_head,
    "resets after half the body": resets_after_half,
    "resets after the request": resets_after_request,
    "closes after the request": closes_after_request,
    "closes before the request": closes_at_once,
    "stalls": stalls,
    "answers late": answers_late,
    "waits for the end": waits_for_the_end,
    "answers once": answers_once,
    "stalls in the answer": says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", then="stall"),
    "talks nonsense": talks_nonsense,
    "breaks a chunk": says(CHUNKED + b"2\r\nok\r\nzz\r\nnonsense", then="stall"),
    "ends within a chunk": says(CHUNKED + b"9\r\nhalf"),
    "ends without the last chunk": says(CHUNKED + b"2\r\nok\r\n"),
    "half an answer": says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
    "until it closes": says(b"HTTP/1.1 200 OK\r\n\r\nwhole"),
    "until it closes, of HTTP/1.0": says(b"HTTP/1.0 200 OK\r\n\r\nwhole"),
    "until it closes, and resets": says(b"HTTP/1.1 200 OK\r\n\r\nhalf", then="reset"),
    "until it closes, without a goodbye": says(b"HTTP/1.1 200 OK\r\n\r\nhalf", then="abort"),
    "half a head": says(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "early hints": says(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", OK),
    "continue": says(b"HTTP/1.1 100 Continue\r\n\r\n", OK),
    "interim answers for ever": says(b"HTTP/1.1 102 X\r\n\r\n" * FLOOD, then="stall"),
    "trailers": says(CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", then="stall"),
    "a huge head": says(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * HUGE_BYTES, then="stall"),
    **{f"answers {code}": _status1(code) for code in ANSWERS},
}


def http2(script: Callable[[Two], Awaitable[None]]) -> Script:
    async def after_request(two: Two) -> None:
        await two.request()
        await script(two)
        await two.until_left()

    return after_request


async def _half2(two: Two, *, close: bool) -> None:
    await two.request()
    await two.fields(200, ("content-length", "9"))
    await two.data(b"half", end=False)
    if not close:
        await two.upstream.go.wait()


async def _status2(code: int, two: Two) -> None:
    await two.fields(code, ("x-a", "b"), end=code == 204)
    if code != 204:
        await two.data(b"no")


async def _early_end(two: Two) -> None:
    two.conn.send_headers(two.stream, [(":status", "200"), ("content-length", "9")])
    await two.data(b"half")  # in one piece with the head


async def _interim(code: int, times: int, two: Two) -> None:
    for _ in range(times):
        await two.fields(code, ("link", "</a>"))
    if times == 1:
        await two.answer()


async def _trailers(two: Two) -> None:
    await two.fields(200)
    await two.data(b"ok", end=False)
    two.conn.send_headers(two.stream, [("x-sum", "1")], end_stream=True)
    await two.flush()


async def _refuses_after_head(two: Two) -> None:
    await two.fields(200)
    await two.refuse(ErrorCodes.REFUSED_STREAM)


async def _refuses_after_hints(two: Two) -> None:
    await two.fields(103)
    await two.refuse(ErrorCodes.REFUSED_STREAM)


async def _goes_away(two: Two, *, last: int, then: str) -> None:
    await two.request()
    await two.go_away(last)
    if then == "answer":
        await two.answer()
        await two.until_left()
    elif then == "stay":
        await two.until_left()


async def _grants_nothing(two: Two) -> None:
    two.grants = False
    await two.request()


async def _says_enough(two: Two) -> None:
    """A whole answer before the whole request: RFC 9113, section 8.1."""
    two.grants = False
    await two.head()
    await two.answer()
    await two.refuse(ErrorCodes.NO_ERROR)
    await two.upstream.go.wait()


_BAD_SETTINGS = (6).to_bytes(3) + b"\x04\x00" + bytes(4) + struct.pack(">HI", 2, 7)  # ENABLE_PUSH

HTTP2: dict[str, Script] = {
    "resets after the head": resets_after_head,
    "resets after half the body": resets_after_half,
    "resets after the request": resets_after_request,
    "closes after the request": closes_after_request,
    "closes before the request": closes_at_once,
    "stalls": stalls,
    "answers late": answers_late,
    "waits for the end": waits_for_the_end,
    "answers once": answers_once,
    "stalls in the answer": partial(_half2, close=False),
    "talks nonsense": talks_nonsense,
    "half an answer": partial(_half2, close=True),
    "ends before its length": http2(_early_end),
    "early hints": http2(partial(_interim, 103, 1)),
    "interim answers for ever": http2(partial(_interim, 102, FLOOD)),
    "trailers": http2(_trailers),
    "a huge head": http2(lambda two: two.fields(200, ("x-a", "a" * HUGE_BYTES))),
    "refuses the stream": http2(lambda two: two.refuse(ErrorCodes.REFUSED_STREAM)),
    "refuses the stream after its head": http2(_refuses_after_head),
    "refuses the stream after early hints": http2(_refuses_after_hints),
    "resets the stream (INTERNAL_ERROR)": http2(lambda two: two.refuse(ErrorCodes.INTERNAL_ERROR)),
    "resets the stream (CANCEL)": http2(lambda two: two.refuse(ErrorCodes.CANCEL)),
    "goes away below the stream": partial(_goes_away, last=0, then="stay"),
    "goes away below the stream and closes": partial(_goes_away, last=0, then="close"),
    "goes away above the stream and answers": partial(_goes_away, last=2**31 - 1, then="answer"),
    "goes away above the stream and closes": partial(_goes_away, last=2**31 - 1, then="close"),
    "says bad settings": http2(lambda two: two.say(_BAD_SETTINGS)),
    "grants no window": _grants_nothing,
    "says enough": _says_enough,
    **{f"answers {code}": http2(partial(_status2, code)) for code in ANSWERS},
}
