"""Long answers as the gate keeps them, without an engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event

import pytest

from ledger.answer_files import AnswerFiles
from ledger.answer_writer import AnswerWriter
from ledger.records import AnswerFile
from policies.call import Request
from proxy import long_answers
from proxy.identity import Credentials
from proxy.live import Live
from proxy.refuse import Refusal
from tests.proxy.controlled import Controlled, controlled

POLICY = """
version: 1
tools:
  reports: {match: {host: reports.example, method: POST}}
"""
WRITE = Request("POST", "https", "reports.example", 443, "/send", body=b"{}")
WHO = Credentials("r1", "acme")
BODY = bytes(2**20) + b"end"


@asynccontextmanager
async def flowing(folder: Path) -> AsyncIterator[tuple[Controlled, Live]]:
    """A write whose long answer has come."""
    async with controlled(folder, POLICY) as running:
        running.gate.files = AnswerFiles(running.data)
        live = await running.gate.ask(WRITE, WHO, running)
        assert isinstance(live, Live)
        assert running.gate.sent(live) is None
        running.gate.body(live, BODY[:1000])
        running.gate.body(live, BODY[1000:])
        assert live.answer is None
        yield running, live


async def asked_again(running: Controlled) -> Refusal:
    told = await running.gate.ask(WRITE, WHO, running)
    assert isinstance(told, Refusal)
    return told


class Slow:
    """A disk that is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.goes_on = asyncio.Event(), Event()
        loop, told = asyncio.get_running_loop(), AnswerWriter.finish

        def finish(writer: AnswerWriter) -> AnswerFile | None:
            loop.call_soon_threadsafe(self.reached.set)
            self.goes_on.wait(10)
            return told(writer)

        monkeypatch.setattr(AnswerWriter, "finish", finish)


@pytest.mark.parametrize("is_settled", [False, True])
async def test_what_cuts_a_call_does_not_touch_an_answer_that_came_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_settled: bool
) -> None:
    slow = Slow(monkeypatch)
    async with flowing(tmp_path) as (running, live):
        if is_settled:
            file, live.file = live.file, None
            await running.gate.settle(live, status=200, complete=True, ended=False)
            live.file = file
        async with asyncio.TaskGroup() as ending:
            if is_settled:
                ending.create_task(running.gate.keep(live, 200, ()))
            else:
                ending.create_task(running.gate.settle(live, status=200, complete=True))
            await slow.reached.wait()
            await running.gate.settle(live, status=None, complete=False, rule="cut")
            slow.goes_on.set()
        told = await asked_again(running)
        assert told.status == 200
        assert told.file is not None
        assert told.file.size_bytes == len(BODY)
        told.file.close()


async def test_a_disk_that_takes_too_long_loses_the_answer_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    monkeypatch.setattr(long_answers, "FINISH_SECONDS", 0.0)
    async with flowing(tmp_path) as (running, live):
        assert await running.gate.settle(live, status=200, complete=True) is None
        slow.goes_on.set()
        assert (await asked_again(running)).status == 409


async def test_a_disk_that_lags_behind_slows_no_answer(tmp_path: Path) -> None:
    async with controlled(tmp_path, POLICY) as running:
        later: list[object] = []
        running.gate.files = AnswerFiles(running.data, later.append)
        live = await running.gate.ask(WRITE, WHO, running)
        assert isinstance(live, Live)
        running.gate.sent(live)
        for _ in range(20):
            running.gate.body(live, BODY)
        assert not (running.data / "answers").exists()
        assert await running.gate.settle(live, status=200, complete=True) is None
        assert (await asked_again(running)).status == 409
