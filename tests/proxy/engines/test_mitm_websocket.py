"""WebSockets that are cut, that flood, and whose caller is one no more."""

import asyncio

import pytest

from ledger.store import Grant
from proxy.clock import SystemClock
from proxy.identity import token_hash
from tests.proxy.engines import inside
from tests.proxy.engines.conftest import POLICY
from tests.proxy.engines.test_mitm_cords import (
    HANDSHAKE,
    frame,
    websocket_upstream,
)


async def opened(proxy, headers=b""):
    reader, writer = await proxy.connect()
    writer.write(HANDSHAKE + headers + proxy.credentials() + b"\r\n")
    return reader, writer, await reader.readuntil(b"\r\n\r\n")


def frames(raw):
    """The frames in what an upstream received: opcode and unmasked payload."""
    found, place = [], 0
    while place + 6 <= len(raw):
        size = raw[place + 1] & 0x7F
        key, start = raw[place + 2 : place + 6], place + 6
        body = raw[start : start + size]
        found.append((raw[place] & 15, bytes(b ^ key[i % 4] for i, b in enumerate(body))))
        place = start + size
    return found


def received(made):
    raw = bytes(made.received)
    return frames(raw[raw.index(b"\r\n\r\n") + 4 :])


async def test_a_ping_is_answered_and_carries_nothing_on(upstream, serving):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer, _ = await opened(proxy)
        writer.write(frame(b"secrets", 0x89) + frame(b"others", 0x8A) + frame(b"hello"))
        told = await reader.readuntil(b"\x81\x02ok")
        assert b"\x8a\x07secrets" in told
        writer.close()
    assert received(made)[:2] == [(9, b""), (1, b"hello")]


async def test_compression_is_never_negotiated(upstream, serving):
    """So no frame is longer than it looks."""
    made = await websocket_upstream(upstream)
    asked = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    async with serving(made.port) as proxy:
        _, writer, told = await opened(proxy, asked)
        assert b"permessage-deflate" not in told
        writer.close()
    assert b"sec-websocket-extensions" not in bytes(made.received).lower()


async def test_a_message_of_too_many_fragments_is_cut(upstream, serving):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer, _ = await opened(proxy)
        writer.write(frame(b"", 0x02) + frame(b"", 0x00) * inside.constant_of("FRAGMENTS_MAX"))
        assert b"\x03\xf1" in await reader.read()  # 1009
    assert [opcode for opcode, _ in received(made)] in ([], [8])


async def test_a_message_in_fragments_passes_whole(upstream, serving):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer, _ = await opened(proxy)
        writer.write(frame(b"he", 0x01) + frame(b"", 0x00) + frame(b"llo", 0x80))
        await reader.readuntil(b"\x81\x02ok")
        writer.close()
    assert b"".join(text for opcode, text in received(made) if opcode < 2) == b"hello"


@pytest.mark.parametrize("at_most, passes", [(10, True), (9, False)])
async def test_what_a_websocket_sends_is_counted_by_message(upstream, serving, at_most, passes):
    made = await websocket_upstream(upstream)
    policy = f"{POLICY}ceilings: [{{per: run, count: bytes_up, at_most: {at_most}}}]\n"
    async with serving(made.port, policy) as proxy:
        reader, writer, _ = await opened(proxy)
        writer.write(frame(b"first"))
        await reader.readuntil(b"\x81\x02ok")
        writer.write(frame(b"other"))
        told = await reader.readuntil(b"\x81\x02ok" if passes else b"\x88")
        assert passes or not told.startswith(b"\x81")
        writer.close()
    sent = [text for opcode, text in received(made) if opcode == 1]
    assert sent == [b"first", b"other"][: 1 + passes]


async def test_after_an_edit_a_message_is_judged_as_the_policy_knows_it(upstream, serving):
    """Here it knows nothing of such a call any more; elsewhere nobody notices."""
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer, _ = await opened(proxy)
        writer.write(frame(b"before"))
        await reader.readuntil(b"\x81\x02ok")
        file = proxy.data.parent / "config" / "policy.yaml"
        file.write_text(
            POLICY.replace(
                "api.socket: {match: {host: ws.test}",
                "api.other: {match: {host: ws.test, method: GET}",
            )
        )
        decider = proxy.service.decider
        while "api.other" not in decider.policy.tools:
            await asyncio.sleep(0.02)
        writer.write(frame(b"between"))
        await reader.readuntil(b"\x81\x02ok")
        file.write_text("version: 1\n")
        while decider.policy.tools:
            await asyncio.sleep(0.02)
        writer.write(frame(b"after"))
        assert (await reader.read())[:1] in (b"", b"\x88")
        writer.close()
    assert [text for opcode, text in received(made) if opcode == 1] == [b"before", b"between"]


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_token_that_ends_stops_an_open_websocket(upstream, serving, how):
    made = await websocket_upstream(upstream)
    async with serving(made.port, identity="token") as proxy:
        decider, now_us = proxy.service.decider, SystemClock().now_us()
        lasting_us = 500_000 if how == "expired" else 60_000_000
        grant = Grant("r1", "acme", expires_us=now_us + lasting_us)
        await decider.act(
            lambda store: store.mint(grant, token_hash("acme"), actor="ann", at_us=now_us, by=None)
        )
        reader, writer, told = await opened(proxy)
        assert b" 101 " in told
        writer.write(frame(b"before"))
        await reader.readuntil(b"\x81\x02ok")
        if how == "revoked":
            await decider.act(lambda store: store.revoke("r1", actor="ann", at_us=now_us))
        else:
            await asyncio.sleep((now_us + lasting_us - SystemClock().now_us()) / 1e6 + 0.01)
        writer.write(frame(b"after"))
        told = await reader.read()
        assert told[:1] in (b"", b"\x88")
        writer.close()
    assert b"after" not in [text for _, text in received(made)]
    (call,) = proxy.calls()
    assert (call["state"], call["reason"]) == ("unknown", "cut")
