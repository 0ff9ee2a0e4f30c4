"""The file HALT, on a real file system."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from policies.verdict import Level, Pull, Scope
from proxy import letterbox
from proxy.letterbox import ACTOR, LETTER_BYTES_MAX, Letterbox, post

NOW_US = 1_800_000_000_000_000
Name = tuple[Level, Scope, str]
EVERYTHING = (Level.HALT, Scope.GLOBAL, "")


@pytest.fixture
def box(tmp_path: Path) -> Letterbox:
    return Letterbox(tmp_path)


def cord(
    level: Level = Level.HALT, scope: Scope = Scope.RUN, subject: str = "r1", reason: str = "loops"
) -> Pull:
    return Pull(level, scope, subject, reason, "ada", NOW_US)


def names(box: Letterbox) -> list[Name]:
    return [(pull.level, pull.scope, pull.subject) for pull in box.waiting(NOW_US)]


def test_without_a_file_nothing_waits(box: Letterbox) -> None:
    assert names(box) == []


def test_an_empty_file_halts_everything(box: Letterbox) -> None:
    box.path.touch()
    (pull,) = box.waiting(NOW_US)
    assert (pull.rule, pull.actor, pull.at_us) == ("halt:global", ACTOR, NOW_US)


@pytest.mark.parametrize(
    "line, name, reason",
    [
        ("halt run r1", (Level.HALT, Scope.RUN, "r1"), ""),
        ("  freeze   tenant  acme   # it loops ", (Level.FREEZE, Scope.TENANT, "acme"), "it loops"),
        ("halt global# at once", EVERYTHING, "at once"),
        ("halt release my release # x", (Level.HALT, Scope.RELEASE, "my release"), "x"),
        ('halt release "a#1\\n" # x', (Level.HALT, Scope.RELEASE, "a#1\n"), "x"),
        ("freeze tool a.b-c", (Level.FREEZE, Scope.TOOL, "a.b-c"), ""),
    ],
)
def test_a_line_pulls_the_cord_that_it_names(
    box: Letterbox, line: str, name: Name, reason: str
) -> None:
    box.path.write_text(f"# what we know\n\n{line}\n")
    (pull,) = box.waiting(NOW_US)
    assert ((pull.level, pull.scope, pull.subject), pull.reason) == (name, reason)


@pytest.mark.parametrize(
    "text",
    [
        "# it loops\n",
        "stop everything",
        "halt",
        "halt run",
        "halt run # r1",
        "halt run a/b",
        "halt global r1",
        "halt planet earth",
        "freeze tool stripe.*",
        "freeze tool api.write because it is broken",
        'halt release "open',
        'halt release "a" b',
        "halt release 7 \ud800".encode("utf-8", "surrogatepass"),
        b"\xff\xfe",
        "halt run r1\n" * (LETTER_BYTES_MAX // 10),
    ],
)
def test_what_cannot_be_read_halts_everything(box: Letterbox, text: str | bytes) -> None:
    box.path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert set(names(box)) == {EVERYTHING}


def test_a_directory_halts_everything(box: Letterbox) -> None:
    box.path.mkdir()
    assert names(box) == [EVERYTHING]
    assert post(box.path.parent, cord()) == box.path


def test_a_file_behind_a_link_is_read_when_it_changes(box: Letterbox, tmp_path: Path) -> None:
    (tmp_path / "mounted").write_text("halt run r1\n")
    box.path.symlink_to(tmp_path / "mounted")
    box.waiting(NOW_US)
    box.taken()
    (tmp_path / "mounted").write_text("halt run r1\nhalt run r2\n")
    assert [subject for _, _, subject in names(box)] == ["r1", "r2"]


def test_what_is_stored_waits_no_more_until_the_file_changes(box: Letterbox) -> None:
    box.path.write_text("halt run r1\n")
    assert len(names(box)) == 1
    box.taken()
    assert names(box) == []
    post(box.path.parent, cord(subject="r2"))
    assert [subject for _, _, subject in names(box)] == ["r1", "r2"]


def test_what_another_thread_saw_is_not_taken_for_stored(box: Letterbox) -> None:
    """A cord that comes into the file while a commit is under way must wait for the next one."""
    box.path.write_text("halt run r1\n")
    box.waiting(NOW_US)
    post(box.path.parent, cord(subject="r2"))
    looking = threading.Thread(target=box.waiting, args=(NOW_US,))
    looking.start()
    looking.join()
    box.taken()
    assert [subject for _, _, subject in names(box)] == ["r1", "r2"]


@pytest.mark.parametrize(
    "wanted",
    [
        cord(),
        cord(Level.FREEZE, Scope.TOOL, "stripe.refunds.create"),
        cord(scope=Scope.GLOBAL, subject=""),
        cord(scope=Scope.RELEASE, subject="2026 #1\n\u2028'\"x"),
        cord(scope=Scope.RELEASE, subject="  padded "),
        cord(reason="two\nlines # and a mark \udcff"),
    ],
)
def test_a_posted_cord_is_read_back(box: Letterbox, wanted: Pull) -> None:
    assert post(box.path.parent, wanted) == box.path
    (pull,) = box.waiting(NOW_US)
    assert (pull.rule, pull.actor) == (wanted.rule, ACTOR)
    assert pull.reason.startswith(wanted.reason.split("\n")[0])
    assert pull.reason.endswith("(by ada)")
    assert box.path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in box.path.parent.iterdir()] == ["HALT"]


def test_cords_are_posted_below_each_other_also_behind_an_open_line(box: Letterbox) -> None:
    box.path.write_text("halt run r0")
    post(box.path.parent, cord(subject="r1"))
    post(box.path.parent, cord(subject="r2"))
    assert [subject for _, _, subject in names(box)] == ["r0", "r1", "r2"]


@pytest.mark.parametrize("text", ["", "# why", b"\xff"])
def test_a_file_that_halts_everything_stays_as_it_is(box: Letterbox, text: str | bytes) -> None:
    raw = text.encode() if isinstance(text, str) else text
    box.path.write_bytes(raw)
    post(box.path.parent, cord())
    assert box.path.read_bytes() == raw


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="HALT"):
        post(tmp_path, cord())


def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        post(tmp_path / "gone", cord())


def test_a_struck_cord_is_pulled_by_no_start_and_the_others_are(box: Letterbox) -> None:
    for subject in ("r1", "r2"):
        post(box.path.parent, cord(subject=subject))
    box.waiting(NOW_US)
    box.taken()
    box.strike(Level.HALT, Scope.RUN, "r1")
    assert names(box) == []
    assert names(Letterbox(box.path.parent)) == [(Level.HALT, Scope.RUN, "r2")]
    box.strike(Level.HALT, Scope.RUN, "r2")
    assert not box.path.exists()


@pytest.mark.parametrize("text", ["", "stop it all\n", b"\xff"])
def test_a_file_that_halts_everything_goes_with_the_global_halt_only(
    box: Letterbox, text: str | bytes
) -> None:
    box.path.write_bytes(text.encode() if isinstance(text, str) else text)
    box.strike(Level.FREEZE, Scope.GLOBAL, "")
    box.strike(Level.HALT, Scope.RUN, "r1")
    assert names(box) == [EVERYTHING]
    box.strike(*EVERYTHING)
    assert box.path.exists(), "nobody stored it yet"
    box.taken()
    box.strike(*EVERYTHING)
    assert not box.path.exists()


def test_a_line_that_nobody_knows_outlives_the_release_of_another(box: Letterbox) -> None:
    box.path.write_text("halt run r1\nstop it all\n")
    box.strike(Level.HALT, Scope.RUN, "r1")
    assert names(Letterbox(box.path.parent)) == [EVERYTHING]


def test_striking_without_a_file_is_no_failure(box: Letterbox) -> None:
    box.strike(*EVERYTHING)


# ---------------------------------------------------------------------------- another hand


def stored(box: Letterbox) -> list[Name]:
    found = names(box)
    box.taken()
    return found


def test_a_line_that_comes_before_the_release_is_struck_is_pulled(box: Letterbox) -> None:
    box.path.write_text("halt run r1\nhalt run r3\n")
    stored(box)
    box.path.write_text(box.path.read_text() + "halt run r2\n")
    box.strike(Level.HALT, Scope.RUN, "r1")
    assert [subject for _, _, subject in stored(box)] == ["r3", "r2"]
    assert names(box) == []


def test_the_same_cord_pulled_again_before_the_release_is_struck_stays(box: Letterbox) -> None:
    post(box.path.parent, cord())
    stored(box)
    post(box.path.parent, cord(reason="again"))
    box.strike(Level.HALT, Scope.RUN, "r1")
    assert [pull.reason for pull in box.waiting(NOW_US)] == ["again (by ada)"]


def test_an_empty_file_that_comes_after_the_release_is_not_struck(box: Letterbox) -> None:
    assert stored(box) == []
    box.path.touch()
    box.strike(*EVERYTHING)
    assert names(box) == [EVERYTHING]


@pytest.mark.parametrize("before", ["halt run r1\n", "halt run r1\nhalt run r3\n"])
@pytest.mark.parametrize(
    "late, pulled", [("halt run r2\n", (Level.HALT, Scope.RUN, "r2")), ("", EVERYTHING)]
)
def test_what_is_written_into_the_file_that_is_being_replaced_is_kept(
    box: Letterbox, monkeypatch: pytest.MonkeyPatch, before: str, late: str, pulled: Name
) -> None:
    box.path.write_text(before)
    stored(box)
    handle = os.open(box.path, os.O_WRONLY | os.O_APPEND)
    look = letterbox._is_still

    def between(name: str, stamp: tuple[int, int, int]) -> bool:
        same = look(name, stamp)
        os.write(handle, late.encode()) if late else os.utime(handle, ns=(1, 1))
        return same

    monkeypatch.setattr(letterbox, "_is_still", between)
    box.strike(Level.HALT, Scope.RUN, "r1")
    os.close(handle)
    assert pulled in names(box)
    assert (Level.HALT, Scope.RUN, "r1") not in names(box)


def test_a_file_that_changes_before_it_is_replaced_is_read_again(
    box: Letterbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.path.write_text("halt run r1\n")
    stored(box)
    look, late = letterbox._is_still, ["halt run r2\n"]

    def between(name: str, stamp: tuple[int, int, int]) -> bool:
        box.path.write_text("halt run r1\n" + late.pop()) if late else None
        return look(name, stamp)

    monkeypatch.setattr(letterbox, "_is_still", between)
    box.strike(Level.HALT, Scope.RUN, "r1")
    assert [subject for _, _, subject in names(box)] == ["r2"]
    assert [each.name for each in box.path.parent.iterdir()] == ["HALT"]


def test_a_lock_that_a_stopped_process_holds_delays_a_cord_and_ends_a_strike(
    box: Letterbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letterbox, "_TURN_PAUSE", 0)
    handle = os.open(box.path.parent, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        post(box.path.parent, cord())
        assert len(stored(box)) == 1
        with pytest.raises(OSError, match="another hand"):
            box.strike(Level.HALT, Scope.RUN, "r1")
    finally:
        os.close(handle)
    box.strike(Level.HALT, Scope.RUN, "r1")
    assert not box.path.exists()


# ---------------------------------------------------------------------------- by touch


def touch(path: Path) -> None:
    """As `touch` does, at a time that differs from the last however coarse the clock is."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("latched", [True, False])
def test_a_touch_of_a_file_with_lines_halts_everything(box: Letterbox, latched: bool) -> None:
    box.path.write_text("halt run r1\n")
    stored(box) if latched else names(box)
    touch(box.path)
    assert stored(box) == [EVERYTHING, (Level.HALT, Scope.RUN, "r1")]


def test_a_touch_waits_until_it_is_stored_whatever_is_posted_behind_it(box: Letterbox) -> None:
    box.path.write_text("halt run r1\n")
    stored(box)
    touch(box.path)
    names(box)
    post(box.path.parent, cord(subject="r2"))
    assert EVERYTHING in stored(box)
    post(box.path.parent, cord(subject="r3"))
    assert EVERYTHING not in names(box)


def test_the_same_line_in_a_new_file_is_no_touch(box: Letterbox) -> None:
    for _ in range(2):
        box.path.write_text("halt run r1\n")
        assert stored(box) == [(Level.HALT, Scope.RUN, "r1")]
        box.strike(Level.HALT, Scope.RUN, "r1")


def test_a_line_that_stands_is_posted_once_and_pulls_again(box: Letterbox) -> None:
    post(box.path.parent, cord())
    stored(box)
    post(box.path.parent, cord())
    assert stored(box) == [(Level.HALT, Scope.RUN, "r1")]
    assert box.path.read_text().count("halt run r1") == 1


# ---------------------------------------------------------------------------- no such tool


def test_a_tool_that_the_policy_lacks_halts_everything_and_says_which(tmp_path: Path) -> None:
    box = Letterbox(tmp_path, is_tool={"api.write", "a b"}.__contains__)
    box.path.write_text('freeze tool api.write\nfreeze tool "a b"\nfreeze tool api.wriet\n')
    *known, typo = box.waiting(NOW_US)
    assert [pull.subject for pull in known] == ["api.write", "a b"]
    assert (typo.rule, typo.reason.endswith("freeze tool api.wriet")) == ("halt:global", True)
    box.taken()
    box.strike(*EVERYTHING)
    assert names(Letterbox(tmp_path)) == [(p.level, p.scope, p.subject) for p in known]


# ---------------------------------------------------------------------------- no plain file


@pytest.mark.parametrize("kind", ["pipe", "device", "nowhere", "itself"])
def test_what_is_no_plain_file_halts_everything_at_once_and_is_released(
    box: Letterbox, kind: str
) -> None:
    if kind == "pipe":
        os.mkfifo(box.path)
    else:
        box.path.symlink_to({"device": "/dev/zero", "nowhere": "/nowhere", "itself": "HALT"}[kind])
    assert post(box.path.parent, cord()) == box.path
    assert stored(box) == [EVERYTHING]
    assert names(box) == []
    box.strike(*EVERYTHING)
    assert not box.path.exists(follow_symlinks=False)


# ---------------------------------------------------------------------------- a full disk


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that notices only at the end that it has no room, as some do."""

    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("lines", ["", "halt run r1\n"])
def test_a_full_disk_takes_the_global_halt_and_no_other(box: Letterbox, lines: str) -> None:
    if lines:
        box.path.write_text(lines)
        os.utime(box.path, ns=(1, 1))
        stored(box)
    with pytest.raises(OSError, match="No space"):
        post(box.path.parent, cord(subject="r2"))
    assert names(box) == []
    post(box.path.parent, cord(scope=Scope.GLOBAL, subject=""))
    assert names(box)[0] == EVERYTHING
    assert [each.read_text() for each in box.path.parent.iterdir()] == [lines]
