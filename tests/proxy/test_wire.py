"""Two ends of one connection: words, order, failures, and nothing but words."""

import asyncio
import os
import pickle
import socket
import struct
from decimal import Decimal

import pytest
from structlog.testing import capture_logs

from ledger.errors import Kind, LedgerError, LedgerUnavailable
from ledger.records import Ask, Bearer, OwnState
from ledger.trace_schema import TraceUnavailable
from policies.call import Effect, Identity, Request, ToolCall
from policies.ceilings import EMPTY, Ceiling, Count, Per, limit
from policies.verdict import Reason
from proxy.judging import NotJudged, PolicyMoved
from proxy.wire import Peer, PeerGone

EXPECTED = (NotJudged, PolicyMoved)

ASK = Ask(
    "id",
    7,
    Bearer("r1", b"h" * 32),
    Request("POST", "https", "pay.test", 443, "/"),
    ToolCall(
        "pay",
        Effect.WRITE,
        "",
        b"f" * 32,
        arguments=(("amount", (Decimal("5000.10"), "usd", True, None)),),
        unread=(("note", "why"),),
    ),
)


async def ends(verbs, others=None):
    """Two peers over a real socket, and their serving tasks."""
    sides = []
    for sock, known in zip(socket.socketpair(), (others or {}, verbs), strict=True):
        reader, writer = await asyncio.open_connection(sock=sock)
        peer = Peer(reader, writer, known)
        sides.append((peer, asyncio.create_task(peer.serve())))
    return sides


@pytest.fixture
async def connected():
    opened = []

    async def connect(verbs, others=None):
        opened.extend(made := await ends(verbs, others))
        return made[0][0], made[1][0]

    yield connect
    for peer, serving in opened:
        peer.close()
        await serving


async def test_our_values_arrive_as_they_were_sent(connected):
    heard: list[Ask] = []
    peer, _ = await connected({"admit": heard.append})
    await peer.call("admit", ASK)
    assert heard == [ASK]


async def test_what_a_run_may_know_of_its_ceilings_arrives(connected):
    ceiling = Ceiling("c", Per.RUN, Count.CALLS, 3, 60_000_000)
    state = OwnState(Identity("r1", "acme"), (), (limit(ceiling, EMPTY, 7),), ((ceiling, "r1"),))
    peer, _ = await connected({"own_state": lambda: state})
    assert await peer.call("own_state") == state


async def test_calls_are_heard_in_order_and_replies_come_when_they_are_ready(connected):
    order, gate = [], asyncio.Event()

    def verb(number):
        order.append(number)
        if number:
            return number
        return asyncio.ensure_future(late())

    async def late():
        await gate.wait()
        return "late"

    peer, _ = await connected({"do": verb})
    calls = [peer.call("do", number) for number in range(5)]
    assert await asyncio.gather(*calls[1:]) == [1, 2, 3, 4]
    assert order == [0, 1, 2, 3, 4]
    gate.set()
    assert await calls[0] == "late"


async def test_both_ends_may_call(connected):
    one, other = await connected({"who": lambda: "other"}, {"who": lambda: "one"})
    assert await one.call("who") == "other"
    assert await other.call("who") == "one"


async def test_what_is_only_told_is_not_replied_to(connected):
    heard = []
    peer, _ = await connected({"beat": lambda: heard.append(1), "now": lambda: len(heard)})
    peer.tell("beat")
    assert await peer.call("now") == 1


@pytest.mark.parametrize(
    "failure",
    [
        LedgerUnavailable(Kind.FULL, "no room"),
        NotJudged(Reason.CLOCK_STEPPED, "by +3600 s"),
        PolicyMoved(),
        LedgerError("a release needs a reason"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_a_failure_arrives_as_what_it_was(connected, failure):
    async def fail():
        raise failure

    peer, _ = await connected({"fail": lambda: asyncio.ensure_future(fail())})
    with pytest.raises(type(failure)) as told:
        await peer.call("fail")
    assert str(told.value) == str(failure)
    assert vars(told.value) == vars(failure)


@pytest.mark.parametrize(
    "failure, lines",
    [
        (LedgerUnavailable(Kind.FULL, "no room"), 0),
        (TraceUnavailable(Kind.CORRUPT, "trace.db"), 0),
        (NotJudged(Reason.CLOCK_STEPPED, "by +3600 s"), 0),
        (PolicyMoved(), 0),
        (ValueError("a bug"), 1),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_only_what_nobody_expects_is_logged_with_its_stack(connected, failure, lines):
    def fail():
        raise failure

    peer, _ = await connected({"fail": fail})
    with capture_logs() as logs, pytest.raises((LedgerError, RuntimeError, *EXPECTED)) as told:
        await peer.call("fail")
    assert str(failure) in str(told.value), "the trace's failures are said to be the trace's"
    assert len(logs) == lines
    with capture_logs() as logs:
        peer.tell("fail")  # nobody is told of it but the log
        with pytest.raises((LedgerError, RuntimeError, *EXPECTED)):
            await peer.call("fail")
    assert len(logs) == 1 + lines


async def test_a_verb_nobody_knows_is_a_failure_of_that_call_alone(connected):
    peer, _ = await connected({"now": lambda: 1})
    with pytest.raises(RuntimeError, match="KeyError"):
        await peer.call("never")
    assert await peer.call("now") == 1


async def test_whoever_waits_is_told_when_the_other_end_is_gone(connected):
    peer, other = await connected({"wait": asyncio.Event().wait, "hang": lambda: forever()})

    def forever():
        return asyncio.get_running_loop().create_future()

    waiting = peer.call("hang")
    await asyncio.sleep(0)
    other.close()
    with pytest.raises(PeerGone):
        await waiting
    with pytest.raises(PeerGone):
        await peer.call("now")


class Forged:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/never-made",))


@pytest.mark.parametrize(
    "said",
    [Forged(), os.getcwd, Exception("no word"), socket.AF_INET, pytest.raises],
    ids=["code", "function", "exception", "other enumeration", "other module"],
)
async def test_a_frame_that_names_anything_else_ends_the_connection(said, tmp_path):
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    heard: list[object] = []
    peer = Peer(reader, writer, {"say": heard.append})
    serving = asyncio.create_task(peer.serve())
    frame = pickle.dumps([(0, 1, "say", (said,))])
    there.sendall(struct.pack("!I", len(frame)) + frame)
    async with asyncio.timeout(5):
        await serving
    assert heard == []
    assert not os.path.exists("/tmp/never-made")
    there.close()


async def test_a_frame_of_absurd_length_ends_the_connection():
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    serving = asyncio.create_task(Peer(reader, writer, {}).serve())
    there.sendall(b"\xff\xff\xff\xff")
    async with asyncio.timeout(5):
        await serving
    there.close()
