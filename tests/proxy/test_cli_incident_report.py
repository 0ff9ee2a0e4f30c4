"""`pullcord incident report`: with no proxy, to a terminal and to a file."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli.main import cli
from tests.ledger.conftest import template, world
from tests.ledger.findings import the_one
from tests.ledger.world import World
from tests.proxy.page_checks import faults
from tests.proxy.reported import HOSTILE, a_runaway

__all__ = ["template", "world"]


@pytest.fixture
def incident(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("PULLCORD_DATA", str(world.data))
    config = tmp_path / "config"
    config.mkdir()
    (config / "policy.yaml").write_text("version: 1\ntools: {pay: {match: {host: api.example}}}\n")
    monkeypatch.setenv("PULLCORD_CONFIG", str(config))
    a_runaway(world, hostile=HOSTILE)
    return the_one(world).id


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ["incident", "report", *words])


def test_markdown_goes_to_the_terminal_and_is_harmless_there(incident: str) -> None:
    result = typed(incident[:20])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("# Incident report: run r1 of tenant acme")
    assert set(result.stdout) - {"\n"} == {each for each in result.stdout if each.isprintable()}
    assert f"pullcord incident show {incident}" in result.stdout


def test_html_is_written_to_a_file_of_its_owner(incident: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    result = typed(incident, "--html", "--output", str(file))
    assert result.exit_code == 0, result.output
    assert f"wrote the report of {incident} to {file}" in result.stderr
    assert "pullcord runbook" in result.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert faults(file.read_text("utf-8")) == []
    again = typed(incident, "--html", "--output", str(file))
    assert (again.exit_code, "--force" in again.stderr) == (2, True)
    assert typed(incident, "--html", "--output", str(file), "--force").exit_code == 0


def test_json_is_one_object(incident: str, tmp_path: Path) -> None:
    told = json.loads(typed(incident, "--json").stdout)
    assert told["incident"]["id"] == incident
    assert set(told) >= {
        "times",
        "trigger",
        "scope",
        "chart",
        "timeline",
        "undo",
        "actions",
        "calls",
    }
    file = tmp_path / "report.json"
    assert typed(incident, "--json", "--output", str(file)).exit_code == 0
    assert json.loads(file.read_text())["incident"]["id"] == incident


def test_mistakes_are_told(incident: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert typed("0000").exit_code == 4
    assert typed("zz").exit_code == 2
    assert "--force is for --output" in typed(incident, "--force").stderr
    (tmp_path / "config" / "policy.yaml").write_text("version: 7\n")
    broken = typed(incident)
    assert broken.exit_code == 0
    assert "policy.yaml" in broken.stderr
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "nothing"))
    assert "there is no ledger" in typed(incident).stderr


def test_two_forms_at_a_time_are_refused(incident: str) -> None:
    for words in (("--html", "--md"), ("--md", "--json")):
        result = typed(incident, *words)
        assert result.exit_code == 2
        assert f"{words[0]} and {words[1]} were given" in result.stderr
