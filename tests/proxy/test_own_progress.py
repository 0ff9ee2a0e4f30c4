"""What a run tells of itself, over HTTP: that it got on, that it has ended, whom it started."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ledger.connection import open_reader
from policies.load import load
from policies.verdict import Level, Pull, Scope
from tests.proxy.controlled import NOW_US
from tests.proxy.test_own import POLICY, Running, started


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with started(tmp_path, "token", load(POLICY)) as made:
        await made.minted("root", agent="biller", release="r1")
        yield made


def told(tmp_path: Path) -> list[tuple[Any, ...]]:
    """The rows of the record that runs tell of themselves."""
    reader = open_reader(tmp_path / "data")
    try:
        return reader.execute(
            "SELECT type, run, tenant, parent, root, agent, release, actor, detail, seen "
            "FROM event WHERE type LIKE 'run.%' ORDER BY seq"
        ).fetchall()
    finally:
        reader.close()


async def test_progress_and_the_end_are_recorded(running: Running, tmp_path: Path) -> None:
    await running.child("child", "root")
    mark = {"mark": 3, "note": "chapter 3"}
    assert (await running.asked("child", "POST", "/self/progress", mark))[:2] == (
        200,
        {"run": "child", "mark": 3},
    )
    assert (await running.asked("child", "POST", "/self/end"))[:2] == (
        200,
        {"run": "child", "ended": True},
    )
    who = ("child", "acme", "root", "root", "biller", "r1")
    assert told(tmp_path) == [
        ("run.spawned", *who, "run:root", None, None),
        ("run.progressed", *who, "run:child", "chapter 3", '{"mark":3}'),
        ("run.ended", *who, "run:child", None, None),
    ]
    assert await running.reads("child") is None, "it only tells"


async def test_a_run_is_started_once_however_it_is_minted(running: Running, tmp_path: Path) -> None:
    await running.minted("by-hand", parent="root")
    await running.minted("by-hand", parent="root")
    await running.child("child", "by-hand")
    rows = [(row[1], row[3], row[4], row[7]) for row in told(tmp_path)]
    assert rows == [("by-hand", "root", "root", "ann"), ("child", "by-hand", "root", "run:by-hand")]


@pytest.mark.parametrize(
    "path, body, why",
    [
        ("/self/progress", b"", "your request is wrong: the body"),
        ("/self/progress", {}, "'mark' is missing"),
        ("/self/progress", {"mark": 0}, "mark: "),
        ("/self/progress", {"mark": 2**53}, "mark: "),
        ("/self/progress", {"mark": "1"}, "mark: "),
        ("/self/progress", {"mark": True}, "mark: "),
        ("/self/progress", {"mark": 1, "note": "x" * 201}, "note: "),
        ("/self/progress", {"mark": 1, "of": 5}, "unknown key 'of'; there are mark, note"),
        ("/self/end", {"why": "done"}, "unknown key 'why'; there are none"),
        ("/self/end", b"[]", "your request is wrong: the body"),
    ],
    ids=lambda each: str(each)[:40],
)
async def test_a_mistake_is_told_and_recorded_nowhere(
    running: Running, tmp_path: Path, path: str, body: Any, why: str
) -> None:
    status, answer, _ = await running.asked("root", "POST", path, body)
    assert (status, why in answer["error"]["message"]) == (400, True), answer
    assert told(tmp_path) == []


@pytest.mark.parametrize("path, body", [("/self/progress", {"mark": 1}), ("/self/end", {})])
async def test_a_run_tells_each_once_in_a_second(
    running: Running, tmp_path: Path, path: str, body: Any
) -> None:
    await running.minted("other")
    assert (await running.asked("root", "POST", path, body))[0] == 200
    for _ in range(3):
        status, answer, headers = await running.asked("root", "POST", path, body)
        assert (status, answer["reason"], headers["retry-after"]) == (429, "over_ceiling", "2")
        assert "once in a second" in str(answer)
    assert (await running.asked("other", "POST", path, body))[0] == 200
    running.clock.us += 1_100_000
    assert (await running.asked("root", "POST", path, body))[0] == 200
    assert len(told(tmp_path)) == 3


async def test_a_halted_run_tells_nothing(running: Running, tmp_path: Path) -> None:
    halt = Pull(Level.HALT, Scope.RUN, "root", "loops", "ann", NOW_US)
    await running.decider.act(lambda store: store.pull(halt))
    for path, body in (("/self/progress", {"mark": 1}), ("/self/end", {})):
        status, answer, _ = await running.asked("root", "POST", path, body)
        assert (status, answer["reason"]) == (403, "halted")
    assert told(tmp_path) == []


async def test_a_mark_is_a_call_for_the_ceilings(tmp_path: Path) -> None:
    policy = load(POLICY + "  - {per: run, count: calls, at_most: 2, within: 1m}\n")
    async with started(tmp_path, "token", policy) as running:
        await running.minted("root")
        found = [
            (await running.asked("root", "POST", "/self/progress", body))[0]
            for body in ({"mark": 1}, b"nothing", {"mark": 2})
        ]
        assert found == [200, 400, 429]


async def test_where_runs_name_themselves_there_are_no_children_and_marks_all_the_same(
    tmp_path: Path,
) -> None:
    async with started(tmp_path, "open", load(POLICY)) as running:
        running.secrets["r1"] = "acme"
        assert (await running.asked("r1", "POST", "/self/progress", {"mark": 1}))[0] == 200
        assert [row[:5] for row in told(tmp_path)] == [("run.progressed", "r1", "acme", None, "r1")]


async def test_the_paths_there_are_told_where_there_is_none(running: Running) -> None:
    status, answer, _ = await running.asked("root", "GET", "/elsewhere")
    assert status == 404
    assert answer["error"]["message"].endswith(
        "there are /self, /self/tokens, /self/steps, /self/progress, /self/end"
    )
