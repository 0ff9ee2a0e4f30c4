"""Files of long answers: sealed part by part, whole or nothing, and gone with their rows."""

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ledger import answer_room, answer_writer
from ledger.answer_files import YOUNG_SECONDS, AnswerFiles
from ledger.answer_room import ANSWER_FILE_BYTES_MAX, COUNT_SECONDS, SPARED_BYTES_MAX
from ledger.answer_writer import PART_BYTES
from ledger.records import Answer, AnswerFile
from ledger.vault import Vault

SIZES = [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 3 * PART_BYTES + 7]


LATER_US = int(YOUNG_SECONDS * 1e6)


def at_once(step: Callable[[], None]) -> None:
    """In this thread, so that what a test asks for is done when it looks."""
    step()


def disk(size_bytes: int, free_bytes: int) -> os.statvfs_result:
    blocks, free = size_bytes // 4096, free_bytes // 4096
    return os.statvfs_result((4096, 4096, blocks, free, free, 0, 0, 0, 0, 255))


def newest_us(data: Path) -> int:
    """When the newest file was written."""
    return max(path.stat().st_mtime_ns for path in (data / "answers").iterdir()) // 1_000


@pytest.fixture
def rows() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.execute("CREATE TABLE answer (claim INTEGER PRIMARY KEY, sealed BLOB, file TEXT)")
        yield conn


def written(files: AnswerFiles, body: bytes, claim: int = 1) -> AnswerFile:
    """A finished file, named after its claim."""
    writer = files.begin(0.0)
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
    files = AnswerFiles(tmp_path, at_once)
    monkeypatch.setattr(answer_room, "ANSWER_FILE_BYTES_MAX", 1_000)
    writer = files.begin(0.0)
    assert writer.add(bytes(1_000))
    assert not writer.add(b"x")
    assert not writer.add(b"y")
    assert writer.finish() is None
    assert writer.why == "it is too long"
    assert not (tmp_path / "answers").exists()
    monkeypatch.setattr(answer_writer, "_BATCH_BYTES", 1)
    monkeypatch.setattr(answer_room, "ANSWER_FILES_BYTES_MAX", 2_500)
    one, two, three = files.begin(0.0), files.begin(0.0), files.begin(0.0)
    assert one.add(b"1")
    assert two.add(b"2")
    three.add(b"3")  # two that are on their way may come to 2,000
    assert three.finish() is None
    assert three.why == "there is no room for it"
    one.drop()
    assert files.begin(0.0).finish() is not None
    two.drop()


def test_what_was_written_is_counted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = AnswerFiles(tmp_path, at_once)
    monkeypatch.setattr(answer_room, "ANSWER_FILE_BYTES_MAX", 1_000)
    monkeypatch.setattr(answer_room, "ANSWER_FILES_BYTES_MAX", 1_500)
    written(files, bytes(501))
    assert files.begin(0.0).finish() is None


def test_what_others_write_and_remove_is_counted_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, others = AnswerFiles(tmp_path, at_once), AnswerFiles(tmp_path, at_once)
    monkeypatch.setattr(answer_room, "ANSWER_FILE_BYTES_MAX", 1_000)
    monkeypatch.setattr(answer_room, "ANSWER_FILES_BYTES_MAX", 1_500)
    written(files, b"x")
    file = written(others, bytes(900))
    in_time = files.begin(COUNT_SECONDS - 1)
    assert in_time.finish() is not None
    in_time.drop()
    assert files.begin(COUNT_SECONDS).finish() is None
    (tmp_path / "answers" / file.name).unlink()
    assert files.begin(COUNT_SECONDS + 1).finish() is None
    assert files.begin(2 * COUNT_SECONDS).finish() is not None


@pytest.mark.parametrize(
    "size_bytes, free_bytes, is_kept",
    [
        (2**40, SPARED_BYTES_MAX + ANSWER_FILE_BYTES_MAX, True),
        (2**40, SPARED_BYTES_MAX + ANSWER_FILE_BYTES_MAX - 4096, False),
        (2**30, 2**30 // 20 + ANSWER_FILE_BYTES_MAX + 4096, True),
        (2**30, 2**30 // 20 + ANSWER_FILE_BYTES_MAX - 4096, False),
    ],
)
def test_the_last_of_the_disk_is_the_ledgers(
    tmp_path: Path, size_bytes: int, free_bytes: int, is_kept: bool
) -> None:
    files = AnswerFiles(tmp_path, at_once, lambda _path: disk(size_bytes, free_bytes))
    writer = files.begin(0.0)
    writer.add(b"x")
    assert (writer.finish() is not None) is is_kept
    writer.release()
    assert len(os.listdir(tmp_path / "answers")) == is_kept


def test_a_disk_that_fills_up_meanwhile_takes_no_more(tmp_path: Path) -> None:
    free_bytes = [2**30, 2**30, SPARED_BYTES_MAX - 4096]
    files = AnswerFiles(tmp_path, at_once, lambda _path: disk(2**40, free_bytes.pop(0)))
    writer = files.begin(0.0)
    assert writer.add(bytes(2**20))
    assert len(os.listdir(tmp_path / "answers")) == 1
    writer.add(bytes(2**20))
    assert writer.why == "the disk is nearly full"
    assert not writer.add(b"x")
    assert os.listdir(tmp_path / "answers") == []


def test_a_disk_that_takes_nothing_keeps_nothing(tmp_path: Path) -> None:
    writer = AnswerFiles(tmp_path / "missing" / "data").begin(0.0)
    writer.add(b"x")
    assert writer.finish() is None


def test_only_what_a_row_names_or_somebody_writes_outlives_a_sweep(
    tmp_path: Path, rows: sqlite3.Connection
) -> None:
    files = AnswerFiles(tmp_path, at_once)
    kept, dropped = written(files, b"kept", 1), written(files, b"dropped", 2)
    rows.execute("INSERT INTO answer VALUES (1, x'', ?), (3, x'', 'other')", (kept.name,))
    writing = files.begin(0.0)
    writing.add(bytes(2**20))
    for stray in ("3-abc", "abc", "x-1", "9" * 30 + "-a", "dead.part"):
        (tmp_path / "answers" / stray).write_bytes(b"")
    assert files.sweep(rows, newest_us(tmp_path)) == 0  # as young as one that gets its lock or row
    assert files.sweep(rows, newest_us(tmp_path) + LATER_US) == 6
    left = sorted(os.listdir(tmp_path / "answers"))
    assert kept.name in left
    assert len(left) == 2
    assert read(files, dropped) is None
    writing.drop()


def test_a_writer_that_died_leaves_nothing(tmp_path: Path, rows: sqlite3.Connection) -> None:
    files = AnswerFiles(tmp_path, at_once)
    writer = files.begin(0.0)
    writer.add(bytes(2**20))
    writer.release()  # as the kernel does
    assert files.sweep(rows, newest_us(tmp_path) + LATER_US) == 1


def test_a_file_is_adopted_again_after_a_rollback(tmp_path: Path) -> None:
    files, vault = AnswerFiles(tmp_path, at_once), Vault(bytes(32))
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.execute("CREATE TABLE answer (claim INTEGER PRIMARY KEY, sealed BLOB, file TEXT)")
        vault.use(files, conn, 0)
        writer = files.begin(0.0)
        writer.add(b"body")
        answer = Answer(200, (), b"", writer.finish())
        conn.execute("BEGIN")
        assert vault.put(conn, 7, "c1", answer)
        conn.execute("ROLLBACK")
        assert vault.get(conn, 7, "c1") is None
        assert vault.put(conn, 7, "c1", answer)
        writer.release()
        kept = vault.get(conn, 7, "c1")
        assert kept is not None
        assert kept.file is not None
        assert read(files, kept.file) == b"body"
        os.unlink(tmp_path / "answers" / kept.file.name)
        assert not vault.put(conn, 7, "c1", answer)


def test_a_name_is_on_the_disk_before_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, list[str]]] = []

    def fsync(handle: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append((is_directory, os.listdir(tmp_path / "answers")))

    monkeypatch.setattr(os, "fsync", fsync)
    file = written(AnswerFiles(tmp_path, at_once), b"body")
    assert synced[-1] == (True, [file.name])
