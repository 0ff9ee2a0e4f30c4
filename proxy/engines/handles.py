"""How many connections this process may hold: the kernel counts each as an open file.

The store, the control socket and name lookups need some too, so a reserve is never given away.
"""

import contextlib
import resource
from dataclasses import dataclass

CLIENT_CONNECTIONS_MAX = 4096  # each costs about 100 KB; more is a runaway of its own
OPEN_FILES_MAX = 65536  # what is asked of the kernel where it would give more
RESERVED_FILES = 64  # for each side; a lookup, a dial's second address, the ledger

_MACOS_FILES = 10240  # OPEN_MAX of its <sys/syslimits.h>: it gives no more, whatever it says


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections of each side fit."""

    clients: int
    upstreams: int


def room() -> Room:
    """Raises the soft limit on open files as far as the kernel lets us, and divides it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for asked in (OPEN_FILES_MAX, _MACOS_FILES):
        wanted = asked if hard == resource.RLIM_INFINITY else min(hard, asked)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            break
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = OPEN_FILES_MAX if soft == resource.RLIM_INFINITY else soft
    half = max(1, files // 2 - RESERVED_FILES)
    return Room(min(CLIENT_CONNECTIONS_MAX, half), half)
