"""Asking at the control port, as commands do when PULLCORD_CONTROL says so."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.cli.main import exit_code
from proxy.control_client import PortUnreachable, Refused, Unreachable, ask
from tests.ports import free_port
from tests.proxy.controlled import Controlled, controlled


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        monkeypatch.setenv("PULLCORD_CONTROL", f"http://127.0.0.1:{made.port}")
        monkeypatch.delenv("PULLCORD_OPERATOR_TOKEN", raising=False)
        yield made


async def asked_port(directory: Path) -> object:
    halt = {"level": "halt", "scope": "global"}
    return await asyncio.to_thread(ask, directory, "POST", "/v1/pull", halt)


async def test_the_token_is_that_of_the_data_directory(running: Controlled) -> None:
    await asked_port(running.data)
    assert [p.actor for p in running.service.decider.pulls.values()] == ["operator:local"]


async def test_a_token_of_the_environment_wins(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLCORD_OPERATOR_TOKEN", await running.enrolled("pull", "grace"))
    await asked_port(running.data)
    assert [p.actor for p in running.service.decider.pulls.values()] == ["operator:grace"]


@pytest.mark.parametrize("form", ["127.0.0.1:PORT", "http://localhost:PORT/"])
async def test_the_address_may_be_written_so(
    running: Controlled, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("PULLCORD_CONTROL", form.replace("PORT", str(running.port)))
    await asked_port(running.data)
    assert running.service.decider.pulls


async def test_without_a_token_it_says_where_one_goes(running: Controlled, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="PULLCORD_OPERATOR_TOKEN") as refused:
        await asked_port(tmp_path / "elsewhere")
    assert refused.value.status == 401


async def test_a_token_that_is_no_token_is_not_sent(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLCORD_OPERATOR_TOKEN", "a\r\nHost: evil.example")
    with pytest.raises(Refused, match="a token is needed"):
        await asked_port(running.data)


async def test_what_the_proxy_refuses_is_told(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLCORD_OPERATOR_TOKEN", await running.enrolled("view"))
    with pytest.raises(Refused, match="this takes the role pull") as refused:
        await asked_port(running.data)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "address",
    [
        "http://10.0.0.1:8641",
        "https://127.0.0.1:8641",
        "http://127.0.0.1.evil.example:8641",
        "http://user@127.0.0.1:8641",
        "http://127.0.0.1:8641/x",
        "127.0.0.1",
        "127.0.0.1:99999",
        "http://evil.example:8641",
    ],
)
async def test_a_token_is_sent_to_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("PULLCORD_CONTROL", address)
    monkeypatch.setenv("PULLCORD_OPERATOR_TOKEN", "secret")
    with pytest.raises(PortUnreachable, match="ssh -L"):
        await asked_port(tmp_path)


async def test_a_port_without_a_proxy_is_no_reason_to_act_on_the_ledger_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the end of a tunnel: the ledger here is then another's."""
    monkeypatch.setenv("PULLCORD_CONTROL", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("PULLCORD_OPERATOR_TOKEN", "secret")
    with pytest.raises(PortUnreachable, match="PULLCORD_CONTROL") as nobody:
        await asked_port(tmp_path)
    assert not isinstance(nobody.value, Unreachable)
    assert exit_code(nobody.value) == 5


async def test_a_ledger_that_fails_there_is_no_reason_to_act_here(running: Controlled) -> None:
    (running.data / "ledger.db").rename(running.data / "elsewhere.db")
    with pytest.raises(PortUnreachable, match="on its own machine"):
        await asked_port(running.data)


@pytest.mark.parametrize(
    "method, path", [("POST", "/v1/of-tomorrow"), ("GET", "/v1/pull"), ("POST", "/v1/status?a=b")]
)
async def test_a_proxy_that_lacks_a_route_is_older(
    running: Controlled, method: str, path: str
) -> None:
    refused = await running.refused(method, path, a=1)
    assert str(refused).startswith("the proxy that runs is older than this command; restart it")
    assert exit_code(refused) == 2


async def test_what_is_not_found_on_a_route_is_no_older_proxy(running: Controlled) -> None:
    body = {"call": "nobody", "state": "done", "reason": "r", "dry_run": False}
    refused = await running.refused("POST", "/v1/calls/resolve", **body)
    assert (refused.status, "older" in str(refused)) == (404, False)
