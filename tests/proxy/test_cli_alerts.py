"""`notify test`: whether alerts arrive, told without what is secret."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy import environment
from proxy.cli import status
from proxy.cli.main import cli
from tests.proxy.receiver import Receiver, receiving_aside

SECRET = "s3cr3t-of-the-test"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a person who runs no proxy."""
    for folder in ("config", "data"):
        (tmp_path / folder).mkdir()
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving_aside() as made:
        yield made


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ["notify", "test", *words])


def written(root: Path, receiver: Receiver, key: str = "pager") -> None:
    (root / "config" / "pullcord.yaml").write_text(
        "notify:\n"
        f'  - {{kind: webhook, url: "{receiver.url}/hook", secret: hook}}\n'
        f'  - {{kind: pagerduty, url: "{receiver.url}/page", key: {key}, name: night}}\n'
    )
    path = root / "data" / "credentials.yaml"
    path.write_text(f"hook: {{secret: {SECRET}}}\npager: {{secret: {SECRET}}}\n")
    path.chmod(0o600)


def test_every_channel_is_tried(root: Path, receiver: Receiver) -> None:
    written(root, receiver)
    result = typed()
    assert result.stdout == "webhook  arrived at 127.0.0.1\nnight  arrived at 127.0.0.1\n"
    assert result.exit_code == 0
    assert [one.path for one in receiver.got] == ["/hook", "/page", "/page"]
    assert receiver.bodies[0]["type"] == "test"
    assert [one["event_action"] for one in receiver.bodies[1:]] == ["trigger", "resolve"]


def test_one_channel_is_tried(root: Path, receiver: Receiver) -> None:
    written(root, receiver)
    result = typed("night", "--json")
    assert json.loads(result.stdout) == {
        "channel": "night",
        "to": "127.0.0.1",
        "arrived": True,
        "error": None,
    }
    assert {one.path for one in receiver.got} == {"/page"}


def test_what_came_back_is_told_without_the_secret(root: Path, receiver: Receiver) -> None:
    written(root, receiver)
    receiver.always = (403, f"{SECRET} is no key", {})
    result = typed("night")
    assert "night  FAILED  127.0.0.1 answered 403: [redacted] is no key" in result.stdout
    assert (result.exit_code, SECRET in result.output) == (3, False)


def test_a_secret_that_is_missing_is_told(root: Path, receiver: Receiver) -> None:
    written(root, receiver, key=SECRET)
    result = typed()
    assert "webhook  arrived" in result.stdout
    assert "night  FAILED  its key names no entry of credentials.yaml" in result.stdout
    assert (result.exit_code, SECRET in result.output) == (3, False)


def test_a_channel_that_is_not_there_is_told(root: Path, receiver: Receiver) -> None:
    written(root, receiver)
    result = typed("pigeon")
    assert result.exit_code == 4
    assert "there is no channel pigeon; there are webhook, night" in result.output


def test_where_no_channel_is_set_it_says_where_to_set_one(root: Path) -> None:
    result = typed()
    assert result.exit_code == 2
    assert "write `notify:` into pullcord.yaml" in result.output


def test_credentials_that_cannot_be_used_are_told(root: Path, receiver: Receiver) -> None:
    written(root, receiver)
    (root / "data" / "credentials.yaml").chmod(0o644)
    result = typed()
    assert (result.exit_code, "chmod 600" in result.output) == (2, True)


def test_status_tells_in_a_line_which_channel_fails() -> None:
    told = {"channel": "night", "error": "it answered 500", "since": "2027-01-15T08:00:00.000Z"}
    assert status._silent({**told, "waiting": 3}) == (
        "do not arrive at night since 2027-01-15T08:00:00.000Z, 3 wait: it answered 500"
    )
    assert status._silent({**told, "waiting": 0}) == (
        "do not arrive at night since 2027-01-15T08:00:00.000Z: it answered 500"
    )
