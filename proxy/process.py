"""Processes of ours as the kernel knows them: a number alone may have been given to another."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

from ledger.records import Worker


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
