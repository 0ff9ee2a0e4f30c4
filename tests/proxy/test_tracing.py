"""What an engine catches for the trace: all of a call, as it was, and nothing twice."""

from typing import Any

import pytest

from ledger.traced import Side
from proxy.tracing import Level
from tests.proxy.caught import POLICY, WHO, Place, asked, caught, place

__all__ = ["place"]


async def test_a_request_and_its_answer_are_kept_as_they_were(place: Place) -> None:
    traced = place.tracing()
    async with place.tracer.listening():
        traced.start()
        caught(traced, asked(body=b"hello"), b"one ", b"two")
        await traced.close()
    request, response = place.tracer.kept
    redacted = ((), ("pin",), ())
    assert request == (
        *("c1", "request", 1_000, "r1", "acme", "mail", "2026-11-22", "full"),
        *("POST https://mail.example/inbox?all=1", (("x-a", "1"),), b"hello", 5, redacted),
    )
    assert response[:2] == ("c1", Side.RESPONSE)
    assert response[8:12] == ("200", ((b"Content-Type", b"text/plain"),), b"one two", 7)
    assert place.told == []
    assert traced.state() == {"behind": 0, "lost": 0}


@pytest.mark.parametrize(
    "level, tool, kept",
    [
        ("full", "mail", ["full"] * 2),
        ("digest", "mail", ["digest"] * 2),
        ("none", "mail", []),
        ("full", "silent", []),
        ("none", "loud", ["full"] * 2),
        ("full", "pullcord.canary", []),
        ("full", "elsewhere", ["full"] * 2),
    ],
)
async def test_the_tools_own_level_wins(
    place: Place, level: Level, tool: str, kept: list[str]
) -> None:
    traced = place.tracing(level)
    async with place.tracer.listening():
        traced.start()
        caught(traced, asked(tool), b"answer")
        await traced.close()
    assert [message[7] for message in place.tracer.kept] == kept


async def test_nothing_of_strangers_is_caught(place: Place) -> None:
    traced = place.tracing()
    assert traced.asked(asked(), None, POLICY, is_let_through=True) is None
    assert traced.behind == 0


@pytest.mark.parametrize(
    "request_, url",
    [
        ({"scheme": "http", "port": 80}, "http://mail.example/inbox?all=1"),
        ({"port": 8443}, "https://mail.example:8443/inbox?all=1"),
        ({"host": "2001:db8::1"}, "https://[2001:db8::1]/inbox?all=1"),
        ({"scheme": "http", "port": 443}, "http://mail.example:443/inbox?all=1"),
    ],
)
async def test_the_url_is_whole(place: Place, request_: dict[str, Any], url: str) -> None:
    traced = place.tracing()
    async with place.tracer.listening():
        traced.start()
        traced.asked(asked(**request_), WHO, POLICY, is_let_through=True)
        await traced.close()
    assert place.tracer.kept[0][8] == f"POST {url}"


async def test_of_a_long_body_the_beginning_is_caught(place: Place) -> None:
    traced = place.tracing(body_bytes_max=10)
    async with place.tracer.listening():
        traced.start()
        caught(traced, asked(body=b"x" * 11), b"123456", b"", b"789abc", b"def")
        await traced.close()
    bodies = [(message[10], message[11]) for message in place.tracer.kept]
    assert bodies == [(b"x" * 10, 11), (b"123456789a", 15)]
    assert place.told == []


async def test_messages_of_a_websocket_come_one_by_one(place: Place) -> None:
    traced = place.tracing()
    async with place.tracer.listening():
        traced.start()
        catch = traced.asked(asked(), WHO, POLICY, is_let_through=True)
        assert catch is not None
        catch.headed(101, ((b"Upgrade", b"websocket"),))
        catch.said(b"ping")
        catch.add(b"pong")
        catch.settled(101, (("upgrade", "websocket"),), is_first=True, is_over=True)
        await traced.close()
    told = [(message[1], message[8], message[10]) for message in place.tracer.kept]
    assert told[1:] == [
        ("response", "101", b""),
        ("message_up", "", b"ping"),
        ("message_down", "", b"pong"),
    ]


async def test_the_first_word_on_how_it_turned_out_counts(place: Place) -> None:
    """What was not recorded is answered with our own words: those are not the upstream's."""
    traced = place.tracing()
    async with place.tracer.listening():
        traced.start()
        catch = traced.asked(asked(), WHO, POLICY, is_let_through=True)
        assert catch is not None
        catch.headed(201, ())
        catch.add(b"made")
        catch.settled(201, (("a", "b"), ("trailer:c", "d")), is_first=True, is_over=False)
        assert traced.behind == 1
        catch.settled(503, (("ours", "1"),), is_first=False, is_over=True)
        await traced.close()
    assert place.tracer.kept[1][8:11] == ("201", (("a", "b"), ("trailer:c", "d")), b"made")


async def test_an_upload_is_caught_as_it_flows_by(place: Place) -> None:
    traced = place.tracing(body_bytes_max=10)
    async with place.tracer.listening():
        traced.start()
        catch = traced.asked(asked(streamed=True), WHO, POLICY, is_let_through=True)
        assert catch is not None
        assert traced.behind == 0
        catch.sent(b"12345678")
        catch.sent(b"9abcdef")
        catch.headed(201, ())
        catch.settled(201, (), is_first=True, is_over=True)
        catch.sent(b"late")
        refused = traced.asked(
            asked(streamed=True, call_id="c2"), WHO, POLICY, is_let_through=False
        )
        assert refused is not None
        await traced.close()
    told = [(message[1], message[2], message[10], message[11]) for message in place.tracer.kept]
    assert told[0] == ("request", 1_000, b"123456789a", 15)
    assert told[1][0] == "response"
    assert (told[2][0], told[2][2]) == ("request", b"")
    assert traced._held_bytes == 0


async def test_of_what_was_never_answered_there_is_no_answer(place: Place) -> None:
    traced = place.tracing()
    async with place.tracer.listening():
        traced.start()
        catch = traced.asked(asked(), WHO, POLICY, is_let_through=True)
        assert catch is not None
        catch.settled(None, (), is_first=True, is_over=True)
        await traced.close()
    assert [message[1] for message in place.tracer.kept] == ["request"]
