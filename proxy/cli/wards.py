"""How `run` keeps a command away from the proxy: not at all, by another user, by containment."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from proxy.cli.child import FORWARDED, Child
from proxy.cli.terminal import Failure, warn
from proxy.contain.account import (
    Account,
    can_enter,
    check,
    check_way,
    named,
    proxy_uid,
    session_free,
)
from proxy.contain.errors import ContainError
from proxy.control_client import TOKEN_VARIABLE

PACKAGES = ("policies", "ledger", "proxy")
NOBODY = "nobody"
UNABLE = 2

Start = Callable[[Sequence[str], Mapping[str, str], str, int], Child]


class Place(NamedTuple):
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Ward:
    """`start` takes the command, the environment block and the proxy's address. `door` is where
    the command reaches the proxy, when that is another place."""

    said: str
    start: Start
    door: Place | None = None


def beside(data: Path) -> Ward:
    """As it is: what the operator's user may do, the command may do."""

    def start(command: Sequence[str], block: Mapping[str, str], _: str, __: int) -> Child:
        inherited = {name: text for name, text in os.environ.items() if name != TOKEN_VARIABLE}
        return subprocess.Popen(command, env={**inherited, **block})

    same = proxy_uid(data) == os.geteuid()
    return Ward("same user: not enforced" if same else "as root: not enforced", start)


def as_user(name: str, data: Path, public: tuple[Path, ...], policy: str) -> Ward:
    """Raises Failure."""
    if os.geteuid() != 0:
        words = [_program(), "run", "--data", str(data), "--user", name]
        raise Failure(
            "only root can start a command as another user; type: "
            f"sudo {shlex.join(words)} -- COMMAND",
            UNABLE,
        )
    try:
        account = named(name)
        check(account, data, public, tuple(_kept(policy)))
        directory = _entered(account, Path.cwd())
    except ContainError as error:
        raise Failure(str(error), UNABLE) from error
    confine = _confinement()

    def start(command: Sequence[str], block: Mapping[str, str], _: str, __: int) -> Child:
        try:
            return subprocess.Popen(
                command,
                env={**account.environ(session_free(os.environ)), **block},
                cwd=directory,
                user=account.uid,
                group=account.gid,
                extra_groups=account.groups,
                preexec_fn=confine,  # noqa: PLW1509 - no thread runs yet
            )
        except subprocess.SubprocessError as error:
            raise Failure(
                "this kernel takes no filter of system calls (seccomp), so the command could type "
                "into your terminal; use a newer one",
                UNABLE,
            ) from error

    return Ward(f"as user {account.name}", start)


def contained(data: Path, public: tuple[Path, ...], policy: str) -> Ward:
    """Raises Failure."""
    from proxy.contain.inside import ADDRESS, Plan
    from proxy.contain.outside import Contained, check_system, view_for
    from proxy.contain.view import is_hidden

    try:
        check_system()
        account = _caller() if os.geteuid() == 0 else None
        if account and not is_hidden(data):
            check_way(account, data)
        directory = _entered(account, Path.cwd()) if account else Path.cwd()
        view = view_for(data, public, tuple(_kept(policy)), directory)
    except ContainError as error:
        raise Failure(str(error), UNABLE) from error

    def start(command: Sequence[str], block: Mapping[str, str], host: str, port: int) -> Child:
        inherited = session_free(os.environ)
        environ = {**(account.environ(inherited) if account else inherited), **block}
        heeded = tuple(each for each in FORWARDED if signal.getsignal(each) != signal.SIG_IGN)
        plan = Plan(command, environ, account, view, heeded)
        try:
            return Contained(plan, host, port)
        except ContainError as error:
            raise Failure(str(error), UNABLE) from error

    return Ward("contained", start, Place(*ADDRESS))


def _caller() -> Account:
    """For root's agents: whoever typed sudo, else nobody. Never root: its files are the machine."""
    import pwd

    try:
        uid = int(os.environ.get("SUDO_UID", "0"))
        return named(pwd.getpwuid(uid).pw_name if uid else NOBODY)
    except (ValueError, KeyError, ContainError) as error:
        raise Failure(
            "root's command would run as nobody, and there is no such user; type it as a user of "
            "your own",
            UNABLE,
        ) from error


def _entered(account: Account, directory: Path) -> Path:
    if can_enter(account, directory):
        return directory
    warn(f"{account.name} cannot enter {directory}, so the command starts in /")
    return Path("/")


def _kept(policy: str) -> Iterator[Path]:
    """What must not be the agent's to change: the policy, how the proxy runs, pullcord itself."""
    if policy and Path(policy).is_absolute():
        directory = Path(policy).parent.resolve()
        yield directory
        yield from (each for each in directory.glob("*") if each.suffix in (".yaml", ".json"))
    yield from (Path(sys.prefix), Path(sys.base_prefix))
    sources = Path(__file__).parents[2]
    yield from (sources / package for package in PACKAGES)


def _confinement() -> Callable[[], None]:
    """For the child, as the other user: no way back by sudo, none through the terminal. Its
    modules are imported here, because that user may not be able to read them."""
    if sys.platform != "linux":
        return lambda: None
    from proxy.contain import calls, kernel

    def confine() -> None:
        kernel.no_new_privileges()
        if calls.is_known():
            calls.filter_calls()

    return confine


def _program() -> str:
    """sudo has a PATH of its own."""
    path = os.path.abspath(sys.argv[0])
    return path if os.access(path, os.X_OK) else "pullcord"
