"""Starting a contained agent, and standing by until it ends: the side that stays as it is."""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from proxy.contain import calls
from proxy.contain.account import Account
from proxy.contain.errors import ContainError
from proxy.contain.inside import Line, Plan, open_door
from proxy.contain.relay import Relay
from proxy.contain.view import View, everywhere, listening, outermost

KILLED = -9

# Places whose failure means that this system gives no namespaces, or only half of them.
_OF_NAMESPACES = ("", "/", "/proc")

# What switches user namespaces off, and what switches them on again.
_SWITCHES = (
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


class Contained:
    """A contained agent as a child process: what `subprocess.Popen` is for others."""

    def __init__(self, plan: Plan, host: str, port: int) -> None:
        """Starts it. Raises ContainError, and OSError as `subprocess.Popen` does when there is no
        such command."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line = Line(ours)
        self._code: int | None = None
        self._relaying = ExitStack()
        sys.stdout.flush()
        sys.stderr.flush()
        self._door = os.fork()
        if self._door == 0:
            ours.close()
            open_door(Line(theirs), plan)
        theirs.close()
        try:
            self._let_in(plan.account, host, port)
        except BaseException:
            self._end()
            raise

    def _let_in(self, account: Account | None, host: str, port: int) -> None:
        self._hear("unshared")
        _map_user(self._door, account)
        self._line.say(step="mapped")
        _, (listener,) = self._hear("listening")
        self._relaying.enter_context(Relay(socket.socket(fileno=listener), host, port))
        self._line.say(step="start")
        self._hear("started")

    def _hear(self, step: str) -> tuple[dict[str, Any], list[int]]:
        message, descriptors = self._line.hear()
        if message.get("step") == step:
            return message, descriptors
        if message.get("step") == "not_started":
            raise OSError(message["number"], os.strerror(message["number"]))
        raise _refusal(message)

    def poll(self) -> int | None:
        """The exit code, once `wait` has it."""
        return self._code

    def send_signal(self, number: int) -> None:
        try:
            self._line.say(signal=number)
        except OSError:
            pass  # it has ended

    def wait(self) -> int:
        """The exit code, or the negative number of the signal that ended it."""
        if self._code is None:
            message, _ = self._line.hear()
            self._code = message.get("code", KILLED)
            self._end()
        return self._code

    def _end(self) -> None:
        """Without its line, the first process inside ends, and with it all others there."""
        self._line.close()
        self._relaying.close()
        os.waitpid(self._door, 0)


def view_for(data: Path, public: Sequence[Path], kept: Sequence[Path], directory: Path) -> View:
    """What an agent that works in `directory` sees. Raises ContainError when that is a place that
    it must not see."""
    mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    sockets = Path("/proc/net/unix").read_text("utf-8", "surrogateescape")
    hidden = tuple(place for place in everywhere(data.resolve(), mounts))
    if any(directory.is_relative_to(place) for place in hidden):
        raise ContainError(
            f"a contained agent cannot work in {directory}: nothing of {data} is shown to it; "
            "go to another directory"
        )
    writable = [path.resolve() for path in kept if not directory.is_relative_to(path.resolve())]
    read_only = [place for path in outermost(writable) for place in everywhere(path, mounts)]
    contents = {path.resolve().relative_to(data.resolve()): path.read_bytes() for path in public}
    return View(directory, hidden, contents, tuple(read_only), listening(sockets))


def check_system() -> None:
    """Raises ContainError where this system cannot do it at all."""
    if sys.platform != "linux":
        raise ContainError(
            "--contain needs the namespaces of Linux; here, give the agent a user of its own: "
            "--user NAME"
        )
    if not calls.is_known():
        raise ContainError(
            f"--contain has no filter of system calls for {os.uname().machine}; give the agent a "
            "user of its own: --user NAME"
        )


def switched_off(switches: Sequence[tuple[str, str, str]] = _SWITCHES) -> str:
    """Which setting keeps users from having namespaces, and what to type; nothing if none does."""
    for path, off, on in switches:
        try:
            if Path(path).read_text("ascii").strip() == off:
                return f"{on.partition('=')[0]} is {off}; type: sudo sysctl -w {on}"
        except OSError:
            continue  # this kernel has no such switch
    return ""


def _map_user(process: int, account: Account | None) -> None:
    """The user stays who he is: one number, mapped to itself (user_namespaces(7))."""
    uid, gid = (account.uid, account.gid) if account else (os.geteuid(), os.getegid())
    place = Path("/proc", str(process))
    try:
        (place / "setgroups").write_text("deny")
        (place / "uid_map").write_text(f"{uid} {uid} 1")
        (place / "gid_map").write_text(f"{gid} {gid} 1")
    except OSError as error:
        raise _no_namespaces(error.strerror or str(error)) from error


def _refusal(message: Mapping[str, Any]) -> ContainError:
    if message.get("step") != "failed":
        return ContainError(
            "the contained process ended before it could start the agent; "
            "the kernel's log may say why"
        )
    told = f"{message['where']}: {message['why']}" if message["where"] else message["why"]
    if message["where"] in _OF_NAMESPACES and message["number"] is not None:
        return _no_namespaces(told)
    return ContainError(f"the agent cannot be contained: {told}")


def _no_namespaces(told: str) -> ContainError:
    remedy = switched_off() or (
        "in a container, allow them (Docker: --security-opt seccomp=unconfined "
        "--security-opt systempaths=unconfined)"
    )
    return ContainError(
        f"--contain needs user namespaces, which this system does not give ({told}): {remedy}; "
        "or give the agent a user of its own: --user NAME"
    )
