"""The compiled policy: what a glob covers, where a call stands, which ceilings it draws on."""

from collections.abc import Callable
from typing import Any

import pytest

from policies.policy import UNLISTED, UNLISTED_TOOL, covers, subjects
from policies.verdict import Scope

Build = Callable[..., Any]


@pytest.mark.parametrize(
    "globs, name, covered",
    [
        (["*"], "stripe.charges", True),
        (["stripe.*"], "stripe.charges", True),
        (["stripe.*"], "stripe", False),
        (["stripe.*"], "stripe.a.b", True),
        (["stripe.?"], "stripe.a", True),
        (["stripe.[ab]"], "stripe.c", False),
        (["Stripe.*"], "stripe.a", False),
        (["a", "b"], "b", True),
        (["a"], "ab", False),
        (["a*"], "a\nb", True),
        ([], "a", False),
    ],
)
def test_a_glob_covers(globs: list[str], name: str, covered: bool) -> None:
    assert covers(globs, name) is covered


def test_a_call_stands_in_every_scope_widest_first(an_identity: Build) -> None:
    identity = an_identity("r3", "acme", ancestors=("r2", "r1"), release="v7")
    assert subjects(identity, "t") == [
        (Scope.GLOBAL, ""),
        (Scope.TENANT, "acme"),
        (Scope.RELEASE, "v7"),
        (Scope.RUN, "r1"),
        (Scope.RUN, "r2"),
        (Scope.RUN, "r3"),
        (Scope.TOOL, "t"),
    ]
    assert (identity.parent, identity.root) == ("r2", "r1")
    assert (an_identity("r1").parent, an_identity("r1").root) == ("", "r1")


def test_a_tool_that_the_policy_does_not_know_is_the_unlisted_one(a_policy: Build) -> None:
    policy = a_policy("tools: {t: {match: {host: a.example}}}")
    assert policy.tool("t").name == "t"
    assert policy.tool("gone") is UNLISTED_TOOL
    assert not policy.tool(UNLISTED).tags


def test_a_call_draws_on_the_ceilings_of_its_tool_and_effect(
    a_policy: Build, a_call: Build, an_identity: Build
) -> None:
    policy = a_policy("""
    tools: {pay: {match: {host: a.example}}, look: {match: {host: b.example}}}
    ceilings:
      - {per: global, count: calls, at_most: 1}
      - {per: tenant, count: writes, at_most: 2}
      - {per: run, tool: pay, count: calls, at_most: 3}
      - {per: tool, count: writes, at_most: 4}
    """)
    identity = an_identity("r1", "acme")

    def drawn(tool: str, effect: str) -> list[tuple[int, str]]:
        bounds = policy.bounds(a_call(tool, effect), identity)
        return [(ceiling.at_most, subject) for ceiling, subject in bounds]

    assert drawn("pay", "write") == [(1, ""), (2, "acme"), (3, "r1"), (4, "pay")]
    assert drawn("pay", "read") == [(1, ""), (3, "r1")]
    assert drawn("look", "write") == [(1, ""), (2, "acme"), (4, "look")]
    assert drawn("look", "model") == [(1, "")]
    assert drawn(UNLISTED, "write") == [(1, ""), (2, "acme"), (4, UNLISTED)]
