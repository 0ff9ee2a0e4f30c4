"""The control socket itself: made for one owner, and who connected to it. No HTTP here."""

import contextlib
import os
import pwd
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

BACKLOG_MAX = 16  # operators' commands that wait to be accepted
ADDRESS_BYTES_MAX = 107  # unix(7): sun_path has 108 bytes, the last is zero


class ControlError(Exception):
    """The control socket cannot be made; the message says what to do."""


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def peer_uid(connection: socket.socket) -> int:
    """Who connected, as the kernel noted it (unix(7), SO_PEERCRED; on macOS LOCAL_PEERCRED)."""
    if sys.platform == "darwin":
        local, peercred, xucred = 0, 1, "IIh"  # <sys/un.h>, <sys/ucred.h>
        credentials = connection.getsockopt(local, peercred, 76)
        return int(struct.unpack_from(xucred, credentials)[1])
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iII", credentials)[1])


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """What bind and connect take for this path, until the block ends. A path that is longer than
    an address may be goes through its directory's descriptor, where the system has /proc. Raises
    OSError when there is no such directory."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX or not sys.platform.startswith("linux"):
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def bound(path: Path) -> socket.socket:
    """A listening socket at this path that only its owner may open. Raises ControlError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        _remove_stale(path)
        with address(path) as name:
            listener.bind(name)
        listener.listen(BACKLOG_MAX)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise ControlError(
            f"cannot make the control socket {path}: {why}; choose another directory with --data"
        ) from error
    except ControlError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _remove_stale(path: Path) -> None:
    """Take away what a killed proxy left. Raises ControlError when somebody answers, or when it
    is no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"{path} is no socket; move it away, then start again")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            with address(path) as name:
                probe.connect(name)
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ControlError(f"another pullcord answers at {path}; end it, or choose another --data")
