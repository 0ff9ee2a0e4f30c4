"""`halt`, `freeze`, `resume`, `thaw`, `status` without a proxy, and with whatever else is dead."""

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger.store import Store
from proxy import environment, operations, secret_keys
from proxy.cli import acting, pulled, status
from proxy.cli.main import cli
from proxy.cli.reading import cords_on_disk
from proxy.letterbox import Letterbox

POLICY = """\
version: 1
releases: {known_good: [v1]}
tools:
  mail.send: {match: {host: mail.example, method: POST}, effect: write}
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of a person who has a policy and runs no proxy."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "policy.yaml").write_text(POLICY, "utf-8")
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    for wait in ("HELD_SECONDS", "LATCH_SECONDS"):
        monkeypatch.setattr(acting, wait, 0.0)
    Store.open(tmp_path / "data", secret_keys.vault_key(tmp_path / "data"), lambda: 1).close()
    return tmp_path / "data"


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def answered(*words: str) -> dict[str, Any]:
    result = typed(*words, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    answer: dict[str, Any] = json.loads(line)
    return answer


def rules(data: Path) -> list[str]:
    return [cord["rule"] for cord in cords_on_disk(data)]


@contextmanager
def held(data: Path) -> Iterator[Store]:
    """A process that has the ledger and answers nobody."""
    store = Store.open(data, secret_keys.vault_key(data), lambda: 1)
    try:
        yield store
    finally:
        store.close()


# ---------------------------------------------------------------------------- on the store


def test_a_halt_that_met_no_proxy_says_so_first_and_proves_nothing(data: Path) -> None:
    alone, pulled, undo = typed("halt", "run", "r1").stdout.splitlines()
    assert alone == f"NO PROXY RUNS HERE ({data}): recorded; it counts when one starts"
    assert pulled.startswith("pulled: HALT run r1  by ")
    assert undo == 'undo: pullcord resume run r1 --reason "..."'


def test_engines_that_were_killed_are_contained_and_that_is_proven(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {**answered("halt", "run", "r1"), "killed": [7], "recovered": 2}
    pulled.say_pulled(answer)
    pulled.say_proof(answer)
    alone, done, killed, unknown, proof, _ = capsys.readouterr().out.splitlines()
    assert (alone.startswith("NO PROXY RUNS"), done) == (True, "halted run r1; 0 calls cut")
    assert "1 engine that nobody decides for (pid 7)" in killed
    assert unknown.startswith("2 calls of the proxy that ended: outcome unknown")
    assert proof.startswith("proof: 0 effects admitted after ")


def test_what_was_cut_not_sent_unknown_or_already_done_is_told_apart(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {**answered("halt", "run", "r1"), "up": True, "cut": 3}
    answer["proof"] |= {"unknown_writes": ["a"], "not_sent": 1, "already_done": ["b"]}
    pulled.say_pulled(answer)
    assert capsys.readouterr().out == (
        "halted run r1; 3 calls cut (1 write: outcome unknown: a; 1 not sent); "
        "1 call already done (b): only the rest of the answer was cut\n"
    )


def test_a_repeat_says_that_it_stood_already(data: Path) -> None:
    typed("halt", "run", "r1", "--reason", "loops")
    _, done, _ = typed("halt", "run", "r1").stdout.splitlines()
    assert done.startswith('stood already: HALT run r1  "loops"  by ')


def test_status_says_loudly_which_cord_stops_nothing(data: Path) -> None:
    typed("halt", "tool", "mail.send")
    assert "stops nothing" not in typed("status").stdout
    policy = data.parent / "config" / "policy.yaml"
    policy.write_text(POLICY.replace("mail.send:", "mail.post:"), "utf-8")
    (line,) = [each for each in typed("status").stdout.splitlines() if "HALT tool" in each]
    assert line.endswith("  stops nothing: the policy has no such tool")
    assert json.loads(typed("status", "--json").stdout)["pulled"][0]["effective"] is False


@pytest.mark.parametrize(
    "told, code",
    [
        ({}, 0),
        ({"pulled": [1]}, 10),
        ({"ledger": {"error": "full"}}, 3),
        ({"clock": {"stepped_seconds": 90.0}}, 3),
        ({"listening": None}, 3),
        ({"fleet": {"engines": 0}}, 3),
        ({"pulled": [1], "listening": None}, 10),
        ({"clock": {"stepped_seconds": None}}, 0),
    ],
)
def test_scripts_learn_by_the_exit_code_that_nothing_passes(
    data: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], code: int
) -> None:
    well: dict[str, Any] = {
        "pulled": [],
        "ledger": {"error": None},
        "clock": {"stepped_seconds": 0.0},
        "listening": "127.0.0.1:1",
        "fleet": {"engines": 1},
    }
    monkeypatch.setattr(status, "ask", lambda *_: {**well, **told})
    assert typed("status", "--json", "--exit-code").exit_code == code
    assert typed("status", "--json").exit_code == 0


@pytest.mark.parametrize("words", [("halt", "run", "r1"), ("halt", "run", "r1", "--json")])
@pytest.mark.parametrize("place", ["full", "gone"])
def test_that_nobody_can_read_what_was_done_does_not_make_it_fail(
    data: Path, words: tuple[str, ...], place: str
) -> None:
    root = Path(__file__).parents[2]
    program = [sys.executable, "-c", "from proxy.cli.main import main; main()", *words]
    if place == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        nobody, out = os.pipe()
        os.close(nobody)
    try:
        ended = subprocess.run(
            program,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
            check=False,
        )
    finally:
        os.close(out)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    assert "pulled, but that cannot be written to stdout" in ended.stderr
    assert rules(data) == ["halt:run:r1"]


@pytest.mark.parametrize("typed_time, seconds", [("90s", 90), ("30m", 1800), ("1d", 86_400)])
def test_a_cord_may_end_by_itself(data: Path, typed_time: str, seconds: int) -> None:
    answer = answered("halt", "run", "r1", "--for", typed_time)
    cord = operations.pull_from_json(answer["pulled"])
    assert cord.until_us is not None
    assert cord.until_us - cord.at_us == seconds * 1_000_000
    assert f"until {answer['pulled']['until']}" in typed("status").stdout


def test_a_second_pull_never_makes_it_shorter(data: Path) -> None:
    typed("halt", "run", "r1", "--reason", "loops")
    assert answered("halt", "run", "r1", "--for", "1m")["pulled"]["until"] is None
    told = typed("halt", "run", "r1", "--for", "1m").stderr
    assert "--for 1m shortens nothing: the halt of run r1 stands until it is released" in told
    typed("halt", "run", "r2", "--for", "2h")
    told = typed("halt", "run", "r2", "--for", "1h").stderr
    assert "--for 1h shortens nothing: the halt of run r2 stands until 2" in told
    assert "shortens nothing" not in typed("halt", "run", "r2", "--for", "3h").stderr


@pytest.mark.parametrize("time", ["5x", "0s", "soon", "400d", "-1m"])
def test_what_is_no_length_of_time_pulls_nothing(data: Path, time: str) -> None:
    result = typed("halt", "run", "r1", f"--for={time}")
    assert (result.exit_code, "write 90s, 30m, 2h or 1d" in result.stderr) == (2, True)
    assert rules(data) == []


@pytest.mark.parametrize("option", ["--dry-run", "-n"])
def test_a_dry_run_shows_what_would_stop_and_pulls_nothing(data: Path, option: str) -> None:
    typed("token", "mint", "--run", "r1")
    halt = typed("halt", "run", "r1", option).stdout
    assert halt == "would halt run r1: 1 active run, 0 calls in flight cut (0 writes)\n"
    freeze = typed("freeze", "tool", "mail.send", option).stdout
    assert freeze.startswith("would freeze writes of tool mail.send: 0 active runs, 0 writes")
    assert answered("halt", "global", option)["runs"] == ["r1"]
    assert rules(data) == []


def test_bytes_that_are_no_text_do_not_keep_a_cord_from_being_pulled(data: Path) -> None:
    assert answered("halt", "run", "r1", "--reason", "loop \udcff")["pulled"]["reason"]
    assert rules(data) == ["halt:run:r1"]


def test_a_resume_is_narrowed_to_a_known_good_release(data: Path) -> None:
    typed("halt", "run", "r1")
    result = typed("resume", "run", "r1", "--reason", "mended", "--release", "v1")
    narrowing, flows, done = result.stdout.splitlines()
    assert narrowing.startswith("narrowing HALT run r1")
    assert flows == "calls of run r1 by release v1 will flow again (0 active runs)"
    assert done == "resumed run r1 for release v1 only; for all else it stands"
    assert "but for v1" in typed("status").stdout
    bad = typed("resume", "run", "r1", "--reason", "x", "--release", "v2")
    assert bad.exit_code == 2
    assert "known_good (there: v1)" in bad.stderr
    assert bad.stdout == ""


def test_nothing_is_said_to_flow_that_a_dead_ledger_keeps_stopped(data: Path) -> None:
    (data / "HALT").write_text("freeze tenant acme\n")
    (data / "ledger.db").write_bytes(b"no database at all " * 100)
    result = typed("thaw", "tenant", "acme", "--reason", "mended")
    assert (result.exit_code, result.stdout) == (2, "")


def test_status_tells_what_the_file_halt_pulls_and_what_is_latched(data: Path) -> None:
    typed("freeze", "tenant", "acme")
    (data / "HALT").touch()
    result = typed("status")
    assert result.exit_code == 5
    assert "HALT global  by file:HALT" in result.stdout
    assert "not in the ledger yet" in result.stdout
    assert f"file    {data}/HALT is there" in result.stdout
    (state,) = [json.loads(line) for line in typed("status", "--json").stdout.splitlines()]
    assert {cord["rule"]: cord["latched"] for cord in state["pulled"]} == {
        "halt:global": False,
        "freeze:tenant:acme": True,
    }
    assert state["halt_file"] == str(data / "HALT")


def test_what_the_file_halt_pulls_is_shown_and_released_like_any_other(data: Path) -> None:
    typed("freeze", "tenant", "acme")
    (data / "HALT").touch()
    result = typed("resume", "global", "--reason", "mended")
    assert result.stdout.splitlines()[0].startswith("lifting HALT global  by file:HALT")
    assert rules(data) == ["freeze:tenant:acme"]
    assert not (data / "HALT").exists()


# ---------------------------------------------------------------------------- by the file


def test_a_mute_process_that_holds_the_ledger_gets_the_cord_by_the_file(data: Path) -> None:
    with held(data):
        result = typed("halt", "run", "r1", "--reason", "loops")
        assert result.exit_code == 0
        done, next_, undo = result.stdout.splitlines()
    assert done.startswith(f"halted run r1 by the file {data}/HALT, because no proxy runs on")
    assert f"(pid {os.getpid()})" in done
    assert next_.startswith("next: it obeys when it wakes; to be sure, end it")
    assert next_.endswith(f"kill -9 {os.getpid()}")
    assert undo.startswith("undo: pullcord resume run r1")
    assert rules(data) == []
    typed("token", "mint", "--run", "r2")  # whoever opens the ledger next
    assert rules(data) == ["halt:run:r1"]


def test_a_proxy_that_is_mute_but_looks_into_the_file_takes_the_cord_and_that_is_proven(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acting, "LATCH_SECONDS", 10.0)
    done = threading.Event()

    def watch(store: Store) -> None:
        box = Letterbox(data)
        while not done.wait(0.02):
            for cord in box.waiting(1):
                store.pull(cord)

    with held(data) as store:
        watching = threading.Thread(target=watch, args=(store,))
        watching.start()
        try:
            answer = answered("halt", "run", "r1")
        finally:
            done.set()
            watching.join()
    assert (answer["next"], answer["proof"]["admitted_after"]) == ("", 0)
    assert rules(data) == ["halt:run:r1"]


def test_a_cord_in_the_file_has_no_end_and_that_is_said(data: Path) -> None:
    with held(data):
        answer = answered("halt", "run", "r1", "--for", "30m")
    assert answer["pulled"]["until"] is None
    assert answer["next"].startswith("the file knows no --for, so this stands until you release")


def test_nothing_is_released_behind_a_mute_process(data: Path) -> None:
    typed("halt", "run", "r1")
    with held(data):
        result = typed("resume", "run", "r1", "--reason", "x")
    assert result.exit_code == 5
    assert f"pid {os.getpid()}" in result.stderr
    assert rules(data) == ["halt:run:r1"]


@pytest.mark.parametrize("level", ["halt", "freeze"])
def test_a_ledger_that_cannot_be_opened_gets_the_cord_by_the_file(data: Path, level: str) -> None:
    typed("token", "mint", "--run", "r1")
    (data / "ledger.db").write_bytes(b"no database at all " * 100)
    answer = answered(level, "tool", "mail.send")
    assert answer["file"] == str(data / "HALT")
    assert "damaged" in answer["why"]
    assert "mend the ledger" in answer["next"]
    assert (data / "HALT").read_text().startswith(f"{level} tool mail.send  #")
    result = typed("status")
    assert (result.exit_code, "not in the ledger yet" in result.stdout) == (5, True)
    assert "so what is pulled is not known" in result.stdout


def test_a_cord_that_can_stop_nothing_is_not_posted_either(data: Path) -> None:
    with held(data):
        misspelt = typed("halt", "tool", "mail.sent")
        nameless = typed("halt", "run")
    assert (misspelt.exit_code, nameless.exit_code) == (4, 2)
    assert not (data / "HALT").exists()


def test_where_nothing_can_be_written_it_says_that_nothing_was_pulled(
    data: Path, tmp_path: Path
) -> None:
    (data / "ledger.lock").unlink()
    (data / "ledger.lock").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # no file can grow
    try:
        result = typed("halt", "global")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.exit_code == 2
    assert "NOT PULLED" in result.stderr
    assert f"as root, halt everything: touch {data}/HALT" in result.stderr


def test_a_process_to_signal_is_named_when_only_that_is_left(data: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with held(data):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # no file can grow
        try:
            result = typed("halt", "run", "r1")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.exit_code, "NOT PULLED" in result.stderr) == (2, True)
    assert f"kill -USR1 {os.getpid()}" in result.stderr
    assert f"touch {data}/HALT" in result.stderr
    assert not (data / "HALT").exists()
