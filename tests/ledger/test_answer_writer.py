"""A long answer is written behind the call: in order, in bounded memory, to its own file alone."""

import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from ledger import answer_writer
from ledger.answer_files import AnswerFiles
from ledger.answer_room import QUEUED_BYTES_MAX
from ledger.answer_writer import AnswerWriter
from ledger.records import AnswerFile
from tests.ledger.test_answer_files import at_once, read

PIECE = 2**20


def answers(data: Path) -> list[str]:
    return os.listdir(data / "answers")


def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors of the files that writers make from here on."""
    handles: list[int] = []
    told = os.open

    def noted(path: Any, flags: int, *more: Any) -> int:
        handles.append(told(path, flags, *more))
        return handles[-1]

    monkeypatch.setattr(os, "open", noted)
    return handles


@pytest.mark.parametrize("end", [AnswerWriter.drop, AnswerWriter.release])
@pytest.mark.parametrize("step", ["write", "fsync"])
def test_no_descriptor_is_closed_under_what_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, end: Callable[[AnswerWriter], None]
) -> None:
    """Its number would be the next file's, or the next connection's."""
    handles = opened(monkeypatch)
    reached, goes_on, done = Event(), Event(), Event()
    told = getattr(os, step)

    def slow(handle: int, *more: Any) -> Any:
        reached.set()
        goes_on.wait(10)
        os.fstat(handle)  # raises when it is closed
        return told(handle, *more)

    monkeypatch.setattr(os, step, slow)
    with ThreadPoolExecutor(2) as threads:

        def run(step: Callable[[], None]) -> None:
            threads.submit(step).add_done_callback(lambda _future: done.set())

        writer = AnswerFiles(tmp_path, run).begin(0.0)
        writer.add(b"x")
        finishing = threads.submit(writer.finish)
        assert reached.wait(10)
        end(writer)
        os.fstat(handles[0])
        goes_on.set()
        assert finishing.result(10) is None
        assert done.wait(10)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handles[0])
    assert len(answers(tmp_path)) == (end is AnswerWriter.release)  # which is left to the sweep


def test_a_file_that_gets_no_lock_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(handle: int, flags: int) -> None:
        raise BlockingIOError("injected")

    handles = opened(monkeypatch)
    monkeypatch.setattr(fcntl, "flock", failing)
    writer = AnswerFiles(tmp_path, at_once).begin(0.0)
    writer.add(b"x")
    assert writer.finish() is None
    assert writer.why == "injected"
    assert answers(tmp_path) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handles[0])


def test_what_was_added_is_written_later_in_its_order(tmp_path: Path) -> None:
    steps: list[Callable[[], None]] = []
    files = AnswerFiles(tmp_path, steps.append)
    one, two = files.begin(0.0), files.begin(0.0)
    bodies = os.urandom(3 * PIECE), os.urandom(2 * PIECE)
    for writer, body in ((one, bodies[0]), (two, bodies[1])):
        for start in range(0, len(body), 50_000):
            assert writer.add(body[start : start + 50_000])
    assert not (tmp_path / "answers").exists()  # whoever added it has waited for no disk
    steps.pop()()
    for writer, body in zip((one, two), bodies, strict=True):
        file = writer.finish()
        assert isinstance(file, AnswerFile)
        assert read(files, file) == body
        writer.release()
    for step in steps:
        step()
    assert len(answers(tmp_path)) == 2


def test_a_disk_that_lags_behind_loses_the_answer_and_bounds_the_memory(tmp_path: Path) -> None:
    steps: list[Callable[[], None]] = []
    files = AnswerFiles(tmp_path, steps.append)
    one, two = files.begin(0.0), files.begin(0.0)
    for _ in range(QUEUED_BYTES_MAX // PIECE - 1):
        assert one.add(bytes(PIECE))
    assert two.add(bytes(PIECE))
    assert not two.add(b"x")
    assert two.why == "the disk is too slow"
    assert one.add(bytes(PIECE))  # what the other held is free
    while steps:
        steps.pop(0)()
    file = one.finish()
    assert file is not None
    assert file.size_bytes == QUEUED_BYTES_MAX
    assert two.finish() is None
    assert answers(tmp_path) == [file.name]
    three = files.begin(0.0)
    assert all(three.add(bytes(PIECE)) for _ in range(QUEUED_BYTES_MAX // PIECE))


@pytest.mark.parametrize("failing", ["encrypt", "write", "fsync"])
def test_whatever_fails_behind_the_call_gives_the_answer_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_args: object, **_named: object) -> None:
        raise RuntimeError("injected")

    if failing == "encrypt":
        monkeypatch.setattr(answer_writer, "nonce", fail)
    writer = AnswerFiles(tmp_path, at_once).begin(0.0)
    if failing != "encrypt":
        monkeypatch.setattr(os, failing, fail)
    writer.add(bytes(PIECE))
    assert writer.finish() is None
    assert writer.why == "injected"
    writer.release()
    assert answers(tmp_path) == []
