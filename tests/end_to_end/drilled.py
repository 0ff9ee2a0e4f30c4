"""`pullcord` as it is, which resolves names by the system; or a broken one.

Where a file `broken` is beside it, its gate and its rules see no cord at all: what a drill is for.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from policies import decide
from proxy import child, gate, supervisor
from proxy.cli.main import main

AS_CHILD = "--as-child"


def no_cord(*_: Any) -> None:
    return None


if __name__ == "__main__":
    again = (sys.executable, __file__, AS_CHILD)
    with ExitStack() as patched:
        patched.enter_context(patch.object(supervisor, "CHILD", again))
        if Path("broken").exists():
            for module in (decide, gate):
                patched.enter_context(patch.object(module, "standing", no_cord))
        if sys.argv[1] == AS_CHILD:
            sys.exit(child.main(sys.argv[2:]))
        main()
