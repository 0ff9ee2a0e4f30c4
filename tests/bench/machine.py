"""The machine as it was during a run: what bears on absolute figures, and what flatters ratios."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.load import cpu_ns
from tests.bench.variants import PROXY_CPU, Variant

QUIET_SHARE = 0.05  # of the proxies' CPU: what a machine at rest spends on its own


def circumstances(folder: Path) -> str:
    """The interpreter, what else runs, and the disk under `folder`."""
    version = ".".join(map(str, sys.version_info[:3]))
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"CPython {version}; {len(os.sched_getaffinity(0))} CPUs, load before the start {load}; "
        f"overwrite and sync of 32 KiB {sync_us(folder):.0f} us"
    )


def sync_us(folder: Path, times_each: int = 50) -> float:
    """The median time to overwrite 32 KiB and bring them to the disk."""
    block, times = os.urandom(32_768), []
    file_path = folder / "sync"
    if not file_path.exists():
        file_path.write_bytes(block)
    with file_path.open("r+b", buffering=0) as file:
        for _ in range(times_each):
            file.seek(0)
            start = time.perf_counter()
            file.write(block)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def taken_by_others(compared: list[Variant]) -> Callable[[], str]:
    """How much of the proxies' CPU went to other programs, from now to the call of the result.

    A proxy with two threads takes more of a contended CPU than one with a single thread, so on a
    machine that is not quiet the rates flatter pullcord; the CPU a call hardly changes.
    """
    proxies = [variant.pid for variant in compared if variant.pid is not None]

    def spent_seconds() -> tuple[float, float]:
        return _busy_seconds(), sum(sum(cpu_ns(pid).values()) for pid in proxies) / 1e9

    start, (busy, ours) = time.monotonic(), spent_seconds()

    def told() -> str:
        took, (busy_now, ours_now) = time.monotonic() - start, spent_seconds()
        others = max(0.0, ((busy_now - busy) - (ours_now - ours)) / took)
        word = "" if others <= QUIET_SHARE else "; NOT QUIET: believe the CPU column, not the rates"
        return f"other programs took {others:.0%} of the proxies' CPU{word}"

    return told


def busy() -> Callable[[], str]:
    """How much of all CPUs went to programs other than this one, from now to the call of the
    result."""

    def spent_seconds() -> tuple[float, float]:
        return _busy_seconds("cpu"), time.process_time()

    start, (all_of_it, ours) = time.monotonic(), spent_seconds()

    def told() -> str:
        took, (all_now, ours_now) = time.monotonic() - start, spent_seconds()
        others = max(0.0, ((all_now - all_of_it) - (ours_now - ours)) / took)
        others /= len(os.sched_getaffinity(0))
        word = "" if others <= QUIET_SHARE else "; NOT QUIET: believe no figure here"
        return f"other programs took {others:.0%} of the CPUs{word}"

    return told


def _busy_seconds(name: str = f"cpu{PROXY_CPU}") -> float:
    """What the proxies' CPU has spent on programs and interrupts since the machine started."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"{name} "):
            user, nice, system, _, _, hard, soft, *_ = map(int, line.split()[1:])
            return (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")
    return 0.0


def memory(compared: list[Variant]) -> str:
    """What each proxy holds now and the most it held."""
    told = []
    for variant in compared:
        if variant.pid is not None:
            status = Path(f"/proc/{variant.pid}/status").read_text()
            fields = dict(line.split(":", 1) for line in status.splitlines())
            now, most = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
            told.append(f"{variant.name} {now:.0f} MB (most {most:.0f})")
    return f"memory at the end: {', '.join(told)}"
