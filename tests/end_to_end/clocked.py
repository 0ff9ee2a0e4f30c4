"""A proxy whose system's clock a test sets."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from tests.end_to_end import running
from tests.end_to_end.running import Proxy

LAUNCH = Path(__file__).with_name("launch_clock.py")


@contextmanager
def clocks() -> Iterator[None]:
    """Inside the block every proxy that is started must be a ClockedProxy."""
    with patch.object(running, "LAUNCH", LAUNCH):
        yield


class ClockedProxy(Proxy):
    """Its clock is right until `set_clock` was called."""

    def start(self) -> None:
        if not self._offset.exists():
            self.set_clock(0)
        super().start()

    def set_clock(self, ahead_seconds: int) -> None:
        """So far ahead of the true time; behind it, if negative."""
        self._offset.with_suffix(".new").write_text(str(ahead_seconds))
        self._offset.with_suffix(".new").replace(self._offset)

    @property
    def _offset(self) -> Path:
        return self.folder / "clock"

    @property
    def _environment(self) -> dict[str, str]:
        return super()._environment | {"TEST_CLOCK": str(self._offset)}
