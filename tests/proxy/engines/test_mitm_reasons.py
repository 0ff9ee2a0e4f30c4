"""The ledger's reason for a call that was let through and then stopped is what its agent was told.

A read whose answer broke off is not done; one whose agent had enough of it is.
"""

import asyncio
import re
from contextlib import closing

import pytest

from ledger import queries
from ledger.connection import open_reader
from ledger.filters import parse
from proxy import head
from proxy.dial import Dialer
from tests.proxy.engines.conftest import POLICY
from tests.proxy.engines.test_mitm_cords import halt, pull
from tests.proxy.engines.test_mitm_upstream import OK, answering, get, post, reset

EVENT = b"data: 1\n\n"
BEGUN = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n9\r\n%b\r\n" % EVENT
)
NO_ADDRESS = POLICY.replace(", allow_addresses: [127.0.0.0/8]", "")


async def hanging(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(BEGUN)
    await reader.read()


async def mute(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    await reader.read()


async def resetting(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    reset(writer)


async def ended(proxy):
    """The one call's row, once its outcome is recorded."""
    while True:
        for call in proxy.calls():
            if call["state"] != "pending":
                return call["decision"], call["reason"], call["state"], call["status"]
        await asyncio.sleep(0.01)


async def started(proxy, until=EVENT):
    reader, writer = await proxy.connect()
    writer.write(get(proxy))
    await reader.readuntil(until)
    return reader, writer


async def test_a_read_that_a_halt_cut(upstream, serving):
    made = await upstream(hanging)
    async with serving(made.port) as proxy:
        reader, _ = await started(proxy)
        assert await pull(proxy, halt()) == 1
        assert b"0\r\n\r\n" not in await reader.read()
        assert await ended(proxy) == ("allow", "cut", "unknown", 200)


async def test_a_read_that_the_upstream_broke_off(upstream, serving):
    made = await upstream(answering(BEGUN))
    async with serving(made.port) as proxy:
        reader, _ = await started(proxy)
        assert b"0\r\n\r\n" not in await reader.read()
        assert await ended(proxy) == ("allow", "upstream_failed", "unknown", 200)


async def test_a_read_that_its_agent_left(upstream, serving):
    made = await upstream(hanging)
    async with serving(made.port) as proxy:
        _, writer = await started(proxy)
        writer.close()
        assert await ended(proxy) == ("allow", "allowed", "done", 200)


async def test_a_read_that_its_agent_left_before_the_answer(upstream, serving):
    made = await upstream(mute)
    async with serving(made.port) as proxy:
        _, writer = await proxy.connect()
        writer.write(get(proxy))
        while not made.connections:
            await asyncio.sleep(0.01)
        writer.close()
        assert await ended(proxy) == ("allow", "allowed", "unknown", None)


@pytest.mark.parametrize(
    "script, request_of, told, shown",
    [
        (resetting, post, b"504", ("outcome_unknown", "unknown")),
        (resetting, get, b"502", ("upstream_failed", "unknown")),
        (None, post, b"502", ("not_sent", "not_sent")),
        (None, get, b"502", ("not_sent", "not_sent")),
    ],
)
async def test_a_call_that_the_upstream_failed(upstream, serving, script, request_of, told, shown):
    port = (await upstream(script)).port if script else 1  # nothing listens on port 1
    async with serving(port) as proxy:
        answer = await proxy.exchange(request_of(proxy))
        assert answer[9:12] == told
        assert f"reason={shown[0]};".encode() in answer
        assert await ended(proxy) == ("allow", *shown, None)


@pytest.mark.parametrize("request_of", [get, post])
async def test_a_call_whose_address_is_not_allowed(upstream, serving, request_of):
    made = await upstream(answering(OK))
    async with serving(made.port, NO_ADDRESS) as proxy:
        assert b"reason=address_refused;" in await proxy.exchange(request_of(proxy))
        assert await ended(proxy) == ("allow", "address_refused", "not_sent", None)
        with closing(open_reader(proxy.data)) as reader:
            found = list(queries.calls(reader, parse("reason:address_refused", 0)))
            assert len(found) == 1
            assert not list(queries.calls(reader, parse("reason:allowed", 0)))


@pytest.mark.parametrize("request_of", [get, post])
async def test_a_call_that_a_halt_stopped_before_it_was_sent(
    upstream, serving, monkeypatch, request_of
):
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        dial = Dialer.dial

        async def pulled_meanwhile(*where):
            await proxy.service.decider.act(lambda store: store.pull(halt()))
            return await dial(*where)

        monkeypatch.setattr(Dialer, "dial", pulled_meanwhile)
        answer = await proxy.exchange(request_of(proxy))
        (told,) = re.findall(rb"reason=(\w+);", answer)
        assert told in (b"halted", b"cut")  # whichever came first: its last look, or the sweep
        assert await ended(proxy) == ("allow", told.decode(), "not_sent", None)


async def test_a_call_whose_answer_our_own_failure_swallowed(upstream, serving, monkeypatch):
    def failing(*_args, **_kwargs):
        raise RuntimeError("a bug")

    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        monkeypatch.setattr(head, "agent_headers", failing)
        _, writer = await proxy.connect()
        writer.write(get(proxy))
        decision, reason, state, _status = await ended(proxy)
        assert (decision, reason, state) == ("allow", "policy_failure", "unknown")
