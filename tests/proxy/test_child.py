"""How an engine's process ends when its decider is being stopped at the same moment."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger.errors import Kind, LedgerUnavailable
from ledger.records import Worker
from policies.load import load
from proxy.child import _left
from proxy.clock import SystemClock
from proxy.remote import RemoteDecider
from proxy.wire import Peer


def cancelled() -> "asyncio.Future[None]":
    """What a decider that stops makes of a goodbye it has begun to hear."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    return future


def unavailable() -> None:
    raise LedgerUnavailable(Kind.OTHER, "closed")


@pytest.mark.parametrize("leave", [cancelled, unavailable])
async def test_a_goodbye_that_a_stopping_decider_cannot_take_is_no_failure(
    tmp_path: Path, leave: Callable[[], object]
) -> None:
    heard: list[object] = []

    def goodbye() -> object:
        heard.append("leave")
        return leave()

    async def decides(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verbs: dict[str, Callable[..., object]] = {"hello": heard.append, "leave": goodbye}
        await Peer(reader, writer, verbs).serve()

    clock, worker = SystemClock(), Worker("w1", 1, "", 0)
    server = await asyncio.start_unix_server(decides, str(tmp_path / "socket"))
    remote = RemoteDecider(tmp_path / "socket", worker, clock, load("version: 1", "none"))
    connection = asyncio.create_task(remote.run())
    async with asyncio.timeout(10), server:
        while not heard:
            await asyncio.sleep(0.01)
        await _left(remote)
        assert heard == [worker, "leave"]
        connection.cancel()
        await asyncio.wait([connection])
