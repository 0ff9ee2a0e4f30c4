"""Another Unix user for an agent: who that is, and whether it is kept away from the proxy."""

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from proxy.contain.errors import ContainError
from proxy.control_client import SOCKET

# Who is in one of these can read any file, or start a container that can.
RULING_GROUPS = ("root", "docker", "lxd", "incus", "incus-admin", "libvirt", "disk", "kmem")

# Addresses of the caller's own session: its terminal multiplexer, its keys, its desktop.
_OF_THE_SESSION = {
    *("TMPDIR", "TMUX", "TMUX_PANE", "STY", "SSH_AUTH_SOCK", "SSH_AGENT_PID", "GPG_AGENT_INFO"),
    *("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "DOCKER_HOST"),
    *("DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS"),
}


@dataclass(frozen=True, slots=True)
class Account:
    """A user as the kernel and as programs know it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    def environ(self, inherited: Mapping[str, str]) -> dict[str, str]:
        theirs = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}
        return {**inherited, **theirs}


def named(name: str) -> Account:
    """Raises ContainError when there is no such user."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ContainError(
            f"there is no user {name!r} on this machine; make one, for instance: "
            f"sudo useradd --system --create-home {shlex.quote(name)}"
        ) from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


def session_free(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what leads back to the caller's session, or tells where pullcord's own things are."""
    return {
        name: value
        for name, value in environ.items()
        if name not in _OF_THE_SESSION and not name.startswith(("PULLCORD_", "SUDO_"))
    }


def become(account: Account) -> None:
    """For good; this process must be root's."""
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)


def check(account: Account, data: Path, public: tuple[Path, ...], kept: tuple[Path, ...]) -> None:
    """That this user reads the public files, can open nothing else in the data directory, and can
    write to none of `kept`. Raises ContainError with what to do."""
    if account.uid == 0:
        raise ContainError("root reads and ends everything here; name another user with --user")
    if account.uid == proxy_uid(data):
        raise ContainError(
            f"the proxy itself runs as {account.name}, so nothing would be kept from the agent; "
            "name another user with --user"
        )
    ruling = [name for name in RULING_GROUPS if _gid(name) in account.groups]
    if ruling:
        raise ContainError(
            f"{account.name} is in the group {ruling[0]}, which is as good as root; "
            "name another user with --user"
        )
    entries = [path for path in data.iterdir() if path not in {each.parent for each in public}]
    with _acting_as(account):
        _check_reads(account, public)
        _check_closed(account, entries)
        _check_fixed(account, (*public, *kept))


def can_enter(account: Account, directory: Path) -> bool:
    with _acting_as(account):
        return os.access(directory, os.X_OK, effective_ids=True)


def check_way(account: Account, path: Path) -> None:
    """That this user gets to a path. Raises ContainError with the directory that is closed."""
    with _acting_as(account):
        _check_way(account, path)


def _check_way(account: Account, path: Path) -> None:
    for parent in reversed(path.parents):
        if not os.access(parent, os.X_OK, effective_ids=True):
            raise ContainError(
                f"{account.name} cannot get to {path}, because {parent} is closed to it; type: "
                f"chmod o+x {shlex.quote(str(parent))}, or start the proxy on another --data, "
                "for instance /var/lib/pullcord"
            )


def _check_reads(account: Account, public: tuple[Path, ...]) -> None:
    for path in public:
        _check_way(account, path)
        if not os.access(path, os.R_OK, effective_ids=True):
            raise ContainError(
                f"{account.name} cannot read {path}; type: chmod o+r {shlex.quote(str(path))}"
            )


def _check_closed(account: Account, entries: Iterable[Path]) -> None:
    for path in entries:
        for right, word in ((os.W_OK, "write to"), (os.R_OK, "read")):
            if os.access(path, right, effective_ids=True):
                raise ContainError(
                    f"{account.name} can {word} {path}; type: "
                    f"chmod -R go-rwx {shlex.quote(str(path))}"
                )


def _check_fixed(account: Account, paths: Iterable[Path]) -> None:
    """What can be replaced can be written to: so every directory above counts."""
    for path in paths:
        for place in (path, *path.parents):
            if os.access(place, os.W_OK, effective_ids=True) and not _is_sticky(place):
                raise ContainError(
                    f"{account.name} can write to {place}, and so change {path}; type: "
                    f"chmod go-w {shlex.quote(str(place))}, or name another user with --user"
                )


def _is_sticky(directory: Path) -> bool:
    """As /tmp: everyone may add to it, and nobody may rename what is another's."""
    return bool(directory.stat().st_mode & stat.S_ISVTX)


def proxy_uid(data: Path) -> int:
    """Whose proxy it is, by its control socket or the directory."""
    socket = data / SOCKET
    return (socket if socket.exists() else data).stat().st_uid


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


@contextmanager
def _acting_as(account: Account) -> Iterator[None]:
    """What the kernel says to this user. Only root can ask so, and is root again behind it."""
    groups, gid, uid = os.getgroups(), os.getegid(), os.geteuid()
    try:
        os.setgroups(account.groups)
    except OSError as error:
        raise ContainError(
            f"this root may not become {account.name} ({error.strerror}), because it is not the "
            "machine's root; type it as that one, or as a user"
        ) from error
    try:
        os.setegid(account.gid)
        os.seteuid(account.uid)
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)
