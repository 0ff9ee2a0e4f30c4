"""The compiled policy: what a glob covers, and where a call stands."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.text("ab.\n*", max_size=8), st.text("ab.\n*", max_size=10))
def test_a_glob_covers_what_fnmatch_says(glob: str, name: str) -> None:
    assert covers([glob], name) is fnmatchcase(name, glob)


def test_a_glob_with_stars_alone_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is kept, and it would be the globs that runs write."""
    monkeypatch.delattr("policies.policy.fnmatchcase")
    assert not covers(["x*", "*a" * 30_000, "stripe.charges.*"], "stripe.charges")
    assert covers(["*a" * 30_000], "a" * 30_000)


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
        (Scope.TOOL, "r1/t"),
        (Scope.TOOL, "r2/t"),
        (Scope.TOOL, "r3/t"),
    ]
    assert (identity.parent, identity.root) == ("r2", "r1")
    assert (an_identity("r1").parent, an_identity("r1").root) == ("", "r1")


def test_a_tool_that_the_policy_does_not_know_is_the_unlisted_one(a_policy: Build) -> None:
    policy = a_policy("tools: {t: {match: {host: a.example}}}")
    assert policy.tool("t").name == "t"
    assert policy.tool("gone") is UNLISTED_TOOL
    assert not policy.tool(UNLISTED).tags
