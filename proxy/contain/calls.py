"""The filter of system calls for agents that are kept away: what no namespace and no user stops.

- A process may push characters into its terminal, and so type commands for the shell that started
  it (TIOCSTI, TIOCLINUX).
- Sockets to a virtual machine's host, and other families, belong to no network namespace.
- io_uring makes sockets past any filter.

Classic BPF over `struct seccomp_data` (seccomp(2)); numbers are from the kernel's headers.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from proxy.contain import kernel

_PR_SET_SECCOMP, _FILTER = 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_X32_BIT = 0x40000000  # set in the numbers of x86-64's second, unused table of calls

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
_FAMILIES = (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)
_TERMINAL_TRICKS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX


class _Machine(NamedTuple):
    audit: int
    ioctl: int
    socket: int
    io_uring_setup: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 16, 41, 425),
    "aarch64": _Machine(0xC00000B7, 29, 198, 425),
}


def is_known(machine: str | None = None) -> bool:
    """Whether there is a filter for this machine; its own, if none is named."""
    return (machine or os.uname().machine) in _MACHINES


def filter_calls() -> None:
    """For this process and all that it starts; needs `no_new_privileges` before. Raises OSError,
    KeyError for a machine that `is_known` does not know."""
    program = b"".join(_program(_MACHINES[os.uname().machine]))
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    kernel.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(header))


def _program(machine: _Machine) -> Iterator[bytes]:
    """The first line that answers ends it. A call of another architecture's table is not there."""
    yield _line(_LOAD, _MACHINE_AT)
    yield _line(_EQUAL, machine.audit, yes=1)
    yield _refuse(errno.ENOSYS)
    yield _line(_LOAD, _NUMBER_AT)
    yield _line(_AT_LEAST, _X32_BIT, no=1)
    yield _refuse(errno.ENOSYS)
    yield _line(_EQUAL, machine.io_uring_setup, no=1)
    yield _refuse(errno.ENOSYS)
    yield _line(_EQUAL, machine.ioctl, no=len(_TERMINAL_TRICKS) + 3)
    yield _line(_LOAD, _SECOND_ARGUMENT_AT)
    for left, trick in enumerate(_TERMINAL_TRICKS):
        yield _line(_EQUAL, trick, yes=len(_TERMINAL_TRICKS) - left)
    yield _line(_RETURN, _ALLOW)
    yield _refuse(errno.EPERM)
    yield _line(_EQUAL, machine.socket, no=len(_FAMILIES) + 2)
    yield _line(_LOAD, _FIRST_ARGUMENT_AT)
    for left, family in enumerate(_FAMILIES):
        yield _line(_EQUAL, family, yes=len(_FAMILIES) - left)
    yield _refuse(errno.EAFNOSUPPORT)
    yield _line(_RETURN, _ALLOW)


def _line(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """`yes` and `no`: how many lines a comparison skips."""
    return struct.pack("HBBI", code, yes, no, value)


def _refuse(number: int) -> bytes:
    return _line(_RETURN, _ERRNO | number)
