"""The ceilings of a policy: what they are made of, what they share, and which are shipped."""

from collections.abc import Callable

import pytest

from policies.ceilings import Count, Per, Then
from policies.load_bounds import SHIPPED
from policies.policy import Policy

Build = Callable[[str], Policy]


def test_a_ceiling_is_its_content_not_its_place(a_policy: Build) -> None:
    one = "{per: run, count: calls, at_most: 5, within: 1m}"
    other = "{per: tenant, count: writes, at_most: 5}"
    first = a_policy(f"ceilings:\n  - {one}\n  - {other}\n")
    again = a_policy(f"ceilings:\n  - {other}\n  - {one.replace('1m', '60s')}\n")
    assert {c.id for c in first.ceilings} == {c.id for c in again.ceilings}
    changed = a_policy(f"ceilings:\n  - {one.replace('5', '6')}\n")
    assert changed.ceilings[0].id not in {c.id for c in first.ceilings}


def test_the_same_thing_counted_shares_its_window_whatever_its_limit(a_policy: Build) -> None:
    """An edit of a limit starts no count anew; another thing counted does."""
    policy = a_policy("""
    ceilings:
      - {per: run, count: calls, at_most: 5, within: 1m}
      - {per: run, count: calls, at_most: 9, within: 60s, then: halt}
      - {per: run, count: calls, at_most: 5, within: 2m}
      - {per: tree, count: calls, at_most: 5, within: 1m}
      - {per: run, count: writes, at_most: 5, within: 1m}
      - {per: run, tool: unlisted, count: calls, at_most: 5, within: 1m}
    """)
    first, second, *others = [ceiling for ceiling in policy.ceilings if not ceiling.shipped]
    assert first.id != second.id
    assert first.window == second.window
    assert len({first.window, *(other.window for other in others)}) == 5
    assert policy.windows[first.window] == (first, second)
    assert set(policy.windows) == {ceiling.window for ceiling in policy.ceilings}


def test_a_shipped_bound_counts_on_where_the_policy_states_its_own(a_policy: Build) -> None:
    shipped = SHIPPED[Per.RUN, Count.CALLS]
    (own, *_) = a_policy("ceilings: [{per: run, count: calls, at_most: 5, within: 1m}]").ceilings
    assert (own.at_most, own.window, own.shipped) == (5, shipped.window, False)


def test_a_ceiling_is_all_that_its_rule_says(a_policy: Build) -> None:
    policy = a_policy("""
    tools: {t.a: {match: {host: a.example}}}
    ceilings:
      - {per: tool, tool: t.*, count: writes, at_most: 0, within: 2h, then: freeze}
      - {per: global, count: calls, at_most: 9, wait_seconds: 30}
      - {per: tree, count: spend_usd, at_most: 1.000001, then: hold}
    """)
    windowed, life, spend, *shipped = policy.ceilings
    assert (windowed.per, windowed.count, windowed.at_most) == (Per.TOOL, Count.WRITES, 0)
    assert (windowed.within_us, windowed.then) == (7_200_000_000, Then.FREEZE)
    assert windowed.tools == ("t.*",)
    assert (life.within_us, life.then, life.tools) == (None, Then.THROTTLE, ("*",))
    assert (life.wait_seconds, windowed.wait_seconds) == (30, 0)
    assert (spend.at_most, spend.then) == (1_000_001, Then.HOLD)
    assert [ceiling.shipped for ceiling in policy.ceilings] == [False] * 3 + [True] * len(shipped)
    assert policy.ceilings_of == {
        "t.a": (windowed, life, spend, *shipped),
        "unlisted": (life, spend, *shipped),
    }


def test_runs_and_tenants_are_bound_where_the_policy_says_nothing(a_policy: Build) -> None:
    policy = a_policy("")
    assert policy.ceilings == tuple(SHIPPED.values())
    assert all(ceiling.shipped for ceiling in policy.ceilings)
    assert [str(ceiling) for ceiling in policy.ceilings] == [
        "at most 1200 calls per run within 60 s",
        "at most 20.00 USD per run",
        "at most 64 calls in flight per run",
        "at most 1000 started runs per tree",
        "at most 12000 calls per tenant within 60 s",
        "at most 200.00 USD per tenant within 1 d",
        "at most 512 calls in flight per tenant",
    ]
    assert policy.unbounded == ()


@pytest.mark.parametrize(
    "stated, left",
    [
        ("{per: run, count: calls, at_most: 5}", 6),
        ("{per: tree, count: spend_usd, at_most: 5}", 6),
        ("{per: run, count: calls, unbounded: true}", 6),
        ("{per: tenant, count: in_flight, unbounded: true}", 6),
        ("{per: run, tool: '*', count: calls, at_most: 5}", 6),
        ("{per: tree, count: spawned, at_most: 5}", 6),
        ("{per: run, count: spawned, at_most: 5}", 6),
        ("{per: tree, count: spawned, unbounded: true}", 6),
        ("{per: run, count: spawned, unbounded: true}", 6),
        ("{per: tenant, count: spawned, at_most: 5}", 7),
        ("{per: run, tool: unlisted, count: calls, at_most: 5}", 7),
        ("{per: run, count: calls, at_most: 5, then: alert}", 7),
        ("{per: run, count: writes, at_most: 5}", 7),
        ("{per: global, count: calls, at_most: 5}", 7),
    ],
)
def test_a_shipped_bound_gives_way_to_one_for_all_the_same_calls(
    stated: str, left: int, a_policy: Build
) -> None:
    policy = a_policy(f"ceilings: [{stated}]")
    assert len([ceiling for ceiling in policy.ceilings if ceiling.shipped]) == left
    removed = "unbounded" in stated
    assert len(policy.unbounded) == removed
    assert len(policy.ceilings) == left + (not removed)


def test_what_was_left_without_a_bound_is_told(a_policy: Build) -> None:
    policy = a_policy("""
    ceilings:
      - {per: run, count: calls, unbounded: true}
      - {per: tenant, count: spend_usd, unbounded: true}
    """)
    assert policy.unbounded == ("calls per run", "spend_usd per tenant")
