"""Calls without end through the real proxy: its memory stays what it was, and so does its log.

CALLS in all: `make proof` makes a million, which takes some twenty minutes; without it some
thousand show that the soak itself works, in ten seconds.
"""

import os
from pathlib import Path

import pytest

from ledger.connection import open_reader
from tests.bench import variants
from tests.bench.certificates import write_certificates
from tests.bench.load import calls_seen
from tests.end_to_end.running import Proxy
from tests.end_to_end.soaking import HOST, KINDS, POLICY, SAMPLES, Soak, Watch

CALLS = int(os.environ.get("CALLS", "4000"))
CALLS_ENOUGH = 200_000  # fewer say nothing about growth: caches fill meanwhile
GROWTH_AT_MOST = 1.05  # the memory of the last tenth in that of the second
LOGS_MB_AT_MOST = 64.0

pytestmark = [
    pytest.mark.proof,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="it reads Linux's /proc"),
]


async def test_memory_and_log_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten seconds; with a million calls some twenty minutes."""
    authority, certificate = write_certificates(tmp_path)
    with variants.upstream(tmp_path, certificate) as upstream:
        proxy = Proxy(tmp_path, POLICY, authority, {f"{HOST}:80": upstream.plain}, workers=1)
        proxy.start()
        assert proxy.process is not None
        watch = Watch(proxy.process.pid, tmp_path / "data")
        soak = Soak(proxy.port, tmp_path / "data", CALLS, watch)
        try:
            await soak.run()
        finally:
            with capsys.disabled():
                print(f"\n{watch.table()}\n{dict(soak.seen)} of {soak.runs} runs")
        made = calls_seen(upstream.plain)
        proxy.stop()
    assert proxy.broken() == []
    assert sum(soak.seen.values()) == CALLS
    assert set(soak.seen) == set(KINDS)
    assert made == CALLS - soak.seen["refused"] - soak.seen["again"]
    assert recorded(tmp_path / "data") == CALLS
    assert len(watch.samples) == SAMPLES
    assert max(sample.logs for sample in watch.samples) <= LOGS_MB_AT_MOST
    if CALLS >= CALLS_ENOUGH:
        assert watch.tenth(10) <= watch.tenth(2) * GROWTH_AT_MOST


def recorded(data: Path) -> int:
    """How many calls the ledger has."""
    reader = open_reader(data)
    try:
        (count,) = reader.execute("SELECT count(decision) FROM event").fetchone()
    finally:
        reader.close()
    return int(count)
