"""The program's processes, forked and not started anew: a start then takes no imports.

For a test that starts and kills so often that they would be most of its time. `forking` stands in
for `asyncio.create_subprocess_exec`. What runs in the child is the program's own. Linux only.
"""

import asyncio
import gc
import os
import signal
from asyncio import events
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn, Protocol

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

Main = Callable[[list[str]], int]
"""What runs in the child; gives its exit code."""


class Start(Protocol):
    """As the supervisor calls `asyncio.create_subprocess_exec`."""

    async def __call__(
        self, *command: str, stdin: int, stdout: int, pass_fds: Sequence[int] = ()
    ) -> "Forked": ...


class Forked:
    """As much of `asyncio.subprocess.Process` as a supervisor uses."""

    def __init__(self, pid: int, stdin: int, stdout: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._stdin = stdin
        self._handle = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._handle, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        os.close(self._handle)
        os.close(self._stdin)
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        return self.returncode or 0

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def forking(mains: Mapping[tuple[str, ...], Main]) -> Start:
    """By the words with which a command begins: what runs in its child, on the words after."""

    async def start(*command: str, stdin: int, stdout: int, pass_fds: Sequence[int] = ()) -> Forked:
        (theirs, ours), (said, say) = os.pipe(), os.pipe()
        (program,) = (words for words in mains if command[: len(words)] == words)
        arguments = list(command[len(program) :])
        pid = fork(mains[program], arguments, theirs, say, pass_fds)
        os.close(theirs)
        os.close(say)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(said, "rb", 0)
        )
        return Forked(pid, ours, reader)

    return start


def fork(
    main: Main, arguments: list[str], stdin: int, stdout: int, keep: Collection[int] = ()
) -> int:
    """The process number of the child, in which `main` runs."""
    pid = os.fork()
    if pid == 0:
        _child(main, arguments, stdin, stdout, keep)
    return pid


def _child(
    main: Main, arguments: list[str], stdin: int, stdout: int, keep: Collection[int]
) -> NoReturn:
    """As after an exec: no loop, no handlers, no descriptors but its own. It never returns, so
    that nothing of the parent's is closed or collected in it."""
    code = os.EX_SOFTWARE
    try:
        gc.freeze()
        events._set_running_loop(None)
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in keep:
                _close(int(name))
        code = main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else os.EX_SOFTWARE
    finally:
        os._exit(code)


def _close(handle: int) -> None:
    try:
        os.close(handle)
    except OSError:
        pass  # of the listing itself
