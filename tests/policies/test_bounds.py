"""Which ceilings a call draws on, and how much of each."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from policies.bounds import drawn_on
from policies.call import Request, ToolCall, Worth
from policies.ceilings import Count
from policies.match import identify
from policies.policy import CANARY, UNLISTED

Build = Callable[..., Any]

POLICY = """
tools: {pay: {match: {host: a.example}}, look: {match: {host: b.example}}}
ceilings:
  - {per: global, count: calls, at_most: 1}
  - {per: tenant, count: writes, at_most: 2}
  - {per: run, tool: pay, count: calls, at_most: 3}
  - {per: tool, count: writes, at_most: 4}
  - {per: tree, count: steps, at_most: 5}
  - {per: agent, count: tokens, at_most: 6}
  - {per: release, count: bytes_up, at_most: 7}
  - {per: destination, count: calls, at_most: 8}
  - {per: run, count: spend_usd, at_most: 9}
  - {per: run, count: spawned, at_most: 10}
  - {per: run, count: calls, unbounded: true}
  - {per: tenant, count: calls, unbounded: true}
  - {per: run, count: in_flight, unbounded: true}
  - {per: tenant, count: in_flight, unbounded: true}
  - {per: tenant, count: spend_usd, unbounded: true}
"""


def test_a_call_draws_on_the_ceilings_of_its_tool_and_effect(
    a_policy: Build, a_call: Build, an_identity: Build
) -> None:
    policy = a_policy(POLICY)
    identity = an_identity("r1", "acme", ancestors=("r0",), agent="bot", release="v1")

    def drawn(call: ToolCall) -> list[tuple[int, str, int]]:
        found = drawn_on(policy, call, identity)
        return [(ceiling.at_most, subject, amount) for ceiling, subject, amount in found]

    assert drawn(a_call("pay", "write", host="a.example")) == [
        *((1, "", 1), (2, "acme", 1), (3, "r1", 1), (3, "r0", 1), (4, "pay", 1)),
        (8, "a.example", 1),
    ]
    assert drawn(a_call("pay", "read")) == [(1, "", 1), (3, "r1", 1), (3, "r0", 1), (8, "", 1)]
    assert drawn(a_call("look", "model", worth=Worth(tokens=50))) == [
        *((1, "", 1), (5, "r0", 1), (6, "bot", 50), (8, "", 1)),
    ]
    spent = Worth(spend_microusd=70, bytes_up=30)
    assert drawn(a_call(UNLISTED, "write", worth=spent)) == [
        *((1, "", 1), (2, "acme", 1), (4, UNLISTED, 1), (7, "v1", 30), (8, "", 1)),
        *((9_000_000, "r1", 70), (9_000_000, "r0", 70)),
    ]


def test_a_runs_own_budget_and_those_above_it_are_drawn_on_by_what_is_spent(
    a_policy: Build, a_call: Build, an_identity: Build
) -> None:
    policy = a_policy(POLICY)
    identity = an_identity("r1", budgets=(("r1", 5), ("r0", 9)))
    spending = a_call("pay", "read", worth=Worth(spend_microusd=3))
    own = [
        (ceiling.id, ceiling.window, ceiling.at_most, subject, amount)
        for ceiling, subject, amount in drawn_on(policy, spending, identity)
        if ceiling.window == "budget"
    ]
    assert own == [("budget:r1", "budget", 5, "r1", 3), ("budget:r0", "budget", 9, "r0", 3)]
    free = drawn_on(policy, a_call("pay", "read"), identity)
    assert "budget" not in {ceiling.window for ceiling, *_ in free}


def test_the_canary_draws_on_nothing(a_policy: Build, a_call: Build, an_identity: Build) -> None:
    assert list(drawn_on(a_policy(POLICY), a_call(CANARY), an_identity())) == []


BATCHES = """
unlisted: refuse
tools:
  crm: {match: {host: mcp.example, path: /mcp, mcp_tool: "*"}, effect: read, cost_usd: 0.05}
  graph: {match: {host: g.example, path: /graphql, graphql_operation: "*"}, cost_usd: 0.05}
ceilings: [{per: run, count: calls, at_most: 9}]
"""


def an_rpc(number: int) -> dict[str, object]:
    called = {"name": "look", "arguments": {"n": number}}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": called}


@pytest.mark.parametrize(
    "host, path, body",
    [
        ("mcp.example", "/mcp", [an_rpc(n) for n in range(7)]),
        ("g.example", "/graphql", {"query": "{" + " ".join(f"a{n}: me" for n in range(7)) + "}"}),
    ],
)
def test_several_operations_in_one_request_count_and_cost_as_many(
    a_policy: Build, an_identity: Build, host: str, path: str, body: object
) -> None:
    policy = a_policy(BATCHES)
    kind = (("content-type", "application/json"),)
    request = Request("POST", "https", host, 443, path, kind, json.dumps(body).encode())
    call = identify(policy, request)
    assert (call.fault, call.operations) == (None, 7)
    drawn = {c.count: amount for c, _, amount in drawn_on(policy, call, an_identity())}
    assert (drawn[Count.CALLS], drawn[Count.SPEND]) == (7, 7 * 50_000)
