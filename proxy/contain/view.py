"""What a contained agent sees of the files: a mount namespace made out of the one that it is in.

Everything stays as it is, but for

- /run, /tmp and /sys/fs/cgroup, where other programs' sockets and controls are: empty, its own;
- /dev and /proc: new, with the usual devices and its own processes;
- the proxy's data directory: empty, but for copies of the two public certificate files;
- the policy and pullcord's own programs: not to be written;
- sockets that other programs listen on: something that is no socket.

What stands above the data directory and the policy cannot be renamed, so that nothing else can be
put where operators' commands look for them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy.contain import kernel
from proxy.contain.kernel import MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC

TEMPORARY = "/tmp"  # noqa: S108 - hidden, not used
HIDDEN = ("/run", "/var/run", TEMPORARY, "/sys/fs/cgroup")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_STAGE = "/tmp/dev"  # noqa: S108 - in a /tmp that is new and nobody else's
_LISTENS = 0x10000  # <linux/net.h>, __SO_ACCEPTCON


@dataclass(frozen=True, slots=True)
class View:
    """All paths absolute and without links. Of a directory, every place where it shows."""

    directory: Path
    hidden: tuple[Path, ...]
    public: Mapping[Path, bytes]
    read_only: tuple[Path, ...]
    sockets: tuple[Path, ...]


def enter(view: View) -> None:
    """In a mount namespace of its own, as the first process of a new process namespace, with all
    capabilities there. Raises OSError."""
    kernel.mount(None, "/", None, MS_REC | MS_PRIVATE)
    work = os.open(view.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    hidden = [path for path in dict.fromkeys(map(os.path.realpath, HIDDEN)) if os.path.isdir(path)]
    links = {path: list(_links_in(path)) for path in hidden}
    for path in hidden:
        _empty(path, "mode=1777" if path == os.path.realpath(TEMPORARY) else "mode=755")
        for name, target in links[path]:
            os.symlink(target, os.path.join(path, name))
    if any(view.directory.is_relative_to(path) and str(view.directory) != path for path in hidden):
        os.makedirs(view.directory)
        kernel.bind(f"/proc/self/fd/{work}", str(view.directory))
    os.close(work)
    _new_devices()
    kernel.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _protect(view)
    for each in view.sockets:
        if os.path.exists(each):
            kernel.bind("/dev/null", str(each))
    os.chdir(view.directory)


def _protect(view: View) -> None:
    """From the root down: what is mounted on a directory later would hide what is below it."""
    for path in view.hidden:
        path.mkdir(parents=True, exist_ok=True)
    kept = [path for path in view.read_only if os.path.exists(path)]
    above = {parent for path in (*view.hidden, *kept) for parent in path.parents}
    for path in sorted({*above, *view.hidden, *kept} - {Path("/")}):
        if path in view.hidden:
            _empty(str(path), "mode=711")
            for name, content in view.public.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
            kernel.make_read_only(str(path))
        elif os.path.exists(path):
            kernel.bind(str(path), str(path))
            if path in kept:
                kernel.make_read_only(str(path))


def _empty(path: str, options: str) -> None:
    kernel.mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options)


def _links_in(directory: str) -> Iterator[tuple[str, str]]:
    """Some systems keep links to their programs in /run."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield entry.name, os.readlink(entry.path)


def _new_devices() -> None:
    """Without disks, other people's terminals and whatever else this machine has."""
    os.mkdir(_STAGE)
    _empty(_STAGE, "mode=755")
    for name in DEVICES:
        if os.path.exists(f"/dev/{name}"):
            os.close(os.open(f"{_STAGE}/{name}", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            kernel.bind(f"/dev/{name}", f"{_STAGE}/{name}")
    for name, target in _LINKS.items():
        os.symlink(target, f"{_STAGE}/{name}")
    os.mkdir(f"{_STAGE}/pts")
    os.mkdir(f"{_STAGE}/shm")
    own_terminals = "newinstance,ptmxmode=0666,mode=0620"
    kernel.mount("devpts", f"{_STAGE}/pts", "devpts", MS_NOSUID | MS_NOEXEC, own_terminals)
    _empty(f"{_STAGE}/shm", "mode=1777")
    kernel.mount(_STAGE, "/dev", None, MS_MOVE)
    os.rmdir(_STAGE)


# ---------------------------------------------------------------------------- from outside


def is_hidden(path: Path) -> bool:
    """Whether nothing that stands there now is seen."""
    return any(path.is_relative_to(os.path.realpath(each)) for each in HIDDEN)


def everywhere(path: Path, mounts: str) -> tuple[Path, ...]:
    """Each place where this directory shows. `mounts` is the text of /proc/self/mountinfo."""
    rows = [row.split() for row in mounts.splitlines()]
    table = [(row[2], _plain(row[3]), _plain(row[4])) for row in rows]
    under = [row for row in table if path.is_relative_to(row[2])]
    if not under:
        return (path,)
    device, root, point = max(enumerate(under), key=lambda each: (len(each[1][2]), each[0]))[1]
    inner = Path(root) / path.relative_to(point)
    found = [path]
    for other_device, other_root, other_point in table:
        if other_device == device and inner.is_relative_to(other_root):
            found.append(Path(other_point) / inner.relative_to(other_root))
    return tuple(dict.fromkeys(place for place in found if place == path or os.path.exists(place)))


def listening(unix_sockets: str) -> tuple[Path, ...]:
    """The paths that somebody listens on. `unix_sockets` is the text of /proc/net/unix."""
    rows = [row.split(maxsplit=7) for row in unix_sockets.splitlines()[1:]]
    open_ones = [row[7] for row in rows if len(row) == 8 and int(row[3], 16) & _LISTENS]
    return tuple(dict.fromkeys(Path(path) for path in open_ones if path.startswith("/")))


def outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Without those that lie below another."""
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(each) for each in kept):
            kept.append(path)
    return tuple(kept)


def _plain(text: str) -> str:
    """Blanks and backslashes stand as octal numbers there (proc_pid_mountinfo(5))."""
    for number, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        text = text.replace(f"\\{number}", character)
    return text
