"""`ledger query|show|tail`: what is typed, and what is told when there is nothing to read."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger import queries
from ledger.connection import open_reader
from ledger.states import EventType
from ledger.store import Store
from ledger.tokens import Grant
from policies.verdict import Scope
from proxy import environment, secret_keys
from proxy.cli.main import cli
from proxy.cli.records import _is_wanted
from tests.ledger.world import World, a_ceiling, a_policy, a_pull

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
    store = Store.open(root / "data", secret_keys.vault_key(root / "data"), lambda: 1)
    (root / "data" / "ledger.db").unlink()
    told = typed("ledger", "query")
    store.close()
    assert told.exit_code == 2
    assert f"the ledger {root}/data/ledger.db is gone" in told.stderr
    assert "pullcord up makes it" not in told.stderr


def test_the_rule_is_shown_where_a_call_was_refused(root: Path) -> None:
    world = World(root / "data")
    world.policy = a_policy(a_ceiling(1))
    world.admit(world.read("a"))
    assert "rule" not in typed("ledger", "query").stdout.split()
    world.admit(world.read("b"))
    title, refused, allowed = typed("ledger", "query").stdout.splitlines()
    assert title.split()[-1] == "rule"
    assert refused.split()[-1] == "ceiling:run-calls-1"
    assert "rule" not in allowed
    for term in ("rule:run-calls-1", "rule:ceiling:run-calls-1"):
        found = typed("ledger", "query", term, "--json").stdout.splitlines()
        assert [line[:10] for line in found] == ['{"id":"b",']
    world.store.close()


def test_tail_shows_all_that_carries_the_run_and_no_cord_of_another(root: Path) -> None:
    world = World(root / "data")

    def note(kind: EventType, run: str) -> None:
        world.store.note(kind, actor="ann", at_us=world.now_us, detail=f"{kind} {run}", run=run)

    for parent, run in (("", "r1"), ("", "r2"), ("r1", "kid")):
        tenant = "" if parent else "acme"
        grant = Grant(run, tenant, parent=parent)
        world.store.mint(grant, run.encode(), actor="ann", at_us=world.now_us, policy=world.policy)
        note(EventType.CROSSED, run)
        note(EventType.ADJUSTED, run)
        note(EventType.UNPRICED, run)
        world.store.pull(a_pull(Scope.RUN, run))
    world.store.pull(a_pull(Scope.TENANT, "acme"))
    with closing(open_reader(root / "data")) as reader:
        rows = queries.last_events(reader, 100)

        def shown(*filters: str) -> list[tuple[str, str]]:
            wanted = [row for row in rows if _is_wanted(reader, row, filters)]
            return [(row["type"], row["run"]) for row in reversed(wanted)]

        kinds = ("token.minted", "ceiling.crossed", "budget.adjusted", "model.unpriced")
        tenants = ("cord.pulled", None)
        assert shown("run:r2") == [*((kind, "r2") for kind in (*kinds, "cord.pulled")), tenants]
        above = ("cord.pulled", "r1")  # it stops the child, too
        assert shown("run:kid") == [
            above,
            *((kind, "kid") for kind in ("run.spawned", *kinds, "cord.pulled")),
            tenants,
        ]
        assert shown("state:unknown") == [("cord.pulled", run) for run in ("r1", "r2", "kid", None)]
    world.store.close()


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
    Store.open(root / "data", secret_keys.vault_key(root / "data"), lambda: 1).close()
    result = typed("ledger", "query", *words)
    assert (result.exit_code, told in result.stderr) == (2, True), result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["query", "tail"])
def test_ledger_commands_help_themselves(command: str) -> None:
    assert typed("ledger", command, "-h").stdout == typed("ledger", command, "--help").stdout


def test_calls_are_summed_by_a_field(root: Path) -> None:
    world = World(root / "data")
    world.decided(world.ask("a"))
    world.settle("a", cost_microusd=1_500)
    world.decided(world.ask("b", body="y"))
    world.admit(world.read("c"), world.read("d", claimant=None))
    title, *rows = typed("ledger", "query", "--by", "tool").stdout.splitlines()
    assert title.split()[:5] == ["tool", "calls", "reads", "writes", "models"]
    assert [row.split()[:4] for row in rows] == [["pay", "2", "0", "2"], ["read", "2", "1", "0"]]
    assert rows[0].split()[-1] == "0.001500"
    told = typed("ledger", "query", "--by", "run", "effect:read", "--json").stdout.splitlines()
    assert [line.split(",")[0] for line in told] == ['{"run":"r1"', '{"run":null']
    cut = typed("ledger", "query", "--by", "effect", "--limit", "1")
    assert (len(cut.stdout.splitlines()), cut.stderr) == (2, "there may be more: --limit 10\n")
    world.store.close()


@pytest.mark.parametrize(
    "words, tells",
    [
        (("--by", "colour"), "no field 'colour'; there are agent, decision"),
        (("--by", "tool", "--after", "a"), "--by sums up all calls"),
        (("--by", "tool", "--sql", "SELECT 1"), "--sql stands alone"),
    ],
)
def test_a_sum_that_cannot_be_is_refused(root: Path, words: tuple[str, ...], tells: str) -> None:
    result = typed("ledger", "query", *words)
    assert result.exit_code == 2
    assert tells in result.stderr
