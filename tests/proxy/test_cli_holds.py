"""`pullcord hold` and its routes: beside a running proxy, and on its ledger alone."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger.holds import HOLD_APPROVAL_SECONDS
from ledger.records import Arguments, Ask
from ledger.store import Store
from policies.call import Effect, Identity, Request, ToolCall
from proxy import operations
from proxy.cli.main import cli
from proxy.clock import SystemClock
from proxy.control_socket import user_name
from tests.proxy.controlled import Controlled, controlled

BODY = b'{"amount": 5000}\nticket  forged\x1b[2J \xe2\x80\xae'
ARGUMENTS = Arguments(
    "POST", "https://mail.example/send?to=a\x07b", (("content-type", "application/json"),), BODY
)


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Controlled]:
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    async with controlled(tmp_path) as made:
        yield made


def an_ask(ticket: str, at_us: int, body: str = "x") -> Ask:
    request = Request("POST", "https", "mail.example", 443, "/send")
    call = ToolCall("mail.send", Effect.WRITE, "POST /send", body.encode())
    return Ask(ticket, at_us, Identity("r1", "acme"), request, call, bound_to=body.encode())


def opened(store: Store, ticket: str, at_us: int, shown: Arguments = ARGUMENTS) -> None:
    assert store.hold(an_ask(ticket, at_us, ticket), shown, "tool:mail.send", 300) is not None


async def parked(running: Controlled, ticket: str = "t1", shown: Arguments = ARGUMENTS) -> None:
    await running.service.decider.act(lambda store: opened(store, ticket, running.clock.us, shown))


async def typed(*words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, words)


async def said(*words: str, code: int = 0) -> str:
    result = await typed(*words)
    assert result.exit_code == code, result.output
    return result.output


async def told(*words: str) -> Any:
    return json.loads((await typed(*words, "--json")).stdout)


# ---------------------------------------------------------------------------------- the commands


async def test_nothing_waits(running: Controlled) -> None:
    assert await said("hold", "list") == "no call waits for a person\n"


async def test_the_list_names_what_waits_and_what_to_type(running: Controlled) -> None:
    await parked(running)
    out = await said("hold", "list")
    for word in ("t1", "waiting", "5m", "r1", "acme", "mail.send", "POST /send at mail.example"):
        assert word in out
    assert "pullcord hold show TICKET" in out
    (row,) = [await told("hold", "list")]
    assert (row["ticket"], row["state"], row["left_seconds"]) == ("t1", "waiting", 300)


async def test_show_tells_all_and_lets_no_body_speak_for_us(running: Controlled) -> None:
    await parked(running)
    out = await said("hold", "show", "t1")
    assert "POST https://mail.example/send?to=a\\x07b" in out
    assert "content-type: application/json" in out
    assert '        | {"amount": 5000}' in out
    assert "        | ticket  forged\\x1b[2J \\u202e" in out
    assert "\x1b[2J" not in out
    assert "pullcord hold approve t1" in out
    answer = await told("hold", "show", "t1")
    assert answer["arguments"]["body"] == BODY.decode()
    assert answer["arguments"]["body_bytes"] == len(BODY)


async def test_show_tells_a_body_that_is_no_text(running: Controlled) -> None:
    await parked(running, shown=Arguments("PUT", "https://mail.example/", (), b"\xff\x00"))
    assert "        | /wA=" in await said("hold", "show", "t1")
    await parked(running, "t2", Arguments("PUT", "https://mail.example/", ()))
    assert "body    none" in await said("hold", "show", "t2")


async def test_show_says_when_another_key_sealed_it(running: Controlled) -> None:
    await parked(running)
    await running.service.decider.act(
        lambda store: store._conn.execute("UPDATE hold SET arguments = zeroblob(64)")
    )
    assert "another vault key" in await said("hold", "show", "t1")


async def test_approve_and_take_back(running: Controlled) -> None:
    await parked(running)
    out = await said("hold", "approve", "t1", "--reason", "looked at it")
    assert "approved POST /send at mail.example, for run r1" in out
    assert "pullcord hold reject t1" in out
    answer = await told("hold", "list")
    assert (answer["state"], answer["left_seconds"]) == ("approved", HOLD_APPROVAL_SECONDS)
    assert answer["reason"] == "looked at it"
    assert "rejected POST /send" in await said("hold", "reject", "t1", "--reason", "no")
    assert await said("hold", "list") == "no call waits for a person\n"
    assert "rejected" in await said("hold", "list", "--all")
    assert "is rejected already" in await said("hold", "approve", "t1", code=2)


async def test_the_record_names_who_decided(running: Controlled) -> None:
    await parked(running)
    await said("hold", "approve", "t1", "--reason", "fine")
    (row,) = running.rows("hold.approved")
    assert row["detail"] == "fine"
    assert row["actor"] == user_name(os.geteuid())


@pytest.mark.parametrize("verb", ["show", "approve", "reject"])
async def test_there_is_no_such_ticket(running: Controlled, verb: str) -> None:
    assert "no ticket 'a/b?c'" in await said("hold", verb, "a/b?c", code=4)


async def test_a_reason_is_a_sentence(running: Controlled) -> None:
    await parked(running)
    assert "longer than" in await said("hold", "approve", "t1", "--reason", "x" * 1001, code=2)


async def test_status_says_who_waits(running: Controlled) -> None:
    assert "holds " not in await said("status")
    await parked(running)
    assert "1 call waits for a person: pullcord hold list" in await said("status")
    await parked(running, "t2")
    assert "2 calls wait for a person" in await said("status")
    assert (await told("status"))["holds"] == {"waiting": 2}
    await said("hold", "approve", "t1")
    assert (await told("status"))["holds"] == {"waiting": 1}


def test_without_a_proxy_the_ledger_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    monkeypatch.setenv("PULLCORD_DATA", str(data))
    with operations.opened(data, SystemClock().now_us) as store:
        opened(store, "t1", SystemClock().now_us())

    def run(*words: str) -> str:
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.output
        return result.output

    assert "waiting" in run("hold", "list")
    assert '| {"amount": 5000}' in run("hold", "show", "t1")
    assert "no proxy runs" in run("hold", "approve", "t1")
    assert "approved" in run("hold", "list")
    status = CliRunner().invoke(cli, ["status"]).output
    assert "for a person" not in status


# ---------------------------------------------------------------------------------- the port


@pytest.mark.parametrize(
    "method, path, least",
    [
        ("GET", "/v1/holds", "view"),
        ("GET", "/v1/holds/show?ticket=t1", "release"),
        ("POST", "/v1/holds/approve", "release"),
        ("POST", "/v1/holds/reject", "pull"),
    ],
)
async def test_what_each_role_may(running: Controlled, method: str, path: str, least: str) -> None:
    await parked(running)
    roles = ["view", "pull", "release", "admin"]
    body = {"ticket": "t1"} if method == "POST" else None
    assert (await running.at_port(method, path, body=body))[0] == 401
    below = roles[: roles.index(least)]
    for role in [*below, least]:
        secret = await running.enrolled(role, f"has-{role}")
        status, answer, _ = await running.at_port(method, path, secret, body=body)
        assert status == (403 if role in below else 200), answer


async def test_an_operator_is_named_in_the_record(running: Controlled) -> None:
    await parked(running)
    secret = await running.enrolled("release")
    body = {"ticket": "t1", "reason": "fine"}
    assert (await running.at_port("POST", "/v1/holds/approve", secret, body=body))[0] == 200
    (row,) = running.rows("hold.approved")
    assert row["actor"] == "operator:ada"
    assert (await running.at_port("POST", "/v1/holds/approve", secret, body=body))[0] == 409
