"""`ledger query|show|tail`: what is typed, and what is told when there is nothing to read."""

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger.store import Store
from proxy import environment, operations
from proxy.cli.main import cli
from tests.ledger.world import World

POLICY = "version: 1\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a person who has a policy and no settings, and runs no proxy."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "policy.yaml").write_text(POLICY, "utf-8")
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def test_a_ledger_that_was_removed_is_not_one_that_never_was(root: Path) -> None:
    store = Store.open(root / "data", operations.vault_key(root / "data"), lambda: 1)
    (root / "data" / "ledger.db").unlink()
    told = typed("ledger", "query")
    store.close()
    assert told.exit_code == 2
    assert f"the ledger {root}/data/ledger.db is gone" in told.stderr
    assert "pullcord up makes it" not in told.stderr


def test_tokens_and_cost_are_shown_beside_calls_where_there_are_any(root: Path) -> None:
    world = World(root / "data")
    world.admit(world.read("a"))
    world.settle("a")
    title = typed("ledger", "query").stdout.splitlines()[0]
    assert title.split()[-2:] == ["status", "ms"]
    world.admit(world.read("b"), world.read("c"))
    world.settle("b", input_tokens=1000, output_tokens=200, cost_microusd=3250)
    world.settle("c", input_tokens=7, output_tokens=0)
    title, unpriced, priced, _ = typed("ledger", "query").stdout.splitlines()
    assert title.split()[-4:] == ["ms", "in", "out", "usd"]
    assert unpriced.split()[-2:] == ["7", "0"]
    assert priced.split()[-3:] == ["1000", "200", "0.003250"]
    world.store.close()


@pytest.mark.parametrize("command", [("ledger", "query"), ("up", "--listen", "127.0.0.1:0")])
@pytest.mark.parametrize(
    "made, told",
    [
        (lambda path: path.mkdir(parents=True), "is no plain file"),
        (os.mkfifo, "is no plain file"),
        (lambda path: path.write_text("no database" * 999), "file is not a database"),
    ],
    ids=["a directory", "a pipe", "a text"],
)
def test_what_is_no_ledger_is_named_with_its_path(
    root: Path, command: tuple[str, ...], made: Any, told: str
) -> None:
    (root / "data").mkdir()
    made(root / "data" / "ledger.db")
    result = typed(*command)
    assert result.exit_code == 2
    assert f"{root}/data/ledger.db" in result.stderr
    assert told in result.stderr
    assert "stop pullcord" not in result.stderr
    assert "removed or replaced" not in result.stderr


@pytest.mark.parametrize(
    "words, told",
    [
        (("--limit", "99999999999999999999"), "is not in the range"),
        (("--limit", "0"), "is not in the range"),
        (("--sql", "SELECT 1", "--limit", "3"), "write LIMIT into it"),
        (("--sql", "SELECT 1", "run:r1"), "put the filters into its WHERE"),
        (("--jsn",), "No such option '--jsn'"),
        (("--limt", "3"), "Did you mean '--limit'?"),
        (("-x",), "No such option '-x'"),
        (("-rn:r1",), "did you mean run?"),
        (("run",), "is no filter"),
    ],
)
def test_a_ledger_query_that_was_mistyped_says_how(
    root: Path, words: tuple[str, ...], told: str
) -> None:
    Store.open(root / "data", operations.vault_key(root / "data"), lambda: 1).close()
    result = typed("ledger", "query", *words)
    assert (result.exit_code, told in result.stderr) == (2, True), result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["query", "tail"])
def test_ledger_commands_help_themselves(command: str) -> None:
    assert typed("ledger", command, "-h").stdout == typed("ledger", command, "--help").stdout
