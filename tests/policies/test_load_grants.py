"""Grants, conditions and holds of a policy, compiled."""

from collections.abc import Callable
from decimal import Decimal

from policies.bounds import HOLD_SECONDS
from policies.conditions import Condition
from policies.policy import Grant, Holder, Policy

Build = Callable[[str], Policy]


def test_who_is_listed_holds_what_the_policy_grants(a_policy: Build) -> None:
    policy = a_policy("""
    tools: {t.a: {match: {host: a.example}}}
    tenants:
      acme: {allow: [t.*, {tool: t.a, method: [get, POST], where: {a: {at_most: 5}}}]}
    agents:
      reader: {read_only: true}
      any: {allow: [{tool: t.a, method: "*"}], read_only: true}
      none: {allow: []}
    """)
    condition = Condition("a", at_most=Decimal(5))
    assert policy.tenants == {
        "acme": Holder((Grant("t.*"), Grant("t.a", frozenset({"GET", "POST"}), (condition,))))
    }
    assert policy.agents == {
        "reader": Holder(None, read_only=True),
        "any": Holder((Grant("t.a"),), read_only=True),
        "none": Holder(()),
    }


def test_a_tool_reads_what_any_condition_may_ask_of_it(a_policy: Build) -> None:
    policy = a_policy("""
    tools:
      t.a: {match: {host: a.example}, where: {own: {at_most: 1}, both: {at_most: 1}}}
      t.b: {match: {host: b.example}}
      u: {match: {host: c.example}}
    tenants:
      acme: {allow: [{tool: t.*, where: {both: {absent: true}, tenant: {absent: true}}}, u]}
    agents:
      x: {allow: [{tool: t.b, where: {agent: {absent: true}}}]}
    """)
    assert {name: tool.reads for name, tool in policy.tools.items()} == {
        "t.a": ("own", "both", "tenant"),
        "t.b": ("both", "tenant", "agent"),
        "u": (),
    }


def test_a_tool_holds_guards_and_limits_as_it_says(a_policy: Build) -> None:
    policy = a_policy("""
    tools:
      a: {match: {host: a.example}, hold: true, body_bytes_max: 0}
      b: {match: {host: b.example}, effect: write, hold: true, hold_seconds: 60}
      c: {match: {host: c.example}}
    """)
    told = {n: (t.hold, t.hold_seconds, t.body_bytes_max) for n, t in policy.tools.items()}
    assert told == {
        "a": (True, HOLD_SECONDS, 0),
        "b": (True, 60, None),
        "c": (False, 0, None),
    }


def test_numbers_of_conditions_are_exact(a_policy: Build) -> None:
    policy = a_policy("""
    tools:
      t:
        match: {host: a.example}
        where:
          a: {at_least: 0.1, at_most: 0.30}
          b: {one_of: [1, 1.10, "1", true]}
          c: {equals: false}
          d: {absent: true}
          e: {like: "x*", length_at_most: 5}
    """)
    assert policy.tools["t"].where == (
        Condition("a", Decimal("0.30"), Decimal("0.1")),
        Condition("b", one_of=(Decimal(1), Decimal("1.10"), "1", True)),
        Condition("c", one_of=(False,)),
        Condition("d", absent=True),
        Condition("e", like="x*", length_at_most=5),
    )
