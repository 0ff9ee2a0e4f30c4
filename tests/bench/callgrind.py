"""Instructions a call, counted by valgrind: the same whatever else the machine does.

A proxy is started once. Counting begins when it is up and has answered; each kind of load is then
made in two lengths, and what a call costs is the difference by the calls. The instructions are
the program's own, not the kernel's: a sync to the disk or a switch of threads counts for nothing.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.bench.figures import CELLS, Cell
from tests.bench.load import Result, Task
from tests.bench.variants import Variant

CALLS, MORE_CALLS = 20, 100
COUNTED = tuple(cell for cell in CELLS if cell.clients == 1)

Start = Callable[[list[str]], AbstractContextManager[Variant]]
TaskFor = Callable[[Variant, Cell, int], Task]
"""Makes the task of so many calls of a cell."""


class Unusable(Exception):
    """valgrind cannot be used here; the message says why."""


def check() -> None:
    for program in ("valgrind", "callgrind_control"):
        if shutil.which(program) is None:
            raise Unusable(f"{program} is not installed; install your system's package valgrind")


def instructions(
    folder: Path, start: Start, task_for: TaskFor, run: Callable[[Task], Result]
) -> Iterator[tuple[Cell, float]]:
    """The instructions that one more call costs, cell by cell."""
    dumps = folder / "callgrind"
    wrapper = ["valgrind", "--tool=callgrind", "--quiet", "--instr-atstart=no"]
    wrapper.append(f"--callgrind-out-file={dumps}.%p")
    with start(wrapper) as variant:
        if variant.pid is None:
            raise Unusable("only a process of its own can be counted")
        dump = 0
        for cell in COUNTED:
            _control(variant.pid, "--instr=on")
            run(task_for(variant, cell, CALLS))
            _control(variant.pid, "--zero")
            counted = {}
            for calls in (CALLS, MORE_CALLS):
                run(task_for(variant, cell, calls))
                _control(variant.pid, "--dump")
                dump += 1
                counted[calls] = _total(folder, f"{dumps.name}.{variant.pid}.{dump}")
            _control(variant.pid, "--instr=off")
            yield cell, (counted[MORE_CALLS] - counted[CALLS]) / (MORE_CALLS - CALLS)


def _control(pid: int, order: str) -> None:
    command = ["callgrind_control", order, str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or "OK" not in done.stdout:
        raise Unusable(f"{' '.join(command)}: {done.stdout}{done.stderr}".strip())


def _total(folder: Path, name: str) -> int:
    """What one dump counted, over all threads."""
    with (folder / name).open() as dump:
        for line in dump:
            if line.startswith("summary:"):
                return int(line.split()[1])
    raise Unusable(f"valgrind wrote no sum into {name}")
