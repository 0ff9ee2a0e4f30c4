"""`ledger prune` beside a running proxy and without one: step by step, told in the record."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger import pruning as steps
from ledger import trace
from ledger.connection import open_file
from ledger.errors import LedgerBusy, LedgerError
from ledger.records import Ask
from ledger.trace import TraceStore
from ledger.traced import Caught, Side
from ledger.verification import Verified, verify
from policies.call import Effect, Request, ToolCall
from proxy import pruning, secret_keys
from proxy.operations import OperationError
from proxy.pruning import pruned_alone, size_bytes, wanted
from proxy.pulling import acted
from proxy.sealing import public_keys, seal_keys
from tests.ledger.trusted import called, trusted
from tests.ledger.world import START_US, World
from tests.proxy.controlled import NOW_US, Controlled, FakeClock, controlled

HOUR_US = 3_600 * 1_000_000


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


async def refused_calls(running: Controlled, amount: int) -> None:
    """Calls of nobody: each is one row."""
    request = Request("GET", "https", "mail.example", 443, "/inbox")
    for number in range(amount):
        call = ToolCall("mail.read", Effect.READ, "GET /inbox", b"f" * 32)
        ask = Ask(f"{running.clock.us}-{number}", running.clock.us, None, request, call)
        await running.service.decider.admit(ask, running.service.decider.policy)


def looked_at(data: Path) -> Verified:
    with closing(open_file(data / "ledger.db")) as reader:
        return verify(reader, public_keys(data / "private" / "seal.pub"))


def message(number: int) -> Caught:
    return Caught(
        call_id=f"c{number}",
        side=Side.REQUEST,
        at_us=NOW_US + number,
        run="r1",
        tenant="acme",
        tool="mail.read",
        release="",
        level="full",
        start="GET https://mail.example/",
        headers=(("content-type", "text/plain"),),
        body=b"hello %d" % number,
        body_bytes=7,
    )


def traced(data: Path, amount: int) -> None:
    store = TraceStore.open(data, b"k" * 32, lambda: NOW_US)
    store.keep([message(number) for number in range(amount)])
    store.close()


async def test_a_running_proxy_prunes_between_its_calls(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "WINDOW_ROWS", 3)
    await refused_calls(running, 10)
    running.clock.us += 3 * HOUR_US
    await refused_calls(running, 2)
    told = await running.asked("POST", "/v1/prune", older_than="2h")
    assert told == {
        "dry_run": False,
        "before": "2027-01-15T09:00:00.000Z",
        "rows": 10,
        "calls": 10,
        "trace": None,
    }
    (row,) = running.rows("ledger.pruned")
    assert row["detail"] == "10 rows, 10 calls, older than 2027-01-15T09:00:00.000Z"
    assert row["actor"]
    found = looked_at(running.data)
    assert (found.problems, found.pruned, found.unsealed) == ([], 10, 0)
    await refused_calls(running, 0)
    again = await running.asked("POST", "/v1/prune", older_than="2h")
    assert again["rows"] == 0
    assert len(running.rows("ledger.pruned")) == 1


async def test_a_dry_run_changes_nothing(running: Controlled) -> None:
    await refused_calls(running, 4)
    running.clock.us += 3 * HOUR_US
    await refused_calls(running, 1)
    told = await running.asked("POST", "/v1/prune", older_than="2h", dry_run=True)
    assert (told["rows"], told["calls"], told["dry_run"]) == (4, 4, True)
    assert running.rows("ledger.pruned") == []
    assert (await running.asked("POST", "/v1/prune", older_than="2h"))["rows"] == 4


async def test_rows_that_were_changed_end_it_and_what_went_before_is_told(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "WINDOW_ROWS", 3)
    await refused_calls(running, 10)
    running.clock.us += 3 * HOUR_US
    await refused_calls(running, 1)
    await running.service.decider.act(
        lambda store: store._conn.execute("UPDATE event SET run = 'x' WHERE seq = 8").rowcount
    )
    refused = await running.refused("POST", "/v1/prune", older_than="2h")
    assert refused.status == 409
    assert "row 8 is not as it was recorded" in str(refused)
    (row,) = running.rows("ledger.pruned")
    assert row["detail"].startswith("5 rows, 5 calls")
    assert [problem.what for problem in looked_at(running.data).problems] == ["row 8 was changed"]


async def test_messages_of_the_trace_go_where_that_is_asked(running: Controlled) -> None:
    traced(running.data, 5)
    running.clock.us += 3 * HOUR_US
    told = await running.asked(
        "POST", "/v1/prune", older_than="2h", trace_older_than="4h", dry_run=True
    )
    assert told["trace"]["messages"] == 5
    told = await running.asked("POST", "/v1/prune", older_than="2h", trace_older_than="4h")
    assert (told["trace"]["messages"], told["trace"]["left"]["messages"]) == (0, 5)
    told = await running.asked("POST", "/v1/prune", older_than="2h", trace_older_than="1h")
    assert (told["trace"]["messages"], told["trace"]["left"]["messages"]) == (5, 0)
    told = await running.asked("POST", "/v1/prune", older_than="2h", trace_max="0")
    assert told["trace"] == {"messages": 0, "bytes": 0, "left": {"messages": 0, "bytes": 0}}


def test_without_a_proxy_the_command_prunes_itself(tmp_path: Path) -> None:
    secret_keys.vault_key(tmp_path)
    world = trusted(World(tmp_path))
    called(world, "a", "b")
    traced(tmp_path, 3)
    world.wait(10_800)
    called(world, "new")
    now_us = world.now_us
    with pytest.raises(LedgerBusy):
        pruned_alone(tmp_path, wanted("2h", None, None, False, now_us), FakeClock(now_us), "ann")
    world.store.close()
    asked = wanted("2h", None, "10B", False, now_us)
    told = pruned_alone(tmp_path, asked, FakeClock(now_us), "ann")
    assert (told["rows"], told["calls"], told["trace"]["messages"]) == (4, 2, 3)
    found = looked_at(tmp_path)
    assert (found.problems, found.rows, found.pruned, found.unsealed) == ([], 3, 4, 0)
    opened = trace.open_trace(tmp_path)
    assert opened is not None
    assert trace.size(opened).bodies == 0
    opened.close()
    asked = wanted("2h", None, None, True, now_us)
    assert pruned_alone(tmp_path, asked, FakeClock(now_us), "ann")["rows"] == 0
    assert seal_keys(tmp_path).signer.key_id in found.last_seal.key_id  # type: ignore[union-attr]


def test_a_trace_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    World(tmp_path).store.close()
    asked = wanted("2h", "1d", None, False, START_US)
    told = pruned_alone(tmp_path, asked, FakeClock(START_US), "ann")
    assert told["trace"]["messages"] == 0
    assert not (tmp_path / "trace.db").exists()


@pytest.mark.parametrize("older", ["0s", "59m", "2099-01-01"])
def test_the_newest_hour_stays(older: str) -> None:
    with pytest.raises(OperationError, match="the newest hour stays"):
        wanted(older, None, None, False, NOW_US)
    assert wanted("1h", None, None, False, NOW_US).before_us == NOW_US - HOUR_US
    assert pruning.KEPT_SECONDS * 1_000_000 == HOUR_US


def test_what_is_no_time_is_told() -> None:
    with pytest.raises(LedgerError, match="'soon' is no time"):
        wanted("soon", None, None, False, NOW_US)
    with pytest.raises(LedgerError, match="'later' is no time"):
        wanted("2h", "later", None, False, NOW_US)


@pytest.mark.parametrize(
    "text, size",
    [("0", 0), ("12B", 12), ("500MB", 500_000_000), ("2 GiB", 2 * 1024**3), ("3kB", 3_000)],
)
def test_a_size_has_a_unit(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1.5GB", "2 XB", "many"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(OperationError, match="is no size"):
        size_bytes(text)


async def test_it_pauses_for_as_long_as_a_step_took(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    await refused_calls(running, 4)
    running.clock.us += 3 * HOUR_US
    await refused_calls(running, 1)
    sleep, slept = asyncio.sleep, []

    async def slowly(service: Any, act: Any) -> Any:
        running.clock.us += 40_000
        return await acted(service, act)

    async def noted(seconds: float) -> None:
        slept.append(round(seconds, 6))
        await sleep(0)

    monkeypatch.setattr(pruning, "acted", slowly)
    monkeypatch.setattr(asyncio, "sleep", noted)
    await running.asked("POST", "/v1/prune", older_than="2h")
    assert 0.04 in slept
