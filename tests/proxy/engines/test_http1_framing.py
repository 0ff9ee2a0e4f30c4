"""Where a request's body ends, however it is cut into packets."""

import pytest

from proxy.engines.http1_framing import CHUNK_LINE_BYTES_MAX, BrokenChunks, Chunked, Sized
from proxy.head import HEAD_BYTES_MAX

BODY = b"2\r\nhi\r\nA;x=1\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"
NEXT = b"GET / HTTP/1.1\r\n"

BROKEN = {
    "no size": b"ZZ\r\nhi\r\n0\r\n\r\n",
    "no end of a chunk": b"2\r\nhi0\r\n\r\n",
    "a sign": b"-2\r\nhi\r\n",
    "a prefix": b"0x2\r\nhi\r\n",
    "a space before it": b" 2\r\nhi\r\n",
    "a bare feed": b"2\nhi\r\n",
    "a bare feed in an extension": b"2;a\nb\r\nhi\r\n",
    "a bare return in an extension": b"2;a\rb\r\nhi\r\n",
    "a bare feed behind a chunk": b"2\r\nhi\n0\r\n\r\n",
    "a size of sixteen digits": b"1000000000000000\r\n",
    "an empty line": b"\r\nhi",
    "a size line without end": b"1;" + b"x" * 2 * CHUNK_LINE_BYTES_MAX,
    "trailers without end": b"0\r\n" + b"X: 1\r\n" * HEAD_BYTES_MAX,
    "a trailer without a colon": b"0\r\nX-A\r\n\r\n",
    "a folded trailer": b"0\r\nX: 1\r\n a\r\n\r\n",
    "a bare feed in the trailers": b"0\r\nX: 1\n\r\n\r\n",
}


def test_a_body_of_a_length_ends_there():
    framing = Sized(5)
    assert framing.feed(b"abc") == (b"abc", b"")
    assert not framing.has_ended
    assert framing.feed(b"de" + NEXT) == (b"de", NEXT)
    assert framing.has_ended
    assert Sized(0).has_ended


def test_chunks_end_with_the_last_one_and_trailers_are_dropped():
    framing = Chunked()
    assert framing.feed(BODY + NEXT) == (b"hi0123456789", NEXT)
    assert framing.has_ended


@pytest.mark.parametrize("size_bytes", [1, 2, 3, 7])
def test_chunks_may_come_in_any_pieces(size_bytes):
    framing, content, rest = Chunked(), b"", b""
    for place in range(0, len(BODY), size_bytes):
        assert not framing.has_ended
        part, rest = framing.feed(BODY[place : place + size_bytes])
        content += part
    assert (content, rest, framing.has_ended) == (b"hi0123456789", b"", True)


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("together", [True, False])
def test_chunks_that_are_none_are_never_taken_for_some(body, together):
    framing = Chunked()
    parts = [body] if together else [body[at : at + 1] for at in range(len(body))]

    def feed_all():
        for part in parts:
            framing.feed(part)

    with pytest.raises(BrokenChunks):
        feed_all()
