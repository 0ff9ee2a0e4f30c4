"""Instructions a call, counted by valgrind: the same whatever else the machine does.

A proxy is started once. Counting begins when it is up and has answered; each kind of load is then
made in two lengths, and what a call costs is the difference by the calls. The instructions are
the program's own, not the kernel's: a sync to the disk or a switch of threads counts for nothing.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.clients import Task
from tests.bench.figures import Cell
from tests.bench.load import Result
from tests.bench.variants import Variant

LOOK_SECONDS, LOOKS_AT_REST = 0.02, 5
REST_SECONDS_MAX = 60.0

Start = Callable[[list[str]], AbstractContextManager[Variant]]
TaskFor = Callable[[Variant, Cell, int], Task]
"""Makes the task of so many calls of a cell."""
Run = Callable[[Task], Result]


class Unusable(Exception):
    """valgrind cannot be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many calls are made: to warm up, and in the two loads that are compared."""

    warm: int
    few: int
    more: int


def check() -> None:
    for program in ("valgrind", "callgrind_control"):
        if shutil.which(program) is None:
            raise Unusable(f"{program} is not installed; install your system's package valgrind")


class Counter:
    """A process under callgrind, which counts from `go` to `halt`."""

    def __init__(self, folder: Path, pid: int, name: str) -> None:
        self._folder, self._pid, self._name = folder, pid, f"{name}.{pid}"
        self._dumps = 0

    def go(self) -> None:
        self._control("--instr=on")

    def halt(self) -> None:
        self._control("--instr=off")

    def during(self, act: Callable[[], object]) -> int:
        """The instructions of all threads, until they have nothing more to do for it: much of a
        call is done behind its answer."""
        self._await_rest()
        self._control("--zero")
        act()
        self._await_rest()
        self._control("--dump")
        self._dumps += 1
        return _total(self._folder / f"{self._name}.{self._dumps}")

    def _await_rest(self) -> None:
        deadline, restful = time.monotonic() + REST_SECONDS_MAX, 0
        while restful < LOOKS_AT_REST:
            restful = restful + 1 if _rests(self._pid) else 0
            if time.monotonic() > deadline:
                raise Unusable(f"it never rests: process {self._pid} works on without a call")
            time.sleep(LOOK_SECONDS)

    def _control(self, order: str) -> None:
        command = ["callgrind_control", order, str(self._pid)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or "OK" not in done.stdout:
            raise Unusable(f"{' '.join(command)}: {done.stdout}{done.stderr}".strip())


def instructions(
    folder: Path,
    start: Start,
    task_for: TaskFor,
    run: Run,
    counted: Sequence[Cell],
    lengths: Lengths,
) -> Iterator[tuple[Cell, float]]:
    """The instructions that one more call costs, cell by cell."""
    name = "callgrind"
    wrapper = ["valgrind", "--tool=callgrind", "--quiet", "--instr-atstart=no"]
    wrapper.append(f"--callgrind-out-file={folder / name}.%p")
    with start(wrapper) as variant:
        if variant.pid is None:
            raise Unusable("only a process of its own can be counted")
        counter = Counter(folder, variant.pid, name)
        counter.go()
        for cell in counted:
            run(task_for(variant, cell, lengths.warm))
        for cell in counted:
            spent = {}
            for calls in (lengths.few, lengths.more):
                spent[calls] = counter.during(partial(run, task_for(variant, cell, calls)))
            difference = spent[lengths.more] - spent[lengths.few]
            yield cell, difference / (lengths.more - lengths.few)
        counter.halt()


def _rests(pid: int) -> bool:
    """Whether no thread runs, is about to, or waits for the disk (proc_pid_stat(5), field 3)."""
    try:
        told = [Path(each.path, "stat").read_text() for each in os.scandir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):  # a thread ended just now
        return False
    return all(stat.rpartition(")")[2].split()[0] == "S" for stat in told)


def _total(dump_path: Path) -> int:
    """What one dump counted, over all threads."""
    with dump_path.open() as dump:
        for line in dump:
            if line.startswith("summary:"):
                return int(line.split()[1])
    raise Unusable(f"valgrind wrote no sum into {dump_path.name}")
