"""The file HALT, on a real file system."""

import os
import threading
from pathlib import Path

import pytest

from policies.verdict import Level, Pull, Scope
from proxy.letterbox import ACTOR, LETTER_BYTES_MAX, Letterbox, post

NOW_US = 1_800_000_000_000_000
EVERYTHING = (Level.HALT, Scope.GLOBAL, "")


@pytest.fixture
def box(tmp_path: Path) -> Letterbox:
    return Letterbox(tmp_path)


def cord(
    level: Level = Level.HALT, scope: Scope = Scope.RUN, subject: str = "r1", reason: str = "loops"
) -> Pull:
    return Pull(level, scope, subject, reason, "ada", NOW_US)


def names(box: Letterbox) -> list[tuple[Level, Scope, str]]:
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
    box: Letterbox, line: str, name: tuple[Level, Scope, str], reason: str
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


def test_what_is_there_but_no_file_halts_everything(box: Letterbox, tmp_path: Path) -> None:
    box.path.mkdir()
    assert names(box) == [EVERYTHING]
    box.path.rmdir()
    box.path.symlink_to(tmp_path / "nowhere")
    assert names(box) == [EVERYTHING]
    assert post(tmp_path, cord()) == box.path


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
    assert not box.path.exists()


def test_a_line_that_nobody_knows_outlives_the_release_of_another(box: Letterbox) -> None:
    box.path.write_text("halt run r1\nstop it all\n")
    box.strike(Level.HALT, Scope.RUN, "r1")
    assert names(Letterbox(box.path.parent)) == [EVERYTHING]


def test_striking_without_a_file_is_no_failure(box: Letterbox) -> None:
    box.strike(*EVERYTHING)
