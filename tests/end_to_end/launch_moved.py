"""`launch.py` with a clock that a test moves on: time passes everywhere at once, as if it had been
waited for. `TEST_CLOCK` names a file that holds how many seconds ahead of the true time it is.
"""

import os
import sys
from pathlib import Path
from unittest.mock import patch

from proxy import child, clock, serve, supervisor
from proxy.cli.main import main
from tests.end_to_end.launch import AS_CHILD, RoutedDialer

AHEAD = Path(os.environ["TEST_CLOCK"])


class MovedClock(clock.SystemClock):
    """It is the time that passes and not the system's clock that jumps, so it can be trusted."""

    def now_us(self) -> int:
        return super().now_us() + round(float(AHEAD.read_text()) * 1_000_000)

    def stepped_seconds(self) -> float:
        return 0.0


if __name__ == "__main__":
    again = (sys.executable, __file__, AS_CHILD)
    with (
        patch.object(serve, "Dialer", RoutedDialer),
        patch.object(supervisor, "CHILD", again),
        patch.object(serve, "SystemClock", MovedClock),
        patch.object(child, "SystemClock", MovedClock),
    ):
        if sys.argv[1] == AS_CHILD:
            sys.exit(child.main(sys.argv[2:]))
        main()
