"""What the tests of undoing stand on: a policy that says how, writes of a run that went wrong, and
short ways to type. The upstream by which it is undone is a real one, by TLS."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger.records import Answer, Ask, Outcome
from ledger.states import CallState, ClaimAfter
from ledger.store import Store
from policies.call import Identity, Request
from policies.content import FORM
from policies.decide import decide
from policies.match import identify
from policies.verdict import Scope
from proxy import authority
from proxy.cli.main import cli
from proxy.credentials import FILE
from tests.proxy.controlled import Controlled, controlled
from tests.proxy.looked_at import Service

SECRET = "opaque-key-of-the-operators"
POLICY = """\
version: 1
tools:
  charges:
    match: {host: pay.example, method: POST, path: /v1/charges}
    undo:
      tool: refunds
      form: {charge: "{response.id}", "metadata[call]": "{call}"}
      auth: ops
    verify: {tool: look}
  orders:
    match: {host: pay.example, method: POST, path: /v1/orders}
    undo:
      tool: refunds
      json: {order: "{response.id}", amount: "{response.amount}", of: "run {run}"}
  refunds:
    match: {host: localhost, port: PORT, method: [POST, DELETE], path: "/v1/refunds"}
    allow_addresses: [127.0.0.0/8, "::1"]
    undo: impossible
  crm.add:
    match: {host: pay.example, method: POST, path: /mcp, mcp_tool: contacts.add}
    undo:
      tool: crm.gone
      json:
        jsonrpc: "2.0"
        id: 1
        method: tools/call
        params: {name: contacts.delete, arguments: {id: "{response.result.structuredContent.id}"}}
  crm.gone:
    match: {host: localhost, port: PORT, method: POST, path: /mcp, mcp_tool: contacts.delete}
    allow_addresses: [127.0.0.0/8, "::1"]
  look: {match: {host: pay.example, method: GET, path: /v1/charges}, effect: read}
  tags: {match: {host: tag.example}, undo: unneeded}
  mail: {match: {host: mail.example}, undo: impossible}
  wiki: {match: {host: wiki.example}}
"""


async def wrote(
    running: Controlled,
    name: str,
    path: str = "/v1/charges",
    host: str = "pay.example",
    body: str = "",
    status: int | None = 200,
    answer: dict[str, Any] | None = None,
    run: str = "r1",
) -> str:
    """A write of `run` that was made, and how it was answered. `name` is its call's id."""
    running.clock.us += 1_000_000
    at_us, policy = running.clock.us, running.policy.good
    media_type = "application/json" if body.startswith("{") else FORM
    head = (("content-type", media_type),)
    request = Request("POST", "https", host, 443, path, head, (body or name).encode())
    ask = Ask(name, at_us, Identity(run, "acme"), request, identify(policy, request))
    told = Answer(
        status or 0,
        (("content-type", "application/json"),),
        json.dumps(answer or {"id": f"ch_{name}"}).encode(),
    )
    state = CallState.UNKNOWN if status is None else CallState.DONE
    after = ClaimAfter.UNKNOWN if status is None else ClaimAfter.DONE

    def act(store: Store) -> None:
        assert store.admit(ask, policy, decide).identity is not None
        store.settle(
            Outcome(name, at_us, state, after, status, answer=told if status else None), policy
        )

    await running.service.decider.act(act)
    return name


async def incident(running: Controlled, *, halted: bool = True) -> str:
    running.clock.us += 1_000_000
    now_us = running.clock.us

    def act(store: Store) -> str:
        made, _ = store.open_incident(
            Scope.RUN, "r1", "acme", now_us - 3_600_000_000, "it runs away", "ann", now_us
        )
        return made.id

    found = await running.service.decider.act(act)
    if halted:
        await running.asked("POST", "/v1/pull", level="halt", scope="run", subject="r1")
    return found


async def typed(*words: str, code: int = 0) -> Result:
    told = await asyncio.to_thread(CliRunner().invoke, cli, ("incident", "compensate", *words))
    assert told.exit_code == code, told.output
    return told


def last(told: Result) -> Any:
    """What is printed of the last step; the proxy logs in the same process."""
    return json.loads(told.stdout.splitlines()[-1])


async def planned(name: str) -> dict[str, dict[str, Any]]:
    """The steps by their calls."""
    plan = json.loads((await typed(name, "--plan", "--json")).stdout)
    return {step["call"]["id"]: step for step in plan["steps"]}


async def states(name: str) -> dict[str, str]:
    return {call: step["state"] for call, step in (await planned(name)).items()}


@asynccontextmanager
async def undoable(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Controlled]:
    """A proxy with that policy and the credentials for it; the commands find both."""
    (tmp_path / "config").mkdir()
    policy = POLICY.replace("PORT", str(service.port))
    (tmp_path / "config" / "policy.yaml").write_text(policy)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    monkeypatch.chdir(tmp_path)
    async with controlled(tmp_path, policy) as made:
        (made.data / authority.UPSTREAM_FILE).parent.mkdir(parents=True, exist_ok=True)
        (made.data / authority.UPSTREAM_FILE).write_bytes(service.ca.read_bytes())
        (made.data / FILE).write_text(f"ops: {{hosts: [localhost], bearer: {SECRET}}}\n")
        (made.data / FILE).chmod(0o600)
        yield made
