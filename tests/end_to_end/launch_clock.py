"""`launch.py` with a system's clock that a test sets: so many seconds from the true one.

`TEST_CLOCK` names a file that holds the seconds; it is read whenever the clock is.
"""

import os
import sys
import time
from pathlib import Path
from unittest.mock import patch

from proxy import child, clock, serve, supervisor
from proxy.cli.main import main
from tests.end_to_end.launch import AS_CHILD, RoutedDialer

OFFSET = Path(os.environ["TEST_CLOCK"])


def _wall_ns() -> int:
    return time.time_ns() + int(OFFSET.read_text()) * 1_000_000_000


class SetClock(clock.SystemClock):
    def __init__(self) -> None:
        super().__init__(_wall_ns)


if __name__ == "__main__":
    again = (sys.executable, __file__, AS_CHILD)
    with (
        patch.object(serve, "Dialer", RoutedDialer),
        patch.object(supervisor, "CHILD", again),
        patch.object(serve, "SystemClock", SetClock),
        patch.object(child, "SystemClock", SetClock),
    ):
        if sys.argv[1] == AS_CHILD:
            sys.exit(child.main(sys.argv[2:]))
        main()
