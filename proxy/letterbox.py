"""DATA/HALT: the cord that can be pulled with everything else dead, by `touch`.

An empty file halts everything. Lines such as `halt run r1` or `freeze tool stripe.refunds.create`,
each with words behind a `#` for a reason, pull just those; the command line writes them when the
store is dead. What cannot be read halts everything, and so does a `touch` of a file with lines.
Once stored a cord is latched: deleting the file lifts nothing, and a release takes its line out of
the file. Whoever of ours changes the file holds the lock of its directory meanwhile.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ledger.redact import storable
from policies.verdict import Level, Pull, Scope
from proxy.identity import NAME

FILE = "HALT"
ACTOR = f"file:{FILE}"
LETTER_BYTES_MAX = 64 * 1024  # some hundred cords; a longer file halts everything
_ATTEMPTS = 5  # another hand may change the file at the same time
_TURNS, _TURN_PAUSE = 25, 0.02  # who holds the lock for half a second was stopped
_OPEN = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a pipe or a device must not hold us

_Stamp = tuple[int, int, int]
_CordName = tuple[Level, Scope, str]
IsTool = Callable[[str], bool]

_EVERYTHING: _CordName = (Level.HALT, Scope.GLOBAL, "")
_NAMED = (Scope.RUN, Scope.TENANT)  # by words that fit into a proxy's URL
_WORDS = re.compile(r"(halt|freeze)\s+([^\s#]+)\s*(.*)")


@dataclass(frozen=True, slots=True)
class _Letter:
    """The file as it was found; without a body it cannot be read, and `problem` says why."""

    stamp: _Stamp
    body: bytes | None
    problem: str = ""
    steady: bool = False  # it did not change while it was read
    touched: bool = False
    cords: tuple[Pull, ...] = ()

    def lines(self) -> list[str]:
        """The lines that say something; none when it halts everything."""
        return _lines(self.body or b"")

    def touches(self, last: "_Letter") -> bool:
        """Whether it is `last` with nothing new but its time."""
        same = last.steady and (self.stamp[0], self.body) == (last.stamp[0], last.body)
        return same and self.stamp != last.stamp


class Letterbox:
    """Looked into in every transaction, so an unchanged file costs one stat. For any thread. A cord
    on a tool that `is_tool` does not know would stop nothing: such a line halts everything."""

    def __init__(self, data: Path, *, is_tool: IsTool | None = None) -> None:
        self.path = data / FILE
        self._name = str(self.path)
        self._is_tool = is_tool
        self._reading = threading.Lock()
        self._taken: _Letter | None = None
        self._read: _Letter | None = None
        self._given: dict[int, _Letter | None] = {}

    def waiting(self, now_us: int) -> list[Pull]:
        """The cords that the file pulls, until `taken` says that they are stored."""
        letter = None
        try:
            stamp, taken = _stamp(self._name), self._taken
            if taken is not None and stamp == taken.stamp:
                letter = taken
                return []
            letter = self._letter(stamp, now_us)
            return list(letter.cords)
        except FileNotFoundError:
            self._read = None  # the next one is another file, also when it gets the same number
            return []
        except OSError as error:
            return [_everything(f"{self._name} cannot be read: {error.strerror}", now_us)]
        finally:
            self._given[threading.get_ident()] = letter

    def taken(self) -> None:
        """What this thread was last given is stored, so it does not wait any more. What came into
        the file meanwhile, and another thread may have seen, still does."""
        self._taken = self._given.get(threading.get_ident())

    def strike(self, level: Level, scope: Scope, subject: str) -> None:
        """After a release is stored: take the cord's line out, so that no start pulls it again.
        What came into the file later than what was stored stays.

        Raises OSError when the file cannot be changed.
        """
        with _turn(self.path.parent) as mine:
            for _ in range(_ATTEMPTS if mine else 0):
                if self._struck((level, scope, subject)):
                    return
        raise OSError(0, "another hand keeps changing it", self._name)

    def _letter(self, stamp: _Stamp, now_us: int) -> _Letter:
        with self._reading:
            last = self._read
            if last is not None and last.stamp == stamp:
                return last
            letter = _opened(self._name)
            if last is not None and letter.touches(last):
                # A write under way shows its time before its bytes: look again when it is done.
                with _turn(self.path.parent):
                    letter = _opened(self._name)
            if last is not None:
                owed = last.touched and not self._holds(last)
                letter = replace(letter, touched=owed or letter.touches(last))
            self._read = replace(letter, cords=tuple(_pulls(letter, now_us, self._is_tool)))
            return self._read

    def _struck(self, released: _CordName) -> bool:
        """Whether it is done; else another hand came between."""
        with contextlib.ExitStack() as closing:
            handle = -1
            with contextlib.suppress(OSError):  # what cannot be read halts everything
                handle = os.open(self.path, os.O_RDONLY | _OPEN)
                closing.callback(os.close, handle)
            try:
                letter = _opened(self._name)
            except FileNotFoundError:
                return True
            keep = self._kept(letter, released)
            if keep is None:
                return True
            text = "".join(f"{line}\n" for line in keep)
            beside = _written(self.path, text) if keep else None
            if not _is_still(self._name, letter.stamp):
                if beside:
                    beside.unlink()
                return False
            known = self._holds(letter) and letter.steady
            if beside:
                beside.replace(self.path)
            else:
                self.path.unlink()
            self._read = None
            late = _late(handle, letter) if handle >= 0 else ""
            if late:  # who had opened it before wrote into what is no file any more
                _append(self.path, late)
            elif beside and known:
                with contextlib.suppress(FileNotFoundError):
                    now = _opened(self._name)
                    if now.steady and now.body == text.encode():
                        self._taken = self._read = now  # all that it says is stored
            return True

    def _holds(self, letter: _Letter) -> bool:
        return self._taken is not None and self._taken.stamp == letter.stamp

    def _kept(self, letter: _Letter, released: _CordName) -> list[str] | None:
        """The lines without those of the cord; None when nothing is to be struck."""
        taken, looked, lines = self._taken, bool(self._given), letter.lines()
        if not lines:
            stored = not looked or self._holds(letter)
            return [] if stored and released == _EVERYTHING else None
        left = Counter(taken.lines() if looked and taken else () if looked else lines)
        keep = []
        for line in lines:
            if left[line] and _cord(line, self._is_tool)[0] == released:
                left[line] -= 1
            else:
                keep.append(line)
        return None if keep == lines else keep


def post(data: Path, cord: Pull) -> Path:
    """Pull a cord by the file alone: nothing else needs to be alive. Gives the file.

    The file knows no end by time: such a cord stands until it is released. A disk that is full
    still takes the global halt: an empty file or a new time need no room. Raises OSError.
    """
    path = data / FILE
    with _turn(data):  # a cord does not wait for a process that was stopped: it goes on without
        try:
            _post(path, _line(cord))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or (cord.level, cord.scope, cord.subject) != _EVERYTHING:
                raise
            path.touch(0o600)
    return path


def _post(path: Path, line: str) -> None:
    for _ in range(_ATTEMPTS):
        try:
            lines = _opened(str(path)).lines()
            if not lines:
                return  # it halts everything already
            # Said again it counts again, for it may have been released: a new line end is a change.
            _append(path, "" if line in lines else line)
        except FileNotFoundError:
            _create(path, line)
        with contextlib.suppress(FileNotFoundError):
            if line in _opened(str(path)).lines():
                return
    raise OSError(0, "another hand keeps changing it", str(path))


def _create(path: Path, line: str) -> None:
    """A new file comes whole into its place: an empty one, however briefly, halts everything."""
    beside = _written(path, f"{line}\n")
    try:
        with contextlib.suppress(FileExistsError):  # another hand was first: the caller looks
            path.hardlink_to(beside)
    finally:
        beside.unlink()


def _append(path: Path, line: str) -> None:
    """Below what is there, or into a new file. What fails leaves the file as it was."""
    if not path.exists(follow_symlinks=False):
        return _create(path, line)
    # What somebody left without its end must not swallow this line.
    text = f"\n{line}\n".encode() if line else b"\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | _OPEN)
    with os.fdopen(handle, "ab", buffering=0) as file:
        before = os.fstat(handle)
        try:
            if file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(handle)
        except OSError:
            if 0 <= os.fstat(handle).st_size - before.st_size <= len(text):
                os.ftruncate(handle, before.st_size)  # half a line may name another run
                os.utime(handle, ns=(before.st_atime_ns, before.st_mtime_ns))
            raise


def _late(handle: int, letter: _Letter) -> str:
    """What came into a file after it was read as `letter`, and before it was taken away."""
    if letter.body is None or _stamp_of(os.fstat(handle)) == letter.stamp:
        return ""
    body = os.pread(handle, LETTER_BYTES_MAX + 1, 0)
    new = _lines(body[len(letter.body) :] if body.startswith(letter.body) else body)
    return "\n".join(new) or f"{Level.HALT} {Scope.GLOBAL}  # {FILE} was touched"


def _written(path: Path, text: str) -> Path:
    """A durable file beside `path`, for the owner of the directory alone."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            if os.geteuid() == 0:  # what root writes is for the proxy's user to read
                owner = path.parent.stat()
                os.fchown(handle, owner.st_uid, owner.st_gid)
            file.write(text.encode())
            file.flush()
            os.fsync(handle)
    except OSError:
        beside.unlink()
        raise
    return beside


@contextlib.contextmanager
def _turn(data: Path) -> Iterator[bool]:
    """Alone among those of us that change the file; False when somebody holds on to that. Where
    there are no such locks everybody goes on without."""
    with contextlib.ExitStack() as closing:
        mine = True
        with contextlib.suppress(OSError):
            handle = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            closing.callback(os.close, handle)
            mine = any(map(_locked, [handle] * _TURNS))
        yield mine


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_TURN_PAUSE)
        return False
    return True


def _line(cord: Pull) -> str:
    """One line that `_cord` reads back. A subject that is no plain word is written as JSON."""
    subject = cord.subject
    if not NAME.fullmatch(subject):
        subject = json.dumps(subject) if subject else ""
    words = " ".join(filter(None, (cord.level, cord.scope, subject)))
    reason = " ".join(storable(f"{cord.reason} (by {cord.actor})").split())
    return f"{words}  # {reason}"


def _opened(name: str) -> _Letter:
    """The file as it is. Raises OSError: FileNotFoundError when not even a link is there."""
    stamp = _stamp(name)
    for _ in range(_ATTEMPTS):
        try:
            handle = os.open(name, os.O_RDONLY | _OPEN)
        except OSError as error:
            if _is_still(name, stamp):
                return _Letter(stamp, None, f"cannot be read: {error.strerror}")
            stamp = _stamp(name)  # it was replaced, or taken away
            continue
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, handle)
            found = os.fstat(handle)
            stamp = _stamp_of(found)
            if not stat.S_ISREG(found.st_mode):
                return _Letter(stamp, None, "cannot be read: it is no file")
            body = os.pread(handle, LETTER_BYTES_MAX + 1, 0)
            if len(body) > LETTER_BYTES_MAX:
                return _Letter(stamp, None, "is too long to be read")
            return _Letter(stamp, body, steady=_stamp_of(os.fstat(handle)) == stamp)
    return _Letter(stamp, None, "cannot be read: it keeps changing")


def _lines(body: bytes) -> list[str]:
    """The lines that say something; none when they are no text."""
    try:
        lines = (line.strip() for line in body.decode("utf-8").splitlines())
    except UnicodeDecodeError:
        return []
    return [line for line in lines if line and not line.startswith("#")]


def _pulls(letter: _Letter, now_us: int, is_tool: IsTool | None) -> Iterator[Pull]:
    lines = letter.lines()
    why = letter.problem or ("was touched" if letter.touched and lines else "")
    if why or not lines:
        yield _everything(f"{FILE} {why}" if why else "", now_us)
    for name, reason in (_cord(line, is_tool) for line in lines):
        yield Pull(*name, reason, ACTOR, now_us)


def _cord(line: str, is_tool: IsTool | None) -> tuple[_CordName, str]:
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
    if scope is Scope.TOOL:
        if set(subject) & set("*?["):  # it would stop no tool
            return _EVERYTHING, f"{FILE} names tools by a pattern, and cords go by exact names"
        plain = not (said and said[3].startswith('"'))
        if (plain and len(subject.split()) > 1) or (is_tool and not is_tool(subject)):
            return _EVERYTHING, f"{FILE} names a tool that the policy lacks: {level} tool {subject}"
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
        with contextlib.suppress(OSError):
            found = os.stat(name)  # else it leads nowhere, or to itself: there, and not readable
    return _stamp_of(found)


def _stamp_of(found: os.stat_result) -> _Stamp:
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _is_still(name: str, stamp: _Stamp) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return _stamp(name) == stamp
    return False


def _everything(reason: str, now_us: int) -> Pull:
    return Pull(*_EVERYTHING, reason, ACTOR, now_us)
