"""The calls to the Linux kernel for which Python has no name. Numbers are from its headers.

Each raises OSError as `os` would. Nothing here decides anything.
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
from pathlib import Path

# <linux/mount.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_NOATIME, MS_NODIRATIME = 0x20, 0x400, 0x800
MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE, MS_RELATIME = 0x1000, 0x2000, 0x4000, 0x40000, 0x200000

# statvfs(3) has its own number for this one flag; the others are the same.
_ST_RELATIME = 0x1000

# <linux/prctl.h>
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4

# <linux/capability.h>: version 3, two sets of 32 bits.
_CAPABILITY_VERSION = 0x20080522

# <linux/sockios.h>, <linux/if.h>
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def prctl(option: int, *arguments: object) -> None:
    """prctl(2); each argument is a number or a ctypes pointer."""
    words = [each if not isinstance(each, int) else ctypes.c_ulong(each) for each in arguments]
    words += [ctypes.c_ulong(0)] * (4 - len(words))
    _checked(_libc.prctl(option, *words), f"prctl {option}")


def no_new_privileges() -> None:
    """From here on no program gives more rights than its caller has: no sudo, no setuid bit."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def close_to_others() -> None:
    """No process of the same user may trace this one or read its /proc (ptrace(2), prctl(2))."""
    prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """SIGKILL when the parent ends. A change of user clears it, so it comes after that."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def drop_capabilities() -> None:
    """All of them, and for every program that follows (capabilities(7))."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_bytes())
    for number in range(last + 1):
        prctl(_PR_CAPBSET_DROP, number)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0))
    nothing = ctypes.create_string_buffer(struct.pack("6I", *[0] * 6))
    _checked(_libc.capset(header, nothing), "capset")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    result = _libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None)
    _checked(result, target)


def bind(source: str, target: str) -> None:
    """Show a file or a directory, and what is mounted below it, also at another place."""
    mount(source, target, None, MS_BIND | MS_REC)


def make_read_only(mount_point: str) -> None:
    """A mount that exists. Its other flags stay: a namespace of a user may not take them away."""
    now = os.statvfs(mount_point).f_flag
    kept = now & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
    kept |= MS_RELATIME if now & _ST_RELATIME else 0
    mount(None, mount_point, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def loopback_up() -> None:
    """Switch `lo` on, in a network namespace that is new (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
