"""The directory of an incident's test: its own plain files, read and written by their names in it,
and never by way of a link. What stands in them is not known here.

A test may come from elsewhere, and what its files hold is printed where they are mistaken: a link
in it would print a file of the machine, or write over one.
"""

import errno
import os
import stat
from collections.abc import Container, Mapping
from pathlib import Path

from proxy.operations import OperationError

FILE_BYTES_MAX = 64 << 20  # of each; an export makes none that is larger
AGAIN = "export it again: pullcord incident export-test ID --out DIR"

_CACHE = "__pycache__"  # pytest leaves one there
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY


class RegressionError(OperationError):
    """The files of a test cannot be used; the message names the file and line."""


def is_there(path: Path) -> bool:
    """Also a link that leads nowhere. Raises RegressionError."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RegressionError(unusable(error, path)) from None
    return True


def content(path: Path) -> bytes:
    """Of one file. Raises RegressionError, also for a link, a pipe or a directory."""
    try:
        handle = os.open(path, _READ)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise RegressionError(f"{path}: it is no plain file; {AGAIN}")
            with open(handle, "rb", closefd=False) as file:
                found = file.read(FILE_BYTES_MAX + 1)
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise RegressionError(f"{path}: there is no such file; {AGAIN}") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RegressionError(
                f"{path}: it is a link, and a test is read from its own plain files alone; {AGAIN}"
            ) from None
        raise RegressionError(unusable(error, path)) from None
    if len(found) > FILE_BYTES_MAX:
        raise RegressionError(f"{path}: it is larger than {FILE_BYTES_MAX >> 20} MiB")
    return found


def text_of(path: Path) -> str:
    """Of one file. Raises RegressionError, with the place of what is no UTF-8."""
    found = content(path)
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = found[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise RegressionError(
            f"{path}:{line}:{column}: it is not UTF-8 (byte 0x{found[error.start]:02x})"
        ) from None


def is_empty(folder: Path) -> bool:
    """Whether nothing is there: no directory, or nothing in it. Raises RegressionError where it is
    no directory."""
    try:
        if folder.is_symlink():
            raise RegressionError(f"{folder} is a link; name the directory itself: --out DIR")
        if is_there(folder) and not folder.is_dir():
            raise RegressionError(f"{folder} is no directory; name a new one: --out DIR")
        return not folder.exists() or not any(folder.iterdir())
    except OSError as error:
        raise RegressionError(unusable(error, folder)) from None


def check_strangers(folder: Path, names: Container[str]) -> None:
    """Raises RegressionError where it holds anything but plain files of these names."""
    try:
        with os.scandir(folder) as there:
            for one in there:
                is_cache = one.name == _CACHE and one.is_dir(follow_symlinks=False)
                is_ours = one.name in names and one.is_file(follow_symlinks=False)
                if not is_ours and not is_cache:
                    raise RegressionError(
                        f"{folder} holds {one.name}, which is no plain file of this test; move it "
                        "away, or name a new directory: --out DIR"
                    )
    except OSError as error:
        raise RegressionError(unusable(error, folder)) from None


def put(folder: Path, files: Mapping[str, bytes], away: tuple[str, ...], last: str) -> None:
    """Each of these files as a new one, without those that go `away`; the `last` one is gone until
    all others are written. Raises RegressionError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, _FOLDER)
        try:
            for name in (last, *away, *files):
                _remove(name, handle)
            for name in sorted(files, key=lambda one: one == last):
                with open(os.open(name, _WRITE, 0o666, dir_fd=handle), "wb") as file:
                    file.write(files[name])
        finally:
            os.close(handle)
    except OSError as error:
        raise RegressionError(unusable(error, folder)) from None


def _remove(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return


def unusable(error: OSError, path: Path) -> str:
    return f"cannot use {error.filename or path}: {error.strerror}"
