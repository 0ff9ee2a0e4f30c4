"""How a command is run as another user and contained: codes, signals, its end, what is refused.

About 15 seconds. Needs what test_contained.py needs.
"""

import pwd
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.beside import (
    PLAIN_USER,
    PROGRAM,
    Beside,
    finished,
    python_for_all,
    standing,
    watched,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc and namespaces are Linux's"),
]


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with standing(tmp_path_factory.mktemp("origin")) as stood:
        yield stood


# ---------------------------------------------------------------------------- how it runs


@pytest.mark.parametrize(
    "keeping, said",
    [
        ("same user", "(same user: not enforced)"),
        ("other user", "(as user nobody)"),
        ("contained", "(contained)"),
    ],
)
def test_the_first_line_says_how_the_agent_is_kept(beside: Beside, keeping: str, said: str) -> None:
    assert f" {said}; watch: " in beside.run(keeping, "true").stderr.splitlines()[0]


@pytest.mark.parametrize("keeping", ["other user", "contained", "contained, by root"])
def test_the_agent_is_told_nothing_of_pullcords_places_nor_of_the_session(
    beside: Beside, keeping: str
) -> None:
    told = dict(line.split("=", 1) for line in beside.run(keeping, "env").stdout.splitlines())
    assert {name for name in told if name.startswith("PULLCORD_")} == {
        "PULLCORD_RUN_ID",
        "PULLCORD_URL",
    }
    assert "SSH_AUTH_SOCK" not in told
    expected = str(beside.proxy.folder) if keeping == "contained" else "/nonexistent"
    assert told["HOME"] == expected


@pytest.mark.parametrize(
    "command, code",
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-command"], 127),
        (["/"], 126),
    ],
)
def test_a_contained_command_ends_as_it_does_elsewhere(
    beside: Beside, command: list[str], code: int
) -> None:
    assert beside.run("contained", *command).returncode == code


def test_a_contained_command_whose_run_is_halted_ends_with_77(beside: Beside) -> None:
    beside.proxy.cli("halt", "run", "run-contained")
    assert beside.run("contained", "true").returncode == 77
    beside.proxy.cli("resume", "run", "run-contained", "--reason", "looked at")
    assert beside.run("contained", "true").returncode == 0


@pytest.mark.parametrize("keeping", ["other user", "contained", "contained, by root"])
def test_a_signal_reaches_the_agent_and_its_code_comes_back(beside: Beside, keeping: str) -> None:
    script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    with watched(beside.start(keeping, "sh", "-c", script, start_new_session=True)) as wrapper:
        assert wrapper.stdout is not None
        assert wrapper.stdout.readline() == "ready\n"
        wrapper.send_signal(signal.SIGTERM)
        assert wrapper.stdout.readline() == "got it\n"
        assert wrapper.wait() == 5


@pytest.mark.parametrize("keeping", ["contained", "contained, by root"])
def test_when_pullcord_run_is_killed_the_contained_agent_dies(beside: Beside, keeping: str) -> None:
    script = "echo ready; sleep 1000 & sleep 1000"
    with watched(beside.start(keeping, "sh", "-c", script)) as wrapper:
        assert wrapper.stdout is not None
        assert wrapper.stdout.readline() == "ready\n"
        wrapper.kill()
        assert wrapper.stdout.read() == ""  # its last writer is gone


def test_what_a_contained_agent_leaves_behind_ends_with_it(beside: Beside) -> None:
    with watched(beside.start("contained", "sh", "-c", "sleep 1000 & exit 3")) as wrapper:
        assert wrapper.stdout is not None
        assert wrapper.stdout.read() == ""
        assert wrapper.wait() == 3


def test_what_root_contains_runs_as_whoever_typed_sudo_else_as_nobody(beside: Beside) -> None:
    daemon = pwd.getpwnam("daemon").pw_uid
    for uid, environ in ((65_534, {}), (daemon, {"SUDO_UID": str(daemon)})):
        ended = beside.run("contained, by root", "id", "-u", environ=environ)
        assert ended.stdout == f"{uid}\n"


ORPHANS = """
import os, time
told, tell = os.pipe()
if os.fork() == 0:
    orphan = os.fork()
    if orphan:
        os.write(tell, str(orphan).encode())
    os._exit(0)
os.wait()
orphan = os.read(told, 16).decode()
deadline = time.monotonic() + 10
while os.path.exists(f"/proc/{orphan}") and time.monotonic() < deadline:
    time.sleep(0.01)
print("buried" if not os.path.exists(f"/proc/{orphan}") else "a zombie")
"""


def test_orphans_of_a_contained_agent_are_buried(beside: Beside) -> None:
    assert beside.run("contained", python_for_all(), "-c", ORPHANS).stdout == "buried\n"


def test_a_contained_agent_has_no_rights_to_lose(beside: Beside) -> None:
    told = beside.run("contained", "cat", "/proc/self/status", "/proc/1/status").stdout
    fields = [line.split(":\t") for line in told.splitlines()]
    rights = {value for name, value in fields if name.startswith("Cap")}
    assert rights == {"0" * 16}
    assert [value for name, value in fields if name == "NoNewPrivs"] == ["1", "1"]


def test_a_contained_agent_works_in_its_directory(beside: Beside) -> None:
    """Also where that lies in the /tmp that it does not see the rest of."""
    assert beside.run("contained", "sh", "-c", "echo x > kept && pwd").stdout.strip() == str(
        beside.work
    )
    assert (beside.work / "kept").read_text() == "x\n"
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        ended = beside.run("contained", "sh", "-c", "echo y > kept; ls -A /tmp", cwd=place)
        assert ended.stdout.split() == [Path(place).name]
        assert Path(place, "kept").read_text() == "y\n"


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "words, plain, sentence",
    [
        (["--user", "nobody"], True, "type: sudo pullcord run --data "),
        (["--user", "root"], False, "name another user with --user"),
        (["--user", "no-such-user"], False, "there is no user 'no-such-user'"),
        (["--user", "nobody", "--contain"], False, "exclude each other"),
    ],
)
def test_a_user_that_keeps_nothing_away_is_refused(
    beside: Beside, words: list[str], plain: bool, sentence: str
) -> None:
    ended = beside.types("run", *words, "--", "true", plain=plain)
    assert (ended.returncode, sentence in ended.stderr) == (2, True), ended.stderr


def test_what_the_user_could_open_or_change_is_named(beside: Beside) -> None:
    data, config = beside.proxy.folder / "data", beside.proxy.folder / "config"
    for path, wrong, sentence in (
        (data, 0o700, f"cannot get to {data}/ca/ca.pem, because {data} is closed to it"),
        (data / "ca" / "ca.pem", 0o600, f"cannot read {data}/ca/ca.pem"),
        (data / "decoy", 0o604, f"can read {data}/decoy"),
        (config, 0o777, f"can write to {config}, and so change"),
    ):
        right = path.stat().st_mode
        path.chmod(wrong)
        ended = beside.types("run", "--user", "nobody", "--", "true")
        path.chmod(right)
        assert (ended.returncode, sentence in ended.stderr) == (2, True), ended.stderr


def test_a_contained_agent_does_not_work_in_the_data_directory(beside: Beside) -> None:
    ended = beside.run("contained", "true", cwd=beside.proxy.folder / "data")
    assert (ended.returncode, "go to another directory" in ended.stderr) == (2, True)


def test_where_user_namespaces_are_off_it_says_what_to_type(beside: Beside) -> None:
    """They are, in a namespace of our own, whose rights to change that are gone afterwards."""
    off = "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --inh-caps=-all "
    script = f'{off} --ambient-caps=-all "$@"'
    command = [*PLAIN_USER[:-1], "--keep-caps", "--", "sh", "-c", script, "sh", *PROGRAM]
    ended = finished(beside.starts([*command, "run", "--contain", "--", "true"]))
    assert ended.returncode == 2
    assert "type: sudo sysctl -w user.max_user_namespaces=" in ended.stderr
    assert "--user NAME" in ended.stderr
