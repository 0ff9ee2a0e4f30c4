"""What stops the call by which an operator undoes a write, and what does not."""

from dataclasses import replace

import pytest

from policies.call import Claim, ClaimState, Effect, Facts, Identity, ToolCall
from policies.decide import decide_undo
from policies.load import load
from policies.policy import UNDO_RUN
from policies.verdict import Action, Level, Pull, Reason, Scope

POLICY = """
version: 1
frozen: [held.back]
tools:
  refunds: {match: {host: pay.example, path: /refunds}, hold: true, where: {amount: {at_most: 50}}}
  held.back: {match: {host: pay.example, path: /held}}
tenants:
  acme: {allow: [refunds], read_only: true}
  other: {allow: [held.back]}
"""
WHO = Identity(UNDO_RUN, "acme")
CALL = ToolCall("refunds", Effect.WRITE, "POST /refunds", b"f" * 32, arguments=(("amount", (5,)),))


def decided(facts: Facts, call: ToolCall = CALL) -> tuple[Action, Reason]:
    verdict = decide_undo(load(POLICY), call, facts)
    return verdict.action, verdict.reason


def under(level: Level, scope: Scope, subject: str) -> Facts:
    pull = Pull(level, scope, subject, "", "ann", 0)
    return Facts(0, WHO, pulls={(level, scope, subject): pull})


@pytest.mark.parametrize("level", [Level.HALT, Level.FREEZE, Level.THROTTLE])
@pytest.mark.parametrize(
    "scope, subject",
    [
        (Scope.TENANT, "acme"),
        (Scope.RUN, "r1"),
        (Scope.RELEASE, "v7"),
        (Scope.TOOL, "r1/refunds"),
        (Scope.TOOL, "charges"),
    ],
)
def test_it_passes_what_stands_over_those_who_went_wrong(
    level: Level, scope: Scope, subject: str
) -> None:
    assert decided(under(level, scope, subject)) == (Action.ALLOW, Reason.ALLOWED)


@pytest.mark.parametrize(
    "level, reason", [(Level.HALT, Reason.HALTED), (Level.FREEZE, Reason.FROZEN)]
)
@pytest.mark.parametrize("scope, subject", [(Scope.GLOBAL, ""), (Scope.TOOL, "refunds")])
def test_it_does_not_pass_what_stands_over_all_or_over_its_tool(
    level: Level, reason: Reason, scope: Scope, subject: str
) -> None:
    assert decided(under(level, scope, subject)) == (Action.REFUSE, reason)


def test_nor_what_the_policy_says_so() -> None:
    frozen = replace(CALL, tool="held.back")
    assert decided(Facts(0, WHO), frozen) == (Action.REFUSE, Reason.FROZEN)


def test_what_a_tenant_may_does_not_count_and_nobody_approves_it_again() -> None:
    for tenant in ("acme", "other", "third"):
        who = Identity(UNDO_RUN, tenant)
        assert decided(Facts(0, who)) == (Action.ALLOW, Reason.ALLOWED)


def test_what_the_tool_asks_of_every_call_is_asked_of_it() -> None:
    dear = replace(CALL, arguments=(("amount", (500,)),))
    assert decided(Facts(0, WHO), dear) == (Action.REFUSE, Reason.ARGUMENT_REFUSED)


@pytest.mark.parametrize(
    "state, reason",
    [
        (ClaimState.PENDING, Reason.IN_FLIGHT),
        (ClaimState.UNKNOWN, Reason.OUTCOME_UNKNOWN),
        (ClaimState.DONE, Reason.DONE_BUT_NOT_STORED),
    ],
)
def test_a_write_is_undone_once_and_whatever_the_body_would_be(
    state: ClaimState, reason: Reason
) -> None:
    claim = Claim("c1", state, b"o" * 32, True, has_answer=True)
    assert decided(Facts(0, WHO, claim=claim)) == (Action.REFUSE, reason)


def test_what_cannot_be_read_does_not_pass() -> None:
    faulty = replace(CALL, fault=Reason.BATCH_OF_WRITES)
    assert decided(Facts(0, WHO), faulty) == (Action.REFUSE, Reason.BATCH_OF_WRITES)


def test_nobody_undoes_nothing() -> None:
    assert decided(Facts(0, None)) == (Action.REFUSE, Reason.CREDENTIALS_REQUIRED)
