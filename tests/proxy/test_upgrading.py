"""A long ledger of an older version at the start: people are told, and it can be stopped."""

from pathlib import Path

import pytest
import structlog

from ledger import chain
from proxy.clock import SystemClock
from proxy.serve import running
from proxy.settings import Settings
from proxy.upgrading import TOLD_SECONDS, Stopped, Upgrading
from tests.ledger.test_pieces import ROWS, applied, is_chained, older


class SlowClock(SystemClock):
    """Each look at it is a second later."""

    looks = 0

    def monotonic_seconds(self) -> float:
        self.looks += 1
        return float(self.looks)


def test_it_is_told_every_two_seconds_and_not_more() -> None:
    signs: list[str] = []
    with structlog.testing.capture_logs() as logs:
        upgrading = Upgrading(SlowClock(), lambda: signs.append("busy"))
        for done in range(8):
            upgrading(done * 1_200_000, 10_000_000, "rows")
    assert TOLD_SECONDS == 2
    assert [line["told"] for line in logs] == [
        f"bringing the ledger up to date: {done} of 10,000,000 rows"
        for done in ("1,200,000", "3,600,000", "6,000,000", "8,400,000")
    ]
    assert signs == ["busy"] * 4


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(chain, "ROWS_IN_A_PIECE", 100)
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    (tmp_path / "data").mkdir(mode=0o700)
    older(tmp_path / "data")
    return Settings(config=tmp_path, data=tmp_path / "data", listen="127.0.0.1:0")


async def test_a_start_tells_how_far_it_is_and_serves_after(settings: Settings) -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(settings, upgrading=Upgrading(SlowClock())):
            assert is_chained(settings.data)
    told = [str(line["told"]) for line in logs if line["event"] == "ledger.upgrading"]
    assert told[0] == f"bringing the ledger up to date: 100 of {ROWS:,} rows"
    assert told[-1].endswith(" of 5 indexes")


class Stopping(Upgrading):
    """Somebody presses Ctrl-C when so many rows are done."""

    def __call__(self, done: int, total: int, what: str) -> None:
        if done == 300:
            self.stop()
        super().__call__(done, total, what)


async def test_a_start_that_is_stopped_goes_on_the_next_time(settings: Settings) -> None:
    with pytest.raises(Stopped, match="the next start goes on there"):
        async with running(settings, upgrading=Stopping(SystemClock())):
            pytest.fail("it served")
    assert "0006_trust" not in applied(settings.data)
    told: list[str] = []
    with structlog.testing.capture_logs() as logs:
        async with running(settings, upgrading=Upgrading(SlowClock())):
            pass
    told = [str(line["told"]) for line in logs if line["event"] == "ledger.upgrading"]
    assert told[0] == f"bringing the ledger up to date: 400 of {ROWS:,} rows"
