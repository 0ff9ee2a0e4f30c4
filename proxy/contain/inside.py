"""The inside of a containment: from the fork to the agent's program, and the first process there.

Three processes. The *door* leaves the user's namespaces and stays outside the new process
namespace, as the parent of the *first* process in it; that one makes the view, hands out the
listening socket, starts the *agent*, passes signals on to it and buries what it leaves. Nobody
inside may look into the first process, and when it ends, the kernel ends all others there.

Nothing is imported after the fork: the files of Python may not be readable any more.
"""

import array  # noqa: F401 - socket.send_fds imports it, where it cannot be read any more
import errno
import json
import os
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from proxy.contain import calls, kernel, view
from proxy.contain.account import Account, become

ADDRESS = ("127.0.0.1", 3128)
"""Where the agent reaches the proxy."""

BACKLOG_MAX = 128  # an agent's connections that wait to be accepted
MESSAGE_BYTES_MAX = 4_096

# Python ignores these for itself; a program expects them as they are at first.
_OF_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True, slots=True)
class Plan:
    """`account` is None to stay who we are. `heeded` are the signals that the agent gets as a
    program expects them; others that are ignored stay ignored."""

    command: Sequence[str]
    environ: Mapping[str, str]
    account: Account | None
    view: view.View
    heeded: tuple[int, ...]


class Line:
    """Messages between inside and outside, one JSON object each."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def fileno(self) -> int:
        return self._line.fileno()

    def say(self, *descriptors: int, **message: Any) -> None:
        """Raises OSError."""
        socket.send_fds(self._line, [json.dumps(message).encode()], descriptors)

    def hear(self) -> tuple[dict[str, Any], list[int]]:
        """The next message and its descriptors; nothing when the other side is gone."""
        text, descriptors, _, _ = socket.recv_fds(self._line, MESSAGE_BYTES_MAX, 1)
        return (json.loads(text) if text else {}), descriptors

    def close(self) -> None:
        self._line.close()


def open_door(line: Line, plan: Plan) -> NoReturn:
    """The process behind the fork. Never returns: what it has to say goes through the line."""
    try:
        _open_door(line, plan)
    except BaseException as error:
        _tell_failure(line, error)
    finally:
        os._exit(1)


def _open_door(line: Line, plan: Plan) -> None:
    for number in plan.heeded:
        signal.signal(number, signal.SIG_IGN)  # the agent's own are passed on by the first process
    _close_inherited(keep=line.fileno())
    if plan.account is not None:
        become(plan.account)
    kernel.die_with_parent()
    os.unshare(
        os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWPID | os.CLONE_NEWNET
        | os.CLONE_NEWIPC | os.CLONE_NEWUTS
    )  # fmt: skip
    line.say(step="unshared")
    if not line.hear()[0]:
        return
    kernel.die_with_parent()  # new namespaces are a change of user
    first = os.fork()
    if first == 0:
        try:
            _be_first(line, plan)
        except BaseException as error:
            _tell_failure(line, error)
        finally:
            os._exit(1)
    kernel.close_to_others()
    line.close()
    os.waitpid(first, 0)


def _be_first(line: Line, plan: Plan) -> None:
    kernel.die_with_parent()
    kernel.loopback_up()
    listener = socket.create_server(ADDRESS, backlog=BACKLOG_MAX)
    view.enter(plan.view)
    kernel.no_new_privileges()
    kernel.drop_capabilities()
    kernel.close_to_others()
    calls.filter_calls()
    line.say(listener.fileno(), step="listening")
    listener.close()
    if not line.hear()[0]:
        return
    ended, tell_end = os.pipe()
    os.set_blocking(tell_end, False)
    signal.set_wakeup_fd(tell_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    agent = _start(plan)
    if isinstance(agent, OSError):
        line.say(step="not_started", number=agent.errno)
        return
    line.say(step="started")
    _stand_by(line, agent, ended)


def _start(plan: Plan) -> int | OSError:
    """The agent's process, or why there is none."""
    told, tell = os.pipe()
    agent = os.fork()
    if agent == 0:
        try:
            signal.set_wakeup_fd(-1)
            for number in (*plan.heeded, *_OF_PYTHON):
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(plan.command[0], tuple(plan.command), plan.environ)  # noqa: S606 - its own words
        except OSError as error:
            os.write(tell, str(error.errno or errno.EIO).encode())
        finally:
            os._exit(127)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        failed = pipe.read()
    return OSError(int(failed), os.strerror(int(failed))) if failed else agent


def _stand_by(line: Line, agent: int, ended: int) -> None:
    """Until the agent ends, or the outside does."""
    while True:
        ready, _, _ = select.select([line.fileno(), ended], [], [])
        if ended in ready:
            os.read(ended, 512)
            for pid, status in _buried():
                if pid == agent:
                    line.say(step="ended", code=os.waitstatus_to_exitcode(status))
                    return
        if line.fileno() in ready:
            message, _ = line.hear()
            if not message:
                return
            os.kill(agent, message["signal"])


def _buried() -> list[tuple[int, int]]:
    """Each process that has ended since, with its status; orphans become ours, too."""
    found: list[tuple[int, int]] = []
    try:
        while (each := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(each)
    except ChildProcessError:
        pass  # none is left
    return found


def _close_inherited(keep: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            try:
                os.close(int(name))
            except OSError:
                pass  # the one that the list was read with


def _tell_failure(line: Line, error: BaseException) -> None:
    told = error.strerror or str(error) if isinstance(error, OSError) else repr(error)[:1_000]
    where = str(error.filename) if isinstance(error, OSError) and error.filename else ""
    number = error.errno if isinstance(error, OSError) else None
    try:
        line.say(step="failed", why=told, where=where, number=number)
    except OSError:
        pass  # nobody is there to hear it
