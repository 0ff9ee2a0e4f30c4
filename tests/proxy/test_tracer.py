"""The process that keeps the trace: what it says of failures, and that it yields."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ledger import trace
from ledger.errors import LedgerError
from proxy import secret_keys, tracer
from proxy.tracer import Tracer
from proxy.tracing import Message


def caught(number: int, at_us: int = 1) -> Message:
    who = (f"c{number}", "request", at_us, "r1", "acme", "mail", "", "full")
    body = b"text %d" % number
    return (*who, "POST https://mail.example/", (), body, len(body), ((), (), ()))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "private").mkdir(mode=0o700)
    secret_keys.vault_key(tmp_path)
    return tmp_path


def told(logs: list[Any]) -> list[str]:
    return [entry["event"] for entry in logs]


async def test_a_failure_is_told_once_and_again_when_it_is_another(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer, "REOPEN_SECONDS", 0.0)
    place, keeping = data / "trace.db", Tracer(data, 30, 2**30)
    with capture_logs() as logs:
        place.write_bytes(b"no database " * 1000)
        for number in range(5):
            with pytest.raises(LedgerError, match="the trace is damaged; move it away"):
                keeping.keep([caught(number)])
        assert told(logs) == ["trace.unavailable"]
        place.unlink()
        place.mkdir()
        for number in range(5):
            with pytest.raises(LedgerError):
                keeping.keep([caught(number)])
        assert told(logs) == ["trace.unavailable"] * 2
        place.rmdir()
        keeping.keep([caught(9)])
        assert told(logs)[2:] == ["trace.kept_again"]
    await keeping.over()


async def test_batches_are_kept_while_much_is_given_up(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer, "RETAIN_PAUSE_SECONDS", 0.0)
    keeping = Tracer(data, 30, 2**30)
    keeping.keep([caught(number) for number in range(1_000)])
    retaining = asyncio.create_task(keeping.retain())
    turns, left = 0, 1_000
    reader = trace.open_trace(data)
    assert reader is not None
    while left:
        await asyncio.sleep(0)
        keeping.keep([caught(5_000 + turns, at_us=2**60)])
        turns += 1
        (left,) = reader.execute("SELECT count(*) FROM message WHERE at_us = 1").fetchone()
        assert turns < 1_000
    assert turns >= 4
    retaining.cancel()
    reader.close()
    await keeping.over()


async def test_a_trace_that_fails_meanwhile_ends_no_retention(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = Tracer(data, 30, 2**30)
    keeping.keep([caught(number) for number in range(1_000)])
    with capture_logs() as logs:
        retaining = asyncio.create_task(keeping.retain())
        await asyncio.sleep(0)
        keeping._close(LedgerError("it cannot be written"))
        await asyncio.sleep(3 * tracer.RETAIN_PAUSE_SECONDS)
        assert not retaining.done()
        retaining.cancel()
    assert told(logs) == ["trace.unavailable"]
    await keeping.over()


def test_whose_parent_is_gone_ends_without_a_traceback(data: Path) -> None:
    settings = json.dumps({"data": str(data), "keep_days": 1, "keep_bytes": 2**30})
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "proxy.tracer", settings],
            input=b"",
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")
