"""`pullcord token` for operators, on the ledger and through a running proxy."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.cli import tokens, wards
from proxy.cli.main import cli
from proxy.control_access import Role
from tests.proxy.controlled import controlled


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    for name in ("PULLCORD_CONTROL", "PULLCORD_OPERATOR_TOKEN", "PULLCORD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def listed() -> list[dict[str, Any]]:
    return [json.loads(line) for line in typed("token", "list", "--json").stdout.splitlines()]


def test_the_roles_are_those_of_the_api() -> None:
    assert list(tokens.ROLES) == list(Role)


def test_a_token_cannot_outlive_what_can_be_written_down(data: Path) -> None:
    result = typed("token", "mint", "--run", "r1", "--expires", "9999999d")
    assert (result.exit_code, "the year 9999" in result.stderr) == (2, True)
    assert listed() == []


def test_an_operators_token_is_minted_listed_and_revoked(data: Path) -> None:
    minted = typed("token", "mint", "--role", "pull", "--name", "alertmanager")
    secret = minted.stdout.strip()
    assert len(secret) == 48
    assert "operator alertmanager with the role pull" in minted.stderr
    typed("token", "mint", "--run", "r1")
    assert sorted((each["kind"], each.get("name") or each["run"]) for each in listed()) == [
        ("operator", "alertmanager"),
        ("run", "r1"),
    ]
    shown = typed("token", "list").stdout
    assert "the role pull" in shown
    assert secret not in shown + json.dumps(listed())
    gone = typed("token", "revoke", "alertmanager")
    assert "revoked 1 token" in gone.stdout
    assert "(operator alertmanager)" in gone.stdout
    (operator,) = [each for each in listed() if each["kind"] == "operator"]
    assert operator["revoked"]
    assert typed("token", "revoke", "alertmanager").exit_code == 4


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--role", "pull"],
        ["--name", "ada"],
        ["--role", "pull", "--name", "ada", "--run", "r1"],
        ["--role", "pull", "--name", "ada", "--tool", "mail.*"],
        ["--role", "pull", "--name", "ada", "--expires", "8h"],
        ["--role", "root", "--name", "ada"],
        ["--role", "pull", "--name", "a b"],
    ],
    ids=" ".join,
)
def test_a_token_is_for_a_run_or_for_an_operator(data: Path, words: list[str]) -> None:
    result = typed("token", "mint", *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert listed() == []


def test_a_tool_that_the_policy_does_not_name_is_warned_of(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is minted all the same: the policy may name the tool tomorrow."""
    monkeypatch.setenv("PULLCORD_CONFIG", str(tmp_path))
    mint = ("token", "mint", "--run", "r1", "--tool", "mail.*", "--tool")
    assert "no tool" not in typed(*mint, "nosuch").stderr  # there is no policy to know better
    policy = "version: 1\ntools: {mail.read: {match: {host: mail.example}}}\n"
    (tmp_path / "policy.yaml").write_text(policy, "utf-8")
    told = typed(*mint, "mail.raed")
    assert (told.exit_code, len(told.stdout.strip())) == (0, 48)
    (warning,) = [line for line in told.stderr.splitlines() if "no tool" in line]
    assert "is named 'mail.raed'; did you mean 'mail.read'?" in warning
    for known in ("mail.read", "unlisted", "*"):
        assert "no tool" not in typed(*mint, known).stderr


async def test_the_running_proxy_does_the_same(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with controlled(tmp_path) as running:
        minted = await asyncio.to_thread(typed, "token", "mint", "--role", "view", "--name", "eve")
        secret = minted.stdout.strip()
        assert (await running.at_port("GET", "/v1/status", secret))[0] == 200
        monkeypatch.setenv("PULLCORD_CONTROL", f"http://127.0.0.1:{running.port}")
        names = [each["name"] for each in await asyncio.to_thread(listed)]
        assert sorted(names) == ["eve", "local"]
        gone = await asyncio.to_thread(typed, "token", "revoke", "eve")
        assert gone.exit_code == 0
        assert (await running.at_port("GET", "/v1/status", secret))[0] == 401


def test_an_agent_is_never_handed_the_operators_token(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLCORD_OPERATOR_TOKEN", "secret")
    data.mkdir()
    told = data.parent / "told"
    command = ["sh", "-c", f'echo "[$PULLCORD_OPERATOR_TOKEN$GIVEN]" > {told}']
    wards.beside(data).start(command, {"GIVEN": "block"}, "127.0.0.1", 8640).wait()
    assert told.read_text() == "[block]\n"
