"""`pullcord incident scope`: what is shown of a made ledger, with no proxy anywhere."""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ledger.connection import open_reader
from ledger.incident_reads import named
from policies.load import load
from proxy.cli.main import cli
from proxy.scoping import scope
from tests.ledger.made_incidents import an_incident
from tests.proxy.scoped import POLICY, a_busy_ledger

HOSTILE = "gone\x1b[2J\u202e\nincident  0000"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    world = a_busy_ledger(tmp_path_factory.mktemp("scoped") / "data", calls=90)
    an_incident(world.conn, "b1", kind="tool", name=HOSTILE, opened_us=0, updated_us=0)
    yield world.data
    world.store.close()


@pytest.fixture(autouse=True)
def here(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory without a policy, and the ledger of another."""
    monkeypatch.delenv("PULLCORD_CONFIG", raising=False)
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    monkeypatch.setenv("PULLCORD_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ("incident", "scope", *words))


def configured(here: Path, text: str = POLICY) -> Path:
    (here / "config").mkdir()
    (here / "config" / "policy.yaml").write_text(text, "utf-8")
    return here / "config" / "policy.yaml"


def test_each_figure_stands_over_its_command(here: Path, data: Path) -> None:
    configured(here)
    result = typed("a1")
    assert (result.exit_code, result.stderr) == (0, "")
    with closing(open_reader(data)) as reader:
        incident = named(reader, "a1")
        assert incident is not None
        answer = scope(reader, incident, load(POLICY))
    lines = [line.strip() for line in result.stdout.splitlines()]
    figures = [answer[name] for name in ("runs", "tenants", "tools", "destinations", "releases")]
    figures += [*answer["writes"]["by_reversibility"], *answer["value_at_risk"]]
    figures += [*answer["prevented"], answer["after_cord"]]
    for figure in figures:
        place = lines.index(figure["command"])
        assert not lines[place - 1].startswith("pullcord")
    assert lines[0] == "incident  a1  open, about run r1 of tenant acme"
    assert f"runs           {answer['runs']['count']}: r1" in result.stdout
    assert f"{answer['spend_usd']} USD" in result.stdout
    assert "0 writes that it covers let through after halt:run:kid" in result.stdout
    assert re.search(r"^not contained +[1-9]\d* writes of all of it let", result.stdout, re.M)
    assert lines[-1] == "see what can be undone: pullcord incident compensate a1 --plan"


def test_as_json_it_is_the_scope(here: Path, data: Path) -> None:
    policy = configured(here).rename(here / "another.yaml")
    with closing(open_reader(data)) as reader:
        incident = named(reader, "a2")
        assert incident is not None
        answer = scope(reader, incident, load(POLICY))
    told = typed("a2", "--json", "--policy", str(policy))
    assert json.loads(told.stdout) == json.loads(json.dumps(answer))


def test_without_a_policy_it_says_that_nobody_knows() -> None:
    result = typed("a1")
    assert result.exit_code == 0
    assert "there is no config/policy.yaml here" in result.stderr
    assert "nobody knows what can be undone: name it by --policy FILE" in result.stdout
    assert re.search(r"^unknown +\d+ done, \d+ unknown: (pay|note|mail), ", result.stdout, re.M)


def test_a_policy_that_cannot_be_used_takes_no_other_figure(here: Path) -> None:
    policy = configured(here, "version: 2\n")
    result = typed("a1")
    assert result.exit_code == 0
    assert "policy.yaml:1:" in result.stderr
    assert "runs  " in result.stdout
    named_one = typed("a1", "--policy", str(policy))
    assert (named_one.exit_code, named_one.stdout) == (2, "")


def test_one_that_has_done_nothing() -> None:
    result = typed("a6")
    for words in ("calls          0: 0 reads", "runs           0: none", "no write was made"):
        assert words in result.stdout
    assert "nothing: no call was refused" in result.stdout
    assert "nothing was pulled for it" in result.stdout


def test_one_that_is_not_there() -> None:
    assert typed("ffff").exit_code == 4


def test_text_of_the_world_is_harmless() -> None:
    shown = typed("b1").output
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\nincident  0000" not in shown
    assert typed("b1", "--json").stdout.count("\n") == 1
