"""Grants, conditions and holds of a policy file, compiled."""

from collections.abc import Iterable, Iterator
from decimal import Decimal

from policies import load_costs, load_value
from policies.bounds import HOLD_SECONDS
from policies.conditions import Condition, Wanted
from policies.document import Document, Mistake
from policies.policy import UNLISTED, Grant, Holder, covers
from policies.schema import PolicyFile, ToolRule
from policies.schema_grants import (
    TOOL_BODY_BYTES_MAX,
    ConditionRule,
    GrantRule,
    HolderRule,
    Where,
)


def conditions(rules: Where | None) -> tuple[Condition, ...]:
    return tuple(_condition(path, rule) for path, rule in (rules or {}).items())


def _condition(path: str, rule: ConditionRule) -> Condition:
    one_of = rule.one_of if rule.equals is None else [rule.equals]
    return Condition(
        path=path,
        at_most=_decimal(rule.at_most),
        at_least=_decimal(rule.at_least),
        one_of=tuple(map(_exact, one_of or ())),
        like=rule.like or "",
        length_at_most=rule.length_at_most,
        absent=rule.absent is True,
    )


def _decimal(number: int | Decimal | None) -> Decimal | None:
    return None if number is None else Decimal(number)


def _exact(wanted: Wanted) -> Wanted:
    return wanted if isinstance(wanted, str | bool) else Decimal(wanted)


def holder(rule: HolderRule) -> Holder:
    allow = None if rule.allow is None else tuple(map(_grant, rule.allow))
    return Holder(allow, rule.read_only)


def _grant(rule: GrantRule) -> Grant:
    methods = None if "*" in rule.method else frozenset(rule.method)
    return Grant(rule.tool, methods, conditions(rule.where))


def reads(file: PolicyFile, tool: str) -> tuple[str, ...]:
    """The arguments that any condition of the policy may ask for in a call of this tool, and those
    that say what it costs and moves."""
    own = file.tools[tool]
    asked = [*(own.where or ()), *load_costs.reads(own), *load_value.reads(own.value)]
    for rule in _holders(file):
        for grant in rule.allow or ():
            if grant.where and covers((grant.tool,), tool):
                asked += grant.where
    return tuple(dict.fromkeys(asked))


def _holders(file: PolicyFile) -> Iterator[HolderRule]:
    yield from file.tenants.values()
    yield from file.agents.values()


def body_bytes_max(rule: ToolRule) -> int | None:
    """None: the proxy's own limit, which holds for bodies that are held; a streamed one is not."""
    if rule.body_bytes_max is None and rule.stream:
        return TOOL_BODY_BYTES_MAX
    return rule.body_bytes_max


def hold_seconds(rule: ToolRule) -> int:
    """How long a write of the tool waits for a person; 0 where it need not."""
    return (rule.hold_seconds or HOLD_SECONDS) if rule.hold else 0


def mistakes(file: PolicyFile, read: Document) -> Iterable[Mistake]:
    """What no part of the file can know of itself."""
    for section, holders in (("tenants", file.tenants), ("agents", file.agents)):
        for name, rule in holders.items():
            for place, grant in enumerate(rule.allow or ()):
                if grant.tool == UNLISTED and grant.where:
                    text = "'where' must not stand beside 'unlisted': nothing of such calls is read"
                    yield read.at((section, name, "allow", place, "where"), text)
