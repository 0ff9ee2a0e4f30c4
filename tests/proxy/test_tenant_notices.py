"""What tenants are told is true: what was taken back really was, and it is stopped while it is."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli.main import cli
from tests.proxy.controlled import Controlled
from tests.proxy.looked_at import Service, serving
from tests.proxy.undoable import incident, typed, undoable, wrote

CONTACTS = 'version: 1\ntenants: {"*": [{kind: file, file: all.txt}]}\n'
AWS_KEY = "AKIAIOSFODNN7EXAMPLE"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as served:
        served.says(200, '{"id": "re_1"}')
        yield served


@pytest.fixture
async def running(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Controlled]:
    async with undoable(tmp_path, service, monkeypatch) as made:
        (tmp_path / "config" / "contacts.yaml").write_text(CONTACTS)
        yield made


async def told(name: str, *words: str) -> str:
    """The only message."""
    given = ("incident", "notify", name, "--json", *words)
    result = await asyncio.to_thread(CliRunner().invoke, cli, given)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if '"tenant"' in line]
    return str(json.loads(line)["text"])


async def test_only_what_was_undone_is_told_as_taken_back_and_once(
    running: Controlled, service: Service
) -> None:
    for name in ("c1", "c2"):
        await wrote(running, name)
    name = await incident(running)
    for status in (400, 403, 422):
        service.says(status, "{}")
        await typed(name, "--do", "all", code=3)
        assert "- made: 2\n- not known yet: 0\n- taken back: 0\n" in await told(name)
    service.says(200, '{"id": "re_1"}')
    await typed(name, "--do", "c1")
    assert "- made: 2\n- not known yet: 0\n- taken back: 1\n" in await told(name)


async def test_a_write_that_the_tool_declined_touched_nobody(running: Controlled) -> None:
    await wrote(running, "c1", status=402)
    await wrote(running, "c2")
    await wrote(running, "c3", status=409)
    name = await incident(running)
    assert "concern you: 2\n- made: 2\n" in await told(name)


async def test_it_is_stopped_while_a_cord_stands_that_stops_it(running: Controlled) -> None:
    await wrote(running, "c1")
    name = await incident(running, halted=False)
    assert "It is not stopped yet." in await told(name)
    await running.asked("POST", "/v1/pull", level="halt", scope="run", subject="r2")
    await running.asked("POST", "/v1/pull", level="halt", scope="tool", subject="r1/tags")
    assert "It is stopped." not in await told(name)
    await running.asked("POST", "/v1/pull", level="halt", scope="run", subject="r1")
    text = await told(name)
    assert "It is stopped." in text
    assert "Status: stopped; " in text
    await running.asked(
        "POST", "/v1/release", level="halt", scope="run", subject="r1", reason="a mistake"
    )
    text = await told(name)
    assert "It is not stopped any more." in text
    assert "Status: not stopped any more; " in text


async def test_secrets_in_what_is_typed_are_masked(running: Controlled) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    words = [word for at in ("--status", "--eta", "--next") for word in (at, f"with {AWS_KEY}")]
    text = await told(name, *words)
    assert AWS_KEY not in text
    assert text == await told(name, *words), "or it would be sent again"
