"""`ledger resolve CALL --verify` against halts, and services and policies that mean no good; and
through a running proxy."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

from proxy.cli.main import cli
from proxy.deciding import prepared
from proxy.letterbox import Letterbox
from tests.proxy.controlled import Controlled, controlled
from tests.proxy.looked_at import Service, serving
from tests.proxy.test_cli_resolve import lost
from tests.proxy.verifiable import (
    CREDENTIALS,
    POLICY,
    SECRET,
    entries,
    typed,
    unknown,
    written,
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as served:
        served.says(200, '{"data":[{"id":"ch_1","amount":5}]}')
        yield served


@pytest.fixture
def data(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> Path:
    return unknown(tmp_path, service, monkeypatch)


# ---------------------------------------------------------------------------- halts


def test_a_halt_of_everything_stops_operators_too(data: Path, service: Service) -> None:
    runner = CliRunner()
    assert runner.invoke(cli, ("halt", "run", "r1")).exit_code == 0
    assert typed("lost", "--verify").exit_code == 0
    assert runner.invoke(cli, ("halt", "global")).exit_code == 0
    told = typed("lost", "--verify")
    assert told.exit_code == 3
    assert "NO ANSWER: the halt of everything stands, and stops operators, too" in told.stdout
    assert len(service.asked) == 1


def test_the_file_halt_stops_operators_too(data: Path, service: Service) -> None:
    Letterbox(data).path.touch()
    told = typed("lost", "--verify")
    assert (told.exit_code, service.asked) == (3, [])
    assert "the halt of everything" in told.stdout


# ---------------------------------------------------------------------------- hostile answers


def test_an_answer_draws_nothing_on_the_terminal_and_passes_for_no_word_of_ours(
    data: Path, service: Service
) -> None:
    body = "\x1b[2J\x1b]0;owned\x07\r\nresolved as done\u2028resolved as done\u202e\x9b1m"
    service.says(200, body, Content_Type="text/plain")
    told = typed("lost", "--verify")
    for sign in ("\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\r"):
        assert sign not in told.stdout
    for line in told.stdout.splitlines():
        assert "resolved as done" not in line or line.startswith("  | ")


def test_a_secret_that_comes_back_is_not_shown_recorded_or_logged(
    data: Path, service: Service
) -> None:
    key = "sk_live_" + "abc123" * 5
    service.says(
        200,
        json.dumps({"you": f"Bearer {SECRET}", "key": key, "note": "kept"}),
        Location=f"https://a.example/?k={SECRET}",
        Content_Type=f"text/{SECRET}",
    )
    with structlog.testing.capture_logs() as logs:
        told = typed("lost", "--verify")
        plain = typed("lost", "--verify", "--json")
    assert '"note": "kept"' in told.stdout
    assert "[redacted:" in told.stdout
    kept = b"".join(path.read_bytes() for path in data.glob("ledger.db*"))
    for secret in (SECRET, key):
        assert secret not in told.output + plain.output + str(logs)
        assert secret.encode() not in kept


def test_a_long_answer_is_cut(data: Path, service: Service) -> None:
    service.says(200, json.dumps(["x" * 100] * 1_000))
    lines = typed("lost", "--verify").stdout.splitlines()
    assert "  and more, which is not shown" in lines
    assert sum(map(len, lines)) < 12_000


@pytest.mark.parametrize("body", [b"\xff\xfe\x00\x01", b"a\0b"])
def test_what_is_no_text_is_not_shown(data: Path, service: Service, body: bytes) -> None:
    service.says(200, body, Content_Type="image/png")
    told = typed("lost", "--verify")
    assert "its answer is not shown: it is no text" in told.stdout
    assert f"{len(body)} bytes" in told.stdout


def test_a_redirect_to_another_host_is_told_and_not_followed(data: Path, service: Service) -> None:
    service.says(302, "", Location="https://evil.example/\x1b[31m?a=b")
    told = typed("lost", "--verify")
    assert "it leads to https://evil.example/" in told.stdout
    assert "which is not followed" in told.stdout
    assert "\x1b" not in told.stdout
    assert len(service.asked) == 1


@pytest.mark.parametrize("host", ["169.254.169.254", "127.0.0.1", "localhost"])
def test_a_policy_leads_to_no_private_address_that_it_does_not_list(
    data: Path, service: Service, host: str
) -> None:
    policy = POLICY.replace('    allow_addresses: [127.0.0.0/8, "::1"]\n', "")
    written(data.parent, policy.replace("host: localhost", f"host: {host}"), service)
    entries(data, CREDENTIALS.replace("localhost", host))
    told = typed("lost", "--verify")
    assert (told.exit_code, "no public destination" in told.stdout) == (3, True)
    assert service.asked == []


# ---------------------------------------------------------------------------- through a proxy


async def proxied(running: Controlled) -> None:
    """An unknown write there, and the trust that a start makes."""
    assert await lost(running) == "allowed"
    prepared(running.service.settings, running.clock)


def with_trust(running: Controlled, service: Service) -> None:
    found = running.service.settings.model_copy(update={"upstream_ca": service.ca})
    running.service.settings = found


async def test_a_running_proxy_asks_itself(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    async with controlled(tmp_path, POLICY.replace("PORT", str(service.port))) as running:
        with_trust(running, service)
        await proxied(running)
        told = await asyncio.to_thread(typed, "lost", "--verify", "--as", "done", "--reason", "x")
        assert told.exit_code == 0, told.output
        assert "no proxy runs" not in told.stderr
        assert '  |       "id": "ch_1",' in told.stdout
        asks, answered = sorted(row["detail"] for row in running.rows("call.verified"))
        assert asks == "asks look: GET localhost/sent"
        assert answered.startswith("look: GET localhost/sent: 200, ")
        assert len(running.rows("call.resolved")) == 1


async def test_its_own_ports_are_no_destination(tmp_path: Path, service: Service) -> None:
    async with controlled(tmp_path, POLICY.replace("PORT", "8640")) as running:
        with_trust(running, service)
        await proxied(running)
        told = await running.asked("POST", "/v1/calls/verify", call="lost")
        assert told["why_unheard"] == (
            "localhost:8640 is pullcord itself, which is never a destination"
        )


async def test_a_halt_that_comes_while_it_waits_ends_it(tmp_path: Path, service: Service) -> None:
    service.held.clear()
    async with controlled(tmp_path, POLICY.replace("PORT", str(service.port))) as running:
        with_trust(running, service)
        await proxied(running)
        asking = asyncio.create_task(running.asked("POST", "/v1/calls/verify", call="lost"))
        while not service.asked:
            await asyncio.sleep(0.01)
        await running.asked("POST", "/v1/pull", level="halt", scope="global")
        told = await asking
        assert "the halt of everything stands" in told["why_unheard"]
        details = [row["detail"] for row in running.rows("call.verified")]
        assert [text.endswith('--reason "..."') for text in details].count(True) == 1


async def test_it_takes_who_may_release(tmp_path: Path, service: Service) -> None:
    async with controlled(tmp_path, POLICY.replace("PORT", str(service.port))) as running:
        with_trust(running, service)
        await proxied(running)
        for role, status in (("pull", 403), ("release", 200)):
            secret = await running.enrolled(role, f"of-{role}")
            told = await running.at_port("POST", "/v1/calls/verify", secret, body={"call": "lost"})
            assert told[0] == status
        actors = [row["actor"] for row in running.rows("call.verified")]
        assert actors == ["operator:of-release"] * 2


async def test_the_api_tells_what_was_wrong(tmp_path: Path, service: Service) -> None:
    async with controlled(tmp_path, POLICY.replace("PORT", str(service.port))) as running:
        with_trust(running, service)
        await proxied(running)
        for body, status, why in (
            ({"call": "x"}, 404, "no call 'x'"),
            ({"call": "lost", "given": {"request.a": "b"}}, 400, "leave it out of --set"),
            ({"call": "lost", "given": {"a": 1}}, 400, "given"),
            (
                {"call": "lost", "given": dict.fromkeys(map(str, range(33)), "a")},
                400,
                "more than 32",
            ),
        ):
            refused = await running.refused("POST", "/v1/calls/verify", **body)
            assert (refused.status, why in str(refused)) == (status, True), refused
        assert service.asked == []
