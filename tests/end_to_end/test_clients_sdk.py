"""Provider SDKs as they come, against local servers that speak their APIs.

About 30 seconds in all: most of them go by while the SDKs are imported, in a process each.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from tests.end_to_end.running import AGENTS, Proxy, Run, StartProxy, Upstreams

pytestmark = pytest.mark.slow

POLICY = """\
version: 1
unlisted: refuse
tools:
  openai:
    match: {host: api.openai.com}
    model_api: openai
    allow_addresses: [127.0.0.0/8]
  anthropic:
    match: {host: api.anthropic.com}
    model_api: anthropic
    allow_addresses: [127.0.0.0/8]
  stripe.charges.create:
    match: {host: api.stripe.com, method: POST, path: /v1/charges}
    allow_addresses: [127.0.0.0/8]
  s3:
    match: {host: "*.amazonaws.com"}
    allow_addresses: [127.0.0.0/8]
  crm:
    match: {host: mcp.crm.example, path: /mcp, mcp_tool: "contacts.*"}
    allow_addresses: [127.0.0.0/8]
"""


@dataclass(frozen=True, slots=True)
class Sdk:
    """What an agent with an SDK is given, and what the ledger says of its calls."""

    gives: Any
    tool: str
    effect: str
    calls: int
    refused: int
    metered: tuple[tuple[int | None, int | None, float | None], ...] = ()


SDKS = {
    # The whole answer, then a stream, which of OpenAI tells its usage only when it is asked to:
    # pullcord asks where the client does not.
    # Worked out by hand from the list: 3 x $1.25 + 2 x $10 a million, rounded up; 3 x $5 + 2 x $25.
    "openai": Sdk(
        ["Hello"] * 3,
        "openai",
        "model",
        calls=3,
        refused=3,
        metered=((3, 2, 0.000024),) * 3,
    ),
    "anthropic": Sdk(
        ["Hello"] * 2, "anthropic", "model", calls=2, refused=2, metered=((3, 2, 0.000065),) * 2
    ),
    "stripe": Sdk(500, "stripe.charges.create", "write", calls=1, refused=1),
    # Makes a bucket, then puts an object: the answer is the MD5 of "hello", as S3 has it.
    "boto3": Sdk('"5d41402abc4b2a76b9719d911017c592"', "s3", "write", calls=2, refused=1),
}


@pytest.fixture(scope="module")
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(POLICY)


def call(run: Run, upstreams: Upstreams, name: str) -> Any:
    gate = str(upstreams.gate(run.name))
    return json.loads(run.execute(sys.executable, AGENTS / "sdk_clients.py", name, TEST_GATE=gate))


def errors_in(said: Any) -> list[str]:
    return [each["error"] for each in (said if isinstance(said, list) else [said])]


@pytest.mark.parametrize("name", SDKS)
def test_a_call_arrives_tagged_and_is_recorded(
    name: str, proxy: Proxy, upstreams: Upstreams
) -> None:
    """A stream's second half is sent only once the agent has shown that it has the first."""
    run, start, sdk = proxy.mint(), len(upstreams.journal), SDKS[name]
    assert call(run, upstreams, name) == sdk.gives
    requests = upstreams.seen(start)
    assert [(seen.run, seen.tenant) for seen in requests] == [(run.name, "acme")] * sdk.calls
    rows = proxy.calls(run, at_least=sdk.calls)
    assert [(row["tenant"], row["tool"], row["effect"], row["state"]) for row in rows] == [
        ("acme", sdk.tool, sdk.effect, "done")
    ] * sdk.calls
    metered = [(row["input_tokens"], row["output_tokens"], row["cost_usd"]) for row in rows]
    assert metered == list(sdk.metered or ((None, None, None),) * sdk.calls)
    if sdk.effect == "model":
        assert {seen.headers.get("accept-encoding") for seen in requests} == {"identity"}


@pytest.mark.parametrize("name", SDKS)
def test_a_halted_call_is_refused_in_one_attempt(
    name: str, proxy: Proxy, upstreams: Upstreams
) -> None:
    run, start, sdk = proxy.mint(), len(upstreams.journal), SDKS[name]
    proxy.cli("halt", "run", run.name, "--reason", "loops over one contact")
    errors = errors_in(call(run, upstreams, name))
    halted = f"HALTED by pullcord: run {run.name} is halted (loops over one contact)"
    assert [halted in error for error in errors] == [True] * sdk.refused, errors
    assert upstreams.seen(start) == []
    rows = proxy.calls(run, at_least=sdk.refused)
    assert [(row["tenant"], row["tool"], row["reason"], row["state"]) for row in rows] == [
        ("acme", sdk.tool, "halted", "refused")
    ] * sdk.refused


@pytest.mark.parametrize("name", ["stripe", "boto3"])
def test_a_frozen_write_is_refused_in_one_attempt(
    name: str, proxy: Proxy, upstreams: Upstreams
) -> None:
    run, start = proxy.mint(), len(upstreams.journal)
    proxy.cli("freeze", "run", run.name)
    assert "FROZEN by pullcord" in call(run, upstreams, name)["error"]
    assert upstreams.seen(start) == []
    (row,) = proxy.calls(run)
    assert (row["reason"], row["state"]) == ("frozen", "refused")


def test_a_model_call_passes_a_freeze(proxy: Proxy, upstreams: Upstreams) -> None:
    run = proxy.mint()
    proxy.cli("freeze", "run", run.name)
    assert call(run, upstreams, "openai") == SDKS["openai"].gives


def test_an_mcp_tool_call_is_one_write(proxy: Proxy, upstreams: Upstreams) -> None:
    """What opens and closes the session is none."""
    run, start = proxy.mint(), len(upstreams.journal)
    assert call(run, upstreams, "mcp") == {
        "text": "Ada is now ada@example.com",
        "is_error": False,
        "tools": ["contacts.update"],
    }
    requests = upstreams.seen(start)
    assert {(seen.run, seen.tenant) for seen in requests} == {(run.name, "acme")}
    rows = proxy.calls(run, at_least=len(requests))
    assert {(row["tenant"], row["tool"]) for row in rows} == {("acme", "crm")}
    assert [row["state"] for row in rows if row["effect"] == "write"] == ["done"]


def test_a_frozen_mcp_tool_answers_with_an_error_and_the_session_goes_on(
    proxy: Proxy, upstreams: Upstreams
) -> None:
    run = proxy.mint()
    proxy.cli("freeze", "run", run.name, "--reason", "wrong contacts")
    given = call(run, upstreams, "mcp")
    assert given["is_error"]
    assert given["text"].startswith(f"FROZEN by pullcord: writes of run {run.name} are frozen")
    assert given["tools"] == ["contacts.update"]
    refused = [row for row in proxy.calls(run, at_least=3) if row["state"] == "refused"]
    assert [(row["effect"], row["reason"]) for row in refused] == [("write", "frozen")]
