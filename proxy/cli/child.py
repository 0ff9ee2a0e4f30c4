"""A child process in the foreground: its signals are ours and its exit code becomes ours."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from proxy.cli.terminal import Failure

# What a shell answers for a command that is not there, or is no program.
NOT_FOUND, NOT_EXECUTABLE = 127, 126

FORWARDED = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# The terminal sends these to the whole foreground group, so to the child, too.
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


class Child(Protocol):
    """A process that was started; `subprocess.Popen` is one."""

    def poll(self) -> int | None: ...
    def send_signal(self, number: int) -> None: ...

    def wait(self) -> int:
        """The exit code, or the negative number of the signal that ended it."""


def ended_with(name: str, start: Callable[[], Child]) -> int:
    """Run to the end; the exit code, or 128 and the signal's number. Raises Failure when the
    command of this name cannot be started; `start` raises OSError then."""
    child: Child | None = None
    early: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        if number in FROM_TERMINAL and _in_foreground():
            return
        if child is None:
            early.append(number)
        elif child.poll() is None:
            child.send_signal(number)

    # What is ignored (by nohup, say) stays ignored, and the child inherits that.
    heeded = [number for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in heeded}
    try:
        child = start()
        for number in early:
            child.send_signal(number)
        code = child.wait()
    except FileNotFoundError:
        raise Failure(f"there is no command {name!r}", NOT_FOUND) from None
    except OSError as error:
        raise Failure(f"cannot run {name!r}: {error.strerror}", NOT_EXECUTABLE) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _in_foreground() -> bool:
    """Whether the terminal's keys reach us and the child as one group."""
    try:
        terminal = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
