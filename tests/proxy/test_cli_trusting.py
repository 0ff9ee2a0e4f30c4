"""`pullcord ledger verify|prune`: what is typed and what is told."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ledger.chain import Head
from proxy import environment
from proxy.cli import status
from proxy.cli.main import cli
from proxy.clock import SystemClock
from proxy.last_seal import keep_last
from proxy.sealing import seal_keys
from proxy.secret_keys import vault_key
from tests.ledger.trusted import called, change, trusted
from tests.ledger.world import World


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of a person who runs no proxy: ten sealed rows of last week, and two
    behind the seal."""
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    directory = tmp_path / "data"
    monkeypatch.setenv("PULLCORD_DATA", str(directory))
    monkeypatch.chdir(tmp_path)
    keys = seal_keys(directory)
    vault_key(directory)
    world = trusted(World(directory))
    world.now_us = SystemClock().now_us() - 7 * 86_400_000_000
    called(world, *"abcde")
    made = world.store.seal(keys.signer, Head(), world.now_us)
    assert made is not None
    (tmp_path / "copies").write_bytes(made[1].line(made[0]) + b"\n")
    world.now_us = SystemClock().now_us()
    called(world, "new")
    world.store.close()
    return directory


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ("ledger", *words))


def tampered(data: Path, statement: str) -> None:
    with closing(World(data).store) as store:
        store._conn.execute(statement)


# verify


def test_a_whole_record_is_told_with_what_is_covered(data: Path) -> None:
    told = typed("verify", "--seals", "copies")
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert lines[0].startswith("record   12 rows up to number 12, 20")
    assert lines[1].startswith("seals    1, the last over row 10 at 20")
    assert lines[1].endswith("; 2 rows behind it")
    assert lines[2] == "policies 1 text"
    assert lines[3] == "copies   1 seal as in copies"
    assert lines[4].startswith("note     not compared with the newest seal (private/seal.last")
    assert lines[5] == f"key      {seal_keys(data).signer.key_id}"
    assert lines[6] == "ok       all of it is as it was written"
    assert "\n".join(lines[7:]) + "\n" == (data / "private" / "seal.pub").read_text()


def test_a_cut_back_to_an_earlier_seal_is_found_where_the_ledger_is(data: Path) -> None:
    keys = seal_keys(data)
    with closing(World(data).store) as store:
        made = store.seal(keys.signer, Head(), SystemClock().now_us())
    assert made is not None
    keep_last(data, *made)
    told = typed("verify", "--json")
    assert (told.exit_code, json.loads(told.stdout)["newest_compared"]) == (0, True)
    assert typed("backup", "copy.db").exit_code == 0
    tampered(data, "DELETE FROM event WHERE seq > 10")
    tampered(data, "DELETE FROM seal WHERE seq > 10")
    tampered(data, "UPDATE sqlite_sequence SET seq = 10 WHERE name = 'event'")
    told = typed("verify")
    assert (told.exit_code, "the record is cut off after row 10" in told.stderr) == (3, True)
    told = typed("verify", "copy.db")
    assert (told.exit_code, "not compared with the newest seal" in told.stdout) == (0, True)
    # It is told for good by whoever uses it next, also without a proxy.
    assert typed("prune", "--older-than", "3d").exit_code == 0
    told = typed("verify")
    assert told.exit_code == 0, told.output
    assert "BEHIND   the ledger was without its newest seal at a start; row 11: a" in told.stdout


def test_copies_without_a_seal_end_with_3(data: Path) -> None:
    (data.parent / "empty").touch()
    told = typed("verify", "--seals", "empty")
    assert (told.exit_code, "there is no copy of a seal among" in told.stderr) == (3, True)
    told = typed("verify", "--seals", str(data / "private" / "seal.pub"))
    assert (told.exit_code, "line 1 of the copies: it is no copy" in told.stderr) == (3, True)


def test_a_whole_record_is_told_as_one_object(data: Path) -> None:
    told = json.loads(typed("verify", "--json").stdout)
    keys = seal_keys(data)
    for moment in ("first_at", "last_at", "sealed_at"):
        assert told.pop(moment).endswith("Z")
    assert told == {
        "file": str(data / "ledger.db"),
        "ok": True,
        "rows": 12,
        "last_seq": 12,
        "gaps": 0,
        "pruned": 0,
        "seals": 1,
        "sealed_to": 10,
        "unsealed": 2,
        "policies": 1,
        "copies": None,
        "newest_compared": False,
        "behind": [],
        "bodies": None,
        "trace_losses": 0,
        "trace": None,
        "keys": [keys.signer.key_id],
        "public_key": keys.signer.pem.decode(),
        "problems": [],
    }


def test_the_first_bad_row_is_named_and_ends_with_3(data: Path) -> None:
    tampered(data, "UPDATE event SET tool = 'mail' WHERE seq = 3")
    told = typed("verify")
    assert told.exit_code == 3
    assert "WRONG    row 3 was changed (call b)" in told.stdout
    assert "is not as it was written: row 3 was changed" in told.stderr
    told = typed("verify", "--json")
    assert (told.exit_code, json.loads(told.stdout)["problems"]) == (
        3,
        [{"what": "row 3 was changed", "seq": 3, "call": "b"}],
    )


def test_a_cut_with_its_seals_is_found_by_the_copies(data: Path) -> None:
    tampered(data, "DELETE FROM event WHERE seq > 8")
    tampered(data, "DELETE FROM seal")
    tampered(data, "UPDATE sqlite_sequence SET seq = 8 WHERE name = 'event'")
    assert typed("verify").exit_code == 0
    told = typed("verify", "--seals", "copies")
    assert (told.exit_code, "the record is cut off after row 8" in told.stdout) == (3, True)


def test_a_backup_elsewhere_takes_the_public_key_along(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert typed("backup", "copy.db").exit_code == 0
    assert typed("verify", "copy.db", "--seals", "copies").exit_code == 0
    public = data.parent / "seal.pub"
    (data / "private" / "seal.pub").rename(public)
    told = typed("verify", "copy.db")
    assert (told.exit_code, "which is not known here" in told.stdout) == (3, True)
    assert typed("verify", "copy.db", "--public-key", str(public)).exit_code == 0


@pytest.mark.parametrize(
    "words, why",
    [
        (("none.db",), "there is no "),
        (("--seals", "none"), "cannot read none"),
        (("--public-key", "none"), "cannot read none"),
        (("--public-key", "copies"), "no public key"),
    ],
)
def test_what_was_mistyped_ends_with_2(data: Path, words: tuple[str, ...], why: str) -> None:
    told = typed("verify", *words)
    assert (told.exit_code, why in told.stderr) == (2, True), told.output


def test_a_file_that_is_no_database_ends_with_3(data: Path) -> None:
    (data.parent / "text").write_text("no database" * 99)
    told = typed("verify", "text")
    assert (told.exit_code, "file is not a database" in told.stderr) == (3, True)


def test_where_no_ledger_is_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "none"))
    assert typed("verify").exit_code == 2
    assert typed("prune", "--older-than", "90d").exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_status_says_what_is_wrong_with_seals_and_no_more() -> None:
    fine = {"to": "syslog", "waiting": 0, "error": None}
    assert status._seal_warnings({"error": None, "behind": None, "copies": [fine]}) == []
    late = {"to": "https://host", "waiting": 2, "error": "it answered 503"}
    assert status._seal_warnings({"error": "full", "behind": "cut", "copies": [fine, late]}) == [
        "the record is not sealed: full",
        "at the start the ledger was behind its newest seal: cut",
        "2 seals not copied to https://host: it answered 503",
    ]


# prune


def test_pruning_is_told_and_the_record_stays_whole(data: Path) -> None:
    told = typed("prune", "--older-than", "3d", "--dry-run")
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("would go: 10 rows, 5 calls, older than 20")
    told = typed("prune", "--older-than", "3d")
    assert told.stdout.startswith("pruned: 10 rows, 5 calls, older than 20")
    told = typed("verify", "--seals", "copies")
    assert told.exit_code == 0, told.output
    assert "; 10 pruned, in 1 signed gap\n" in told.stdout
    assert typed("check").exit_code == 0
    told = typed("query", "--json")
    assert [json.loads(line)["id"] for line in told.stdout.splitlines()] == ["new"]


def test_pruning_told_as_one_object(data: Path) -> None:
    told = json.loads(typed("prune", "--older-than", "3d", "--trace-max", "1GB", "--json").stdout)
    assert told.pop("before").endswith("Z")
    nothing = {"messages": 0, "bytes": 0}
    assert told == {
        "dry_run": False,
        "rows": 10,
        "calls": 5,
        "trace": {**nothing, "left": nothing},
    }


@pytest.mark.parametrize(
    "words, why",
    [
        ((), "--older-than"),
        (("--older-than", "5m"), "the newest hour stays"),
        (("--older-than", "soon"), "'soon' is no time"),
        (("--older-than", "3d", "--trace-max", "much"), "'much' is no size"),
    ],
)
def test_a_mistyped_pruning_changes_nothing(data: Path, words: tuple[str, ...], why: str) -> None:
    told = typed("prune", *words)
    assert (told.exit_code, why in told.stderr) == (2, True), told.output
    assert "12 rows up to number 12" in typed("verify").stdout


def test_rows_that_were_changed_are_not_pruned(data: Path) -> None:
    with closing(World(data).store) as store:
        world = World.__new__(World)
        world.store = store
        change(world, "UPDATE event SET run = 'x' WHERE seq = 1")
    told = typed("prune", "--older-than", "3d")
    assert (told.exit_code, "row 1 is not as it was recorded" in told.stderr) == (2, True)
