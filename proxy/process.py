"""Processes of ours as the kernel knows them: a number alone may have been given to another."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from ledger.records import Worker

HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""The signals that a process of ours obeys while it serves."""


def serve[Result](main: Coroutine[Any, Any, Result], *, fast: bool = False) -> Result:
    """As `asyncio.run`, for a process that does nothing after it but end, and obeys HEEDED until
    then. `fast` is on uvloop's loop.

    A second request to end, while the loop closes, would meet half of it: a traceback about its
    closed pipe, or death by the signal in place of the exit code. From the end of `main` on they
    are ignored, by every thread.
    """

    async def until_it_ends() -> Result:
        try:
            return await main
        finally:
            loop = asyncio.get_running_loop()
            signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
            for number in HEEDED:
                loop.remove_signal_handler(number)  # which closing it would do, to the default
                signal.signal(number, signal.SIG_IGN)

    with asyncio.Runner(loop_factory=_fast_loop if fast else None) as runner:
        return runner.run(until_it_ends())


def _fast_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def settle_heap() -> None:
    """What was built at the start is left out of later collections: a full one over it stops the
    loop for some 50 ms, and with it a halt."""
    gc.collect()
    gc.freeze()


def started(pid: int) -> str:
    """The kernel's start time of a process, as text; empty when there is none, or only its
    remains (proc_pid_stat(5), fields 3 and 22)."""
    if sys.platform != "linux":
        told = subprocess.run(
            ("/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)),
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        return "" if told.startswith("Z") else told.partition(" ")[2].strip()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def lives(worker: Worker) -> bool:
    """Whether this very process is there still."""
    return bool(worker.started) and started(worker.pid) == worker.started


def kill(worker: Worker) -> None:
    """SIGKILL, which a stopped process gets too; never to another that has its number now."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform != "linux":
            if lives(worker):
                os.kill(worker.pid, signal.SIGKILL)
            return
        handle = os.pidfd_open(worker.pid)  # holds the process, whatever becomes of its number
        try:
            if lives(worker):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
