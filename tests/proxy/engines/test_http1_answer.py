"""The answer's parser, alone: what is one, in whatever pieces it comes, and what is none."""

import asyncio

import pytest

from proxy import head
from proxy.engines import http1_answer
from proxy.engines.http1_answer import Answer, Broken
from tests.proxy.engines.listening import Heard

R = b"HTTP/1.1 200 OK\r\n"
L = b"Content-Length: 2\r\n\r\nok"
CHUNKED = R + b"Transfer-Encoding: chunked\r\n\r\n"
SWITCH = b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def fed(*parts: bytes, method: str = "GET", websocket: bool = False) -> tuple[Answer, Heard]:
    heard = Heard()
    answer = Answer(heard, method, websocket=websocket)
    for part in parts:
        answer.feed(part)
    return answer, heard


WHOLE = {
    "a length": (R + L, b"ok"),
    "chunks": (CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"ok"),
    "a chunk with an extension": (CHUNKED + b"2;a=b\r\nok\r\n0\r\n\r\n", b"ok"),
    "an interim answer first": (b"HTTP/1.1 103 E\r\nLink: a\r\n\r\n" + R + L, b"ok"),
    "two interim answers first": (b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + R + L, b"ok"),
    "empty lines first": (b"\r\n\r\n" + R + L, b"ok"),
    "no reason": (b"HTTP/1.1 200\r\n" + L, b"ok"),
    "nothing": (b"HTTP/1.1 204 No\r\n\r\n", b""),
    "a length that is not there": (b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", b""),
}


@pytest.mark.parametrize("said, body", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
async def test_a_whole_answer_is_whole_in_any_pieces(said: bytes, body: bytes, size: int) -> None:
    pieces = [said[place : place + size] for place in range(0, len(said), size)]
    answer, heard = fed(*pieces)
    assert (answer.is_over, answer.keeps) == (True, True)
    assert (heard.status in (200, 204, 304), bytes(heard.body)) == (True, body)


@pytest.mark.parametrize("said, body", WHOLE.values(), ids=WHOLE)
async def test_a_part_of_an_answer_is_not_whole(said: bytes, body: bytes) -> None:
    for end in range(len(said)):
        answer, _ = fed(said[:end])
        assert not answer.is_over
        with pytest.raises(Broken, match=r"broke off|before its answer"):
            answer.finish(in_order=True)


BROKEN = {
    "a bare CR": (R + b"X: a\rY: b\r\n" + L, http1_answer.BROKEN_HEAD),
    "a NUL": (R + b"X: a\0b\r\n" + L, http1_answer.BROKEN_HEAD),
    "a folded line": (R + b"X: a\r\n b\r\n" + L, http1_answer.BROKEN_HEAD),
    "a name that is none": (R + b"X (Y): a\r\n" + L, http1_answer.BROKEN_HEAD),
    "a space before the colon": (R + b"X : a\r\n" + L, http1_answer.BROKEN_HEAD),
    "two framings": (
        R + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        http1_answer.AMBIGUOUS,
    ),
    "two lengths": (R + b"Content-Length: 2\r\n" + L, http1_answer.AMBIGUOUS),
    "a list of lengths": (R + b"Content-Length: 2, 2\r\n\r\nok", http1_answer.AMBIGUOUS),
    "a length with a sign": (R + b"Content-Length: +2\r\n\r\nok", http1_answer.AMBIGUOUS),
    "another coding": (R + b"Transfer-Encoding: gzip\r\n\r\nok", http1_answer.AMBIGUOUS),
    "two codings": (R + b"Transfer-Encoding: gzip, chunked\r\n\r\n", http1_answer.AMBIGUOUS),
    "chunked twice": (
        R + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
        http1_answer.AMBIGUOUS,
    ),
    "chunks of HTTP/1.0": (CHUNKED.replace(b"1.1", b"1.0"), http1_answer.AMBIGUOUS),
    "chunks of nothing": (CHUNKED.replace(b"200", b"204"), http1_answer.AMBIGUOUS),
    "status 0": (b"HTTP/1.1 000 X\r\n" + L, "the answer's status is none"),
    "status 999": (b"HTTP/1.1 999 X\r\n" + L, "the answer's status is none"),
    "status 2000": (b"HTTP/1.1 2000 X\r\n" + L, http1_answer.NONSENSE),
    "another version": (b"HTTP/2.0 200 OK\r\n" + L, http1_answer.ANOTHER_PROTOCOL),
    "an old version": (b"HTTP/0.9 200 OK\r\n" + L, http1_answer.ANOTHER_PROTOCOL),
    "an odd version": (b"HTTP/9.9 200 OK\r\n" + L, http1_answer.ANOTHER_PROTOCOL),
    "an upgrade": (SWITCH, http1_answer.ANOTHER_PROTOCOL),
    "RTSP": (b"RTSP/1.0 200 OK\r\n" + L, http1_answer.NONSENSE),
    "nonsense": (b"garbage\r\n\r\n", http1_answer.NONSENSE),
    "lines without a carriage return": (
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        http1_answer.NONSENSE,
    ),
    "a huge field": (R + b"X: " + b"a" * 200_000, http1_answer.HEAD_TOO_LARGE),
    "many fields": (R + b"X: a\r\n" * 20_000, http1_answer.HEAD_TOO_LARGE),
    "a chunk that is none": (CHUNKED + b"zz\r\nok", http1_answer.BROKEN_CHUNKS),
    "a chunk with a sign": (CHUNKED + b"-2\r\nok", http1_answer.BROKEN_CHUNKS),
    "a chunk that does not end": (CHUNKED + b"2\r\nokok\r\n", http1_answer.BROKEN_CHUNKS),
    "an endless extension": (CHUNKED + b"2;" + b"a" * 200_000, http1_answer.BROKEN_CHUNKS),
    "an endless trailer": (CHUNKED + b"0\r\nX: " + b"a" * 200_000, http1_answer.BROKEN_CHUNKS),
    "many trailers": (CHUNKED + b"0\r\n" + b"X: a\r\n" * 20_000, http1_answer.BROKEN_CHUNKS),
}


@pytest.mark.parametrize("said, why", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("size", [1, 60_000])
async def test_what_is_no_answer_is_broken(said: bytes, why: str, size: int) -> None:
    pieces = [said[place : place + size] for place in range(0, len(said), size)]
    with pytest.raises(Broken, match=why):
        fed(*pieces)


@pytest.mark.parametrize("behind", [b"HTTP/1.1 200 OK\r\n" + L, b"x", b"\x16\x03"])
@pytest.mark.parametrize("said", [R + L, CHUNKED + b"0\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n"])
async def test_what_comes_behind_an_answer_is_not_told_and_ends_the_connection(
    said: bytes, behind: bytes
) -> None:
    answer, heard = fed(said + behind)
    assert (answer.is_over, answer.keeps) == (True, False)
    assert heard.status in (200, 204)
    assert bytes(heard.body) in (b"", b"ok")


@pytest.mark.parametrize(
    "fields, keeps",
    [
        (b"Content-Length: 9\r\n", True),
        (b"Transfer-Encoding: chunked\r\n", True),
        (b"Content-Length: 9\r\nConnection: close\r\n", False),
        (b"", False),
    ],
)
async def test_an_answer_to_head_has_no_body(fields: bytes, keeps: bool) -> None:
    answer, heard = fed(R + fields + b"\r\n", method="HEAD")
    assert (answer.is_over, answer.keeps, heard.to_its_end) == (True, keeps, False)


@pytest.mark.parametrize("fields", [b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_a_body_behind_an_answer_to_head_is_none(fields: bytes) -> None:
    answer, heard = fed(R + fields + b"\r\n2\r\nok\r\n0\r\n\r\n", method="HEAD")
    assert (answer.is_over, answer.keeps, bytes(heard.body)) == (True, False, b"")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_without_a_length_lasts_until_its_connection_ends_in_order(
    version: bytes,
) -> None:
    answer, heard = fed(b"HTTP/%b 200 OK\r\n\r\nwho" % version, b"le")
    assert (answer.is_over, heard.to_its_end) == (False, True)
    answer.finish(in_order=True)
    assert (answer.is_over, answer.keeps, bytes(heard.body)) == (True, False, b"whole")


async def test_an_answer_without_a_length_whose_connection_breaks_is_broken() -> None:
    answer, _ = fed(R + b"\r\nhalf")
    with pytest.raises(Broken, match=http1_answer.BROKE_OFF):
        answer.finish(in_order=False)


async def test_trailers_are_told_apart_from_the_head() -> None:
    answer, heard = fed(CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1 \r\n\r\n")
    assert answer.trailers == [(b"X-Sum", b"1")]
    assert heard.fields == ((b"Transfer-Encoding", b"chunked"),)


async def test_a_websocket_that_was_asked_for() -> None:
    answer, heard = fed(b"HTTP/1.1 100 C\r\n\r\n" + SWITCH + b"raw", websocket=True)
    assert (answer.is_over, answer.upgraded, heard.status) == (True, b"raw", 0)
    assert head.is_websocket(answer.fields)


@pytest.mark.parametrize(
    "said",
    [
        SWITCH.replace(b"websocket", b"foo"),
        SWITCH.replace(b"Connection: Upgrade\r\n", b""),
        b"HTTP/1.1 101 S\r\n\r\n",
    ],
)
async def test_an_upgrade_to_anything_else(said: bytes) -> None:
    with pytest.raises(Broken, match=http1_answer.ANOTHER_PROTOCOL):
        fed(said, websocket=True)


async def test_a_websocket_that_is_declined_is_an_answer_like_any() -> None:
    answer, heard = fed(b"HTTP/1.1 403 No\r\n" + L, websocket=True)
    assert (answer.is_over, answer.upgraded, heard.status) == (True, None, 403)


async def test_interim_answers_may_come_for_ever() -> None:
    answer, heard = fed(*([b"HTTP/1.1 102 P\r\nX: abc\r\n\r\n"] * 10_000))
    assert (answer.is_over, heard.status) == (False, 0)


async def test_a_listener_that_fails_is_our_own_failure() -> None:
    class Failing(Heard):
        def chunk(self, data: bytes) -> None:
            raise KeyError("a mistake of ours")

    with pytest.raises(KeyError, match="ours"):
        Answer(Failing(), "GET", websocket=False).feed(R + L)


async def test_nobody_is_told_after_it_was_forgotten() -> None:
    class Leaving(Heard):
        def headed(self, status: int, fields: head.Headers, *, to_its_end: bool) -> None:
            answer.forget()
            self.over.set()

    heard = Leaving()
    answer = Answer(heard, "GET", websocket=False)
    answer.feed(R + L)
    await asyncio.sleep(0)
    assert (heard.after, bytes(heard.body)) == ([], b"")
