"""`pullcord ledger backup|check|export`, and `query --after`: what is typed and what is told."""

import csv
import json
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ledger.trace import TraceStore
from ledger.traced import Caught, Side
from proxy import environment
from proxy.cli.main import cli
from tests.ledger.world import World


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of a person who runs no proxy, with some calls in its ledger."""
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path / "data")
    world.admit(*(world.read(name) for name in "abcde"))
    for name in "abcde":
        world.settle(name)
    world.decided(world.ask("write"))
    world.settle("write")
    world.store.close()
    return tmp_path / "data"


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ("ledger", *words))


def test_what_is_no_ledger_is_told_in_two_lines(data: Path) -> None:
    with sqlite3.connect(data.parent / "other.db") as other:
        other.execute("CREATE TABLE t (a)")
    other.close()
    told = typed("check", "other.db")
    assert told.exit_code == 3
    assert [line.split()[0] for line in told.stdout.splitlines()] == ["WRONG", "it", "skipped"]


# Backup


def test_a_backup_says_what_is_in_it_and_what_is_not(data: Path) -> None:
    told = typed("backup", "copy.db")
    assert told.exit_code == 0, told.output
    what, keys, proof, back, without, forgotten = told.stdout.splitlines()
    path = data.parent / "copy.db"
    assert what.startswith(f"{path}: 0.")
    assert what.endswith("rows up to number 12, the newest of 2026-11-18T11:06:40.000Z")
    assert f"the keys in {data}/private" in keys
    assert proof == "prove that it is whole: pullcord ledger check copy.db"
    assert back.endswith("the file as ledger.db, the folder private/ beside it")
    assert "new keys are made" in without
    assert "which writes were made" in forgotten
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert typed("check", "copy.db").exit_code == 0


def test_a_backup_told_as_one_object(data: Path) -> None:
    told = json.loads(typed("backup", "copy.db", "--json").stdout)
    path = data.parent / "copy.db"
    assert told == {
        "file": str(path),
        "bytes": path.stat().st_size,
        "events": 12,
        "newest_at": "2026-11-18T11:06:40.000Z",
        "not_in_it": [f"{data}/private"],
    }


def test_the_trace_is_copied_beside_it(data: Path) -> None:
    told = typed("backup", "copy.db", "--trace", "trace.copy")
    assert (told.exit_code, "nothing is traced" in told.stderr) == (2, True)
    store = TraceStore.open(data, bytes(32), lambda: 1)
    start = "POST https://api.example/"
    who = ("r1", "acme", "pay", "", "full")
    at_us = 1_700_000_000_000_000
    store.keep([Caught("write", Side.REQUEST, at_us, *who, start, (), b"a word", 6)])  # type: ignore[arg-type]
    store.close()
    told = typed("backup", "copy.db", "--trace", "trace.copy", "--force")
    assert told.exit_code == 0, told.output
    path = data.parent / "trace.copy"
    assert any(line.startswith(f"{path}: the trace, 0.") for line in told.stdout.splitlines())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.rename(data / "trace.db")
    shown = json.loads(typed("show", "write", "--json").stdout)
    assert [message["text"] for message in shown["trace"]] == ["a word"]
    assert typed("query", "text:word", "--json").stdout.count("\n") == 1


def test_a_backup_replaces_nothing_unless_told(data: Path) -> None:
    (data.parent / "copy.db").write_text("precious")
    told = typed("backup", "copy.db")
    assert (told.exit_code, "exists; choose another name" in told.stderr) == (2, True)
    assert typed("backup", "copy.db", "--force").exit_code == 0
    told = typed("backup", str(data / "ledger.db"), "--force")
    assert (told.exit_code, "is the ledger itself" in told.stderr) == (2, True)


@pytest.mark.parametrize("words", [("backup", "copy.db"), ("check",), ("export", "--format=csv")])
def test_where_no_ledger_is_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    told = typed(*words)
    assert (told.exit_code, "there is no" in told.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


# Check


def test_a_whole_ledger_is_told_check_by_check(data: Path) -> None:
    told = typed("check")
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    assert "ok       its pages and indexes are whole" in lines
    rows = [json.loads(line) for line in typed("check", "--json").stdout.splitlines()]
    assert len(rows) == len(lines)
    assert {(row["ok"], row["skipped"]) for row in rows} == {(True, None)}


def test_what_is_wrong_is_named_and_ends_with_3(data: Path) -> None:
    world = World(data)
    world.decided(world.ask("open", body="o"))
    world.conn.execute("DELETE FROM claim WHERE call_id = 'open'")
    told = typed("check")
    world.store.close()
    assert told.exit_code == 3
    assert "every open call that claimed has its claim: 1 problem" in told.stdout
    assert "         call open\n" in told.stdout
    assert "go on with a backup" in told.stderr


def test_a_file_that_is_no_ledger_ends_with_3(data: Path) -> None:
    (data.parent / "text").write_text("no database" * 99)
    told = typed("check", "text")
    assert (told.exit_code, "WRONG    the file is a ledger" in told.stdout) == (3, True)
    assert "file is not a database" in told.stdout


def test_a_file_that_is_not_there_ends_with_2(data: Path) -> None:
    told = typed("check", "none.db")
    assert (told.exit_code, f"there is no {data.parent}/none.db" in told.stderr) == (2, True)


# Export


def test_an_export_goes_to_stdout_or_into_a_file_of_ones_own(data: Path) -> None:
    told = typed("export", "--format", "jsonl", "effect:read", "-id:b")
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert [row["id"] for row in rows] == list("acde")
    queried = [json.loads(line) for line in typed("query", "--json").stdout.splitlines()]
    assert rows == [row for row in reversed(queried) if row["id"] in "acde"]
    told = typed("export", "--format", "csv", "--output", "calls.csv")
    assert (told.exit_code, told.stdout) == (0, "")
    assert told.stderr == "exported 6 calls to calls.csv\n"
    path = data.parent / "calls.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [*"abcde", "write"]


@pytest.mark.parametrize("form", ["jsonl", "csv", "har", "flows"])
def test_each_form_is_the_same_in_a_file_and_on_stdout(data: Path, form: str) -> None:
    told = typed("export", "--format", form)
    assert told.exit_code == 0, told.output
    typed("export", "--format", form, "--output", "out")
    written = (data.parent / "out").read_bytes()
    assert len(written) > 100
    if form != "flows":  # those name connections by numbers made up anew
        assert written == told.stdout_bytes
    if form == "har":
        assert len(json.loads(written)["log"]["entries"]) == 6


@pytest.mark.parametrize(
    "words, why",
    [
        (("--format", "xml"), "'xml' is not one of"),
        ((), "--format"),
        (("--format", "csv", "--force"), "--force is for --output"),
        (("--format", "csv", "stat:x"), "did you mean state?"),
        (("--format", "csv", "-x"), "No such option '-x'"),
        (("--format", "csv", "--output", "taken"), "taken exists"),
        (("--format", "csv", "--output", "none/x"), "cannot be written"),
    ],
)
def test_an_export_that_was_mistyped_says_how(data: Path, words: tuple[str, ...], why: str) -> None:
    (data.parent / "taken").write_text("precious")
    told = typed("export", *words)
    assert (told.exit_code, why in told.stderr) == (2, True), told.output
    assert sorted(path.name for path in data.parent.iterdir()) == ["data", "taken"]


def test_an_export_of_nothing_says_so(data: Path) -> None:
    told = typed("export", "--format", "csv", "--output", "x.csv", "run:nobody")
    assert told.exit_code == 0
    assert "no call passes these filters" in told.stderr
    assert typed("export", "-h").stdout == typed("export", "--help").stdout


# Pages of a query


def test_a_query_goes_on_behind_a_call(data: Path) -> None:
    first = typed("query", "effect:read", "--limit", "2")
    assert [line.split()[0] for line in first.stdout.splitlines()[1:]] == ["e", "d"]
    assert "there may be more; the next 2: --after d" in first.stderr
    second = typed("query", "effect:read", "--limit", "2", "--after", "d", "--json")
    assert [json.loads(line)["id"] for line in second.stdout.splitlines()] == ["c", "b"]
    told = typed("query", "--after", "nobody")
    assert (told.exit_code, "has no call 'nobody'" in told.stderr) == (4, True)
    told = typed("query", "--after", "d", "--sql", "SELECT 1")
    assert (told.exit_code, "--sql stands alone" in told.stderr) == (2, True)
