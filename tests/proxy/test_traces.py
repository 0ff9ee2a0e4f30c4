"""What people read of the trace, and what they are told where it has nothing."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from ledger import queries
from ledger.connection import open_reader
from ledger.errors import LedgerError
from ledger.redact import redact_key
from ledger.states import EventType
from ledger.trace import TraceStore
from ledger.traced import Caught, Side
from policies.call import Identity
from policies.load import load
from proxy import traces
from proxy.traces import Shown
from tests.ledger.world import World

KEY = redact_key(bytes(32))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "data")
    yield made
    made.store.close()


def keep(world: World, call_id: str, *sides: Side, text: str = "some words") -> None:
    store = TraceStore.open(world.data, KEY, lambda: world.now_us)
    store.keep([
        Caught(call_id, side, world.now_us, "r1", "acme", "pay", "", "full", "x", (),
               text.encode(), len(text))
        for side in sides
    ])  # fmt: skip
    store.close()


def shown(world: World, call_id: str) -> Shown:
    with closing(open_reader(world.data)) as reader, traces.opened(reader, world.data) as opened:
        row = queries.call(reader, call_id)
        assert row is not None
        return opened.of(row)


def test_of_a_whole_call_nothing_is_remarked(world: World) -> None:
    world.decided(world.ask("a"))
    world.settle("a", status=201)
    keep(world, "a", Side.REQUEST, Side.RESPONSE)
    told = shown(world, "a")
    assert [one.side for one in told.messages] == [Side.REQUEST, Side.RESPONSE]
    assert told.note == ""


def test_a_call_without_an_answer_misses_none(world: World) -> None:
    world.decided(world.ask("a"))
    world.settle("a", status=None, complete=False)
    keep(world, "a", Side.REQUEST)
    assert shown(world, "a").note == ""


def test_a_replay_names_the_first_call(world: World) -> None:
    world.decided(world.ask("a"))
    world.settle("a", status=201)
    world.decided(world.ask("b"))
    keep(world, "b", Side.REQUEST)
    assert shown(world, "b").note.endswith("pullcord ledger show a")


def test_an_answer_that_is_missing_is_told(world: World) -> None:
    world.decided(world.ask("a"))
    world.settle("a", status=201)
    keep(world, "a", Side.REQUEST)
    assert "nothing of its answer is in the trace" in shown(world, "a").note


@pytest.mark.parametrize(
    "since, until, is_told", [(-1, 1, True), (0, 0, True), (5, 9, False), (-9, -5, False)]
)
def test_a_loss_at_that_time_is_why(world: World, since: int, until: int, is_told: bool) -> None:
    world.decided(world.ask("a"))
    world.settle("a", status=201)
    loss = {"messages": 7, "runs": ["r1"], "since_us": world.now_us + since * 1_000_000, "why": "x"}
    at_us = world.now_us + until * 1_000_000
    detail = orjson.dumps(loss).decode()
    world.store.note(EventType.TRACE_LOST, actor="pullcord", at_us=at_us, detail=detail)
    note = shown(world, "a").note
    assert ("it may be lost, as 7 messages were then: x" in note) is is_told


def test_the_policy_then_is_why(world: World) -> None:
    text = "version: 1\ntools:\n  pay: {match: {host: api.example}, trace: none}\n"
    world.policy = load(text, "policy.yaml")
    world.store.record_policy(world.policy.digest, text, "policy.yaml", world.now_us)
    world.decided(world.ask("a"))
    assert "trace: none" in shown(world, "a").note


def test_what_was_pruned_is_told(world: World) -> None:
    for call_id in ("a", "b"):
        world.decided(world.ask(call_id))
        world.settle(call_id, status=201)
        for side in (Side.REQUEST, Side.RESPONSE):
            keep(world, call_id, side)
        world.now_us += 60_000_000
    store = TraceStore.open(world.data, KEY, lambda: world.now_us)
    assert store.retain(world.now_us - 90_000_000, None).messages == 2
    store.close()
    assert "it was pruned, by its age or for room" in shown(world, "a").note
    assert (len(shown(world, "b").messages), "pruned" in shown(world, "b").note) == (2, False)


def test_a_request_that_is_missing_is_told(world: World) -> None:
    world.decided(world.ask("a"))
    world.settle("a", status=201)
    keep(world, "a", Side.RESPONSE)
    assert "nothing of its request is in the trace" in shown(world, "a").note


def test_a_stranger_has_no_trace(world: World) -> None:
    world.decided(world.read("a", claimant=None))
    assert "nobody that pullcord knows" in shown(world, "a").note


def test_a_trace_that_cannot_be_read_is_said_to_be_so(world: World) -> None:
    world.decided(world.ask("a", claimant=Identity("r1", "acme")))
    (world.data / "trace.db").write_bytes(b"no database " * 1000)
    assert "the trace cannot be read" in shown(world, "a").note


def test_words_are_found(world: World) -> None:
    keep(world, "a", Side.REQUEST, text="a zebra and a horse")
    keep(world, "b", Side.RESPONSE, text="a horse")
    with closing(open_reader(world.data)) as reader, traces.opened(reader, world.data) as opened:
        assert opened.found("horse") == ["b", "a"]
        assert opened.found("zebra horse") == ["a"]
        with pytest.raises(LedgerError, match="one word"):
            opened.found("!")


def test_without_a_trace_a_search_says_so(world: World) -> None:
    with (
        closing(open_reader(world.data)) as reader,
        traces.opened(reader, world.data) as opened,
        pytest.raises(LedgerError, match="nothing is traced"),
    ):
        opened.found("horse")
