"""Files of long answers: sealed part by part, whole or nothing, and gone with their rows."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ledger import answer_files
from ledger.answer_files import PART_BYTES, AnswerFiles
from ledger.records import AnswerFile

SIZES = [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 3 * PART_BYTES + 7]


@pytest.fixture
def rows() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.execute("CREATE TABLE answer (claim INTEGER PRIMARY KEY, sealed BLOB, file TEXT)")
        yield conn


def written(files: AnswerFiles, body: bytes, claim: int = 1) -> AnswerFile:
    """A finished file, named after its claim."""
    writer = files.begin()
    assert writer is not None
    for start in range(0, len(body), 10_000):
        assert writer.add(body[start : start + 10_000])
    file = writer.finish()
    assert file is not None
    name = files.adopt(file, claim)
    writer.release()
    assert name is not None
    return AnswerFile(name, file.key, file.size_bytes)


def read(files: AnswerFiles, file: AnswerFile) -> bytes | None:
    reader = files.open(file)
    if reader is None:
        return None
    parts = []
    while part := reader.read():
        parts.append(part)
    reader.close()
    return b"".join(parts)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read_again(tmp_path: Path, size: int) -> None:
    files, body = AnswerFiles(tmp_path), os.urandom(size)
    file = written(files, body)
    assert files.has(file)
    assert read(files, file) == body
    path = tmp_path / "answers" / file.name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert body[:32] not in path.read_bytes() or size < 8


@pytest.mark.parametrize(
    "damage",
    [
        lambda sealed, part: sealed[:-1] + bytes([sealed[-1] ^ 1]),
        lambda sealed, part: sealed[part : 2 * part] + sealed[:part] + sealed[2 * part :],
        lambda sealed, part: sealed[: 2 * part],
        lambda sealed, part: sealed[part:],
        lambda sealed, part: b"",
    ],
    ids=["a bit", "two parts change places", "its end is gone", "its start is gone", "empty"],
)
def test_what_is_not_as_it_was_written_is_no_answer(tmp_path: Path, damage: object) -> None:
    files = AnswerFiles(tmp_path)
    file = written(files, os.urandom(3 * PART_BYTES))
    path = tmp_path / "answers" / file.name
    path.write_bytes(damage(path.read_bytes(), PART_BYTES + 16))  # type: ignore[operator]
    assert read(files, file) is None


def test_another_file_of_the_same_length_is_no_answer(tmp_path: Path) -> None:
    files = AnswerFiles(tmp_path)
    one, other = (written(files, os.urandom(100), claim) for claim in (1, 2))
    (tmp_path / "answers" / other.name).rename(tmp_path / "answers" / one.name)
    assert files.has(one)
    assert read(files, one) is None
    assert not files.has(other)


def test_the_last_part_of_a_shorter_file_cannot_end_a_longer_one(tmp_path: Path) -> None:
    files = AnswerFiles(tmp_path)
    file = written(files, os.urandom(2 * PART_BYTES))
    shorter = AnswerFile(file.name, file.key, PART_BYTES)
    os.truncate(tmp_path / "answers" / file.name, PART_BYTES + 16)
    assert files.has(shorter)
    assert read(files, shorter) is None


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = AnswerFiles(tmp_path)
    monkeypatch.setattr(answer_files, "ANSWER_FILE_BYTES_MAX", 1_000)
    writer = files.begin()
    assert writer is not None
    assert writer.add(bytes(1_000))
    assert not writer.add(b"x")
    assert not writer.add(b"y")
    assert writer.finish() is None
    assert os.listdir(tmp_path / "answers") == []
    monkeypatch.setattr(answer_files, "ANSWER_FILES_BYTES_MAX", 2_500)
    one, two = files.begin(), files.begin()
    assert one is not None
    assert two is not None
    assert files.begin() is None  # two that are on their way may come to 2,000
    one.drop()
    again = files.begin()
    assert again is not None
    again.drop()
    two.drop()


def test_a_disk_that_takes_nothing_keeps_nothing(tmp_path: Path) -> None:
    files = AnswerFiles(tmp_path / "missing" / "data")
    assert files.begin() is None


def test_only_what_a_row_names_or_somebody_writes_outlives_a_sweep(
    tmp_path: Path, rows: sqlite3.Connection
) -> None:
    files = AnswerFiles(tmp_path)
    kept, dropped = written(files, b"kept", 1), written(files, b"dropped", 2)
    rows.execute("INSERT INTO answer VALUES (1, x'', ?), (3, x'', 'other')", (kept.name,))
    writing = files.begin()
    assert writing is not None
    for stray in ("3-abc", "abc", "x-1", "9" * 30 + "-a", "dead.part"):
        (tmp_path / "answers" / stray).write_bytes(b"")
    assert files.sweep(rows) == 6
    left = sorted(os.listdir(tmp_path / "answers"))
    assert kept.name in left
    assert len(left) == 2
    assert read(files, dropped) is None
    writing.drop()


def test_a_writer_that_died_leaves_nothing(tmp_path: Path, rows: sqlite3.Connection) -> None:
    files = AnswerFiles(tmp_path)
    writer = files.begin()
    assert writer is not None
    writer.add(b"half")
    writer.release()  # as the kernel does
    assert files.sweep(rows) == 1
