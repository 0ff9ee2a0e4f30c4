"""DATA/HALT: the cord that can be pulled with everything else dead, by `touch`.

An empty file halts everything. Lines such as `halt run r1` or `freeze tool stripe.refunds.create`,
each with words behind a `#` for a reason, pull just those; the command line writes them when the
store is dead. What cannot be read halts everything. Once stored a cord is latched: deleting the
file lifts nothing, and a release takes its line out of the file.
"""

import contextlib
import json
import os
import re
import stat
import threading
from pathlib import Path

from ledger.redact import storable
from policies.verdict import Level, Pull, Scope
from proxy.identity import NAME

FILE = "HALT"
ACTOR = f"file:{FILE}"
LETTER_BYTES_MAX = 64 * 1024  # some hundred cords; a longer file halts everything
_POST_ATTEMPTS = 5  # another hand may change the file at the same time

_Stamp = tuple[int, int, int]
_CordName = tuple[Level, Scope, str]

_EVERYTHING: _CordName = (Level.HALT, Scope.GLOBAL, "")
_NAMED = (Scope.RUN, Scope.TENANT)  # by words that fit into a proxy's URL
_WORDS = re.compile(r"(\S+)\s+([^\s#]+)\s*(.*)")


class Letterbox:
    """Looked into in every transaction, so an unchanged file costs one stat. For any thread."""

    def __init__(self, data: Path) -> None:
        self.path = data / FILE
        self._name = str(self.path)
        self._taken: _Stamp | None = None
        self._read: tuple[_Stamp | None, list[Pull]] = (None, [])
        self._given: dict[int, _Stamp | None] = {}

    def waiting(self, now_us: int) -> list[Pull]:
        """The cords that the file pulls, until `taken` says that they are stored."""
        stamp = None
        try:
            stamp = _stamp(self._name)
            if stamp == self._taken:
                return []
            if stamp != self._read[0]:
                self._read = (stamp, _pulls(self.path, now_us))
            return self._read[1]
        except FileNotFoundError:
            return []
        except OSError as error:
            return [_everything(f"{self._name} cannot be read: {error.strerror}", now_us)]
        finally:
            self._given[threading.get_ident()] = stamp

    def taken(self) -> None:
        """What this thread was last given is stored, so it does not wait any more. What came into
        the file meanwhile, and another thread may have seen, still does."""
        self._taken = self._given.get(threading.get_ident())

    def strike(self, level: Level, scope: Scope, subject: str) -> None:
        """After a release is stored: take the cord's line out, so that no start pulls it again.

        Raises OSError when the file cannot be changed.
        """
        released = (level, scope, subject)
        try:
            lines = _lines(self.path)
        except FileNotFoundError:
            return
        except (UnicodeDecodeError, IsADirectoryError):
            lines = []  # it halts everything, as an empty file does
        keep = [line for line in lines if _cord(line)[0] != released]
        if len(keep) == len(lines) and (lines or released != _EVERYTHING):
            return
        if not keep:
            self.path.unlink()
            return
        _written(self.path, "".join(f"{line}\n" for line in keep)).replace(self.path)
        with contextlib.suppress(FileNotFoundError):
            self._taken = _stamp(self._name)


def post(data: Path, cord: Pull) -> Path:
    """Pull a cord by the file alone: nothing else needs to be alive. Gives the file.

    The file knows no end by time: such a cord stands until it is released. Raises OSError.
    """
    path, line = data / FILE, _line(cord)
    for _ in range(_POST_ATTEMPTS):
        try:
            if path.exists(follow_symlinks=False) and not _lines(path):
                return path  # it halts everything already
        except (UnicodeDecodeError, IsADirectoryError):
            return path  # so does what nobody can read
        except FileNotFoundError:
            if path.is_symlink():
                return path  # and a link that leads nowhere
            continue
        _append(path, line)
        with contextlib.suppress(FileNotFoundError):
            if line in _lines(path):
                return path
    raise OSError(0, "another hand keeps changing it", str(path))


def _append(path: Path, line: str) -> None:
    """A new file comes whole into its place: an empty one, however briefly, halts everything."""
    if not path.exists(follow_symlinks=False):
        beside = _written(path, f"{line}\n")
        try:
            path.hardlink_to(beside)
        except FileExistsError:
            pass  # another hand was first: this line goes below
        else:
            return
        finally:
            beside.unlink()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # gone again: the caller looks
    with os.fdopen(handle, "wb") as file:
        # What somebody left without its end must not swallow this line.
        file.write(f"\n{line}\n".encode())
        file.flush()
        os.fsync(handle)


def _written(path: Path, text: str) -> Path:
    """A durable file beside `path`, for the owner of the directory alone."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        if os.geteuid() == 0:  # what root writes is for the proxy's user to read
            owner = path.parent.stat()
            os.fchown(handle, owner.st_uid, owner.st_gid)
        file.write(text.encode())
        file.flush()
        os.fsync(handle)
    return beside


def _line(cord: Pull) -> str:
    """One line that `_cord` reads back. A subject that is no plain word is written as JSON."""
    subject = cord.subject
    if not NAME.fullmatch(subject):
        subject = json.dumps(subject) if subject else ""
    words = " ".join(filter(None, (cord.level, cord.scope, subject)))
    reason = " ".join(storable(f"{cord.reason} (by {cord.actor})").split())
    return f"{words}  # {reason}"


def _lines(path: Path) -> list[str]:
    """The lines that say something. Raises OSError and UnicodeDecodeError."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _pulls(path: Path, now_us: int) -> list[Pull]:
    try:
        if path.stat().st_size > LETTER_BYTES_MAX:
            return [_everything(f"{path} is too long to be read", now_us)]
        lines = _lines(path)
    except (OSError, UnicodeDecodeError):
        return [_everything(f"{path} cannot be read", now_us)]
    if not lines:
        return [_everything("", now_us)]
    cords = [_cord(line) for line in lines]
    return [Pull(*name, reason, ACTOR, now_us) for name, reason in cords]


def _cord(line: str) -> tuple[_CordName, str]:
    """The cord that a line names, and its reason. What nobody knows halts everything."""
    try:
        said = _WORDS.fullmatch(line)
        level, scope = Level(said[1] if said else ""), Scope(said[2] if said else "")
        subject, reason = _subject(said[3] if said else "")
    except ValueError:
        return _EVERYTHING, f"{FILE} holds a line that nobody knows"
    fits = bool(NAME.fullmatch(subject)) if scope in _NAMED else bool(subject)
    if fits is (scope is Scope.GLOBAL) or storable(subject) != subject:
        return _EVERYTHING, f"{FILE} holds a line that names no {scope}"
    if scope is Scope.TOOL and set(subject) & set("*?["):  # it would stop no tool
        return _EVERYTHING, f"{FILE} names tools by a pattern, and cords go by exact names"
    return (level, scope, subject), reason


def _subject(rest: str) -> tuple[str, str]:
    """The name, plain or as JSON, and the reason behind it. Raises ValueError."""
    if not rest.startswith('"'):
        subject, _, reason = rest.partition("#")
        return subject.strip(), reason.strip()
    subject, end = json.JSONDecoder().raw_decode(rest)
    behind = rest[end:].strip()
    if behind and not behind.startswith("#"):
        raise ValueError(behind)
    return str(subject), behind.removeprefix("#").strip()


def _stamp(name: str) -> _Stamp:
    found = os.lstat(name)
    if stat.S_ISLNK(found.st_mode):
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(name)  # else a link that leads nowhere: there, and not readable
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _everything(reason: str, now_us: int) -> Pull:
    return Pull(*_EVERYTHING, reason, ACTOR, now_us)
