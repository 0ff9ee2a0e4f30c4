"""What a program's processes have in memory, as Linux tells it (proc(5))."""

from collections.abc import Iterator
from pathlib import Path


def family(pid: int) -> Iterator[int]:
    """The process and those that it started, as far as they are there still."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            yield from family(int(child))


def told_bytes(pid: int, name: str) -> int:
    """`VmRSS` is what it has, `VmHWM` the most that it had; nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


class Memory:
    """Of a program's processes: what each takes when it is idle, and at its most since then."""

    def __init__(self, pid: int) -> None:
        self._pids = list(family(pid))
        self._idle = {each: told_bytes(each, "VmRSS") for each in self._pids}
        for each in self._pids:
            Path(f"/proc/{each}/clear_refs").write_text("5")  # the mark of the most begins anew

    def more_bytes(self) -> int:
        return sum(told_bytes(pid, "VmHWM") - self._idle[pid] for pid in self._pids)
