"""Tickets: opened, decided by a person, used once, on a real database and a clock that stands."""

from dataclasses import replace
from typing import Any

import pytest

from ledger import holds
from ledger.errors import LedgerError
from ledger.holds import (
    HOLD_APPROVAL_SECONDS,
    HOLD_BODY_BYTES_MAX,
    HOLD_KEPT_SECONDS,
)
from ledger.records import Arguments, Ask, Decision, Hold
from ledger.states import HOLD_NEXT, HoldState
from policies.call import Identity, Worth
from policies.ceilings import Count, Per, Then
from policies.verdict import Action, Reason
from tests.ledger.world import World, a_ceiling, a_policy, a_pull

WAIT_SECONDS = 300
SECRET = b'{"amount": 5000, "card": "4242-4242"}'
ARGUMENTS = Arguments(
    "POST", "https://api.example/v1/charges?of=o1", (("content-type", "application/json"),), SECRET
)
APPROVED, REJECTED, EXPIRED = HoldState.APPROVED, HoldState.REJECTED, HoldState.EXPIRED


def asked(world: World, name: str = "a", **rest: Any) -> Ask:
    """An ask that was held once; equal bodies are bound alike."""
    ask = world.ask(name, **rest)
    return replace(ask, bound_to=ask.call.fingerprint)


def parked(world: World, name: str = "a", **rest: Any) -> tuple[Ask, Hold]:
    ask = asked(world, name, **rest)
    first = world.decided(replace(ask, bound_to=b""))
    assert (first.verdict.action, first.verdict.reason) == (Action.HOLD, Reason.HELD)
    hold = world.store.hold(ask, ARGUMENTS, first.verdict.rule, WAIT_SECONDS)
    assert hold is not None
    return replace(ask, approval=hold.ticket), hold


def decide(world: World, ticket: str, to: HoldState = APPROVED, reason: str = "fine") -> Hold:
    made = world.store.decide_hold(ticket, to, actor="ann", reason=reason, at_us=world.now_us)
    assert made is not None
    return made


def told(decision: Decision) -> tuple[str, str]:
    return decision.verdict.action.value, decision.verdict.reason.value


def state(world: World, ticket: str = "a") -> HoldState:
    found = world.store.held(ticket, world.now_us)
    assert found is not None
    return found.state


def history(world: World) -> list[tuple[Any, ...]]:
    return world.rows("SELECT type, call_id, actor, detail FROM event WHERE type LIKE 'hold.%'")


def test_every_state_has_its_line() -> None:
    assert set(HOLD_NEXT) == set(HoldState)


def test_an_approved_call_passes_once_and_the_record_names_who(held: World) -> None:
    ask, hold = parked(held)
    assert (hold.state, hold.ticket, hold.run) == (HoldState.WAITING, "a", "r1")
    assert hold.until_us == held.now_us + WAIT_SECONDS * 1_000_000
    assert told(held.decided(ask)) == ("hold", "held")
    decide(held, "a", reason="it is the right amount")
    decision = held.decided(ask)
    assert told(decision) == ("allow", "allowed")
    assert decision.approval == "a"
    assert state(held) is HoldState.USED
    assert history(held) == [
        ("hold.opened", "a", "run:r1", "POST /v1/charges at api.example"),
        ("hold.approved", "a", "ann", "it is the right amount"),
        ("hold.used", "a", "run:r1", "by call a"),
    ]
    assert held.settle("a")
    assert held.shown("a")["state"] == "done"


def test_a_held_call_is_one_row_however_often_it_asks(held: World) -> None:
    ask, _ = parked(held)
    for _ in range(3):
        held.decided(ask)
    assert [row["decision"] for row in held.calls()] == ["hold"]
    decide(held, "a")
    held.decided(ask)
    assert [row["decision"] for row in held.calls()] == ["allow"]


def test_of_two_identical_calls_one_passes(held: World) -> None:
    first, _ = parked(held, "a")
    second, joined = parked(held, "b")
    assert joined.ticket == "a"
    decide(held, "a")
    decisions = held.admit(replace(first, may_wait=True), replace(second, may_wait=True))
    assert [told(each) for each in decisions] == [("allow", "allowed"), ("refuse", "in_flight")]


def test_of_two_identical_reads_one_passes_and_the_other_is_held_anew(world: World) -> None:
    world.policy = a_policy(a_ceiling(0, then=Then.HOLD))
    reads: dict[str, Any] = {"effect": "read", "tool": "read"}
    first, _ = parked(world, "a", **reads)
    second, _ = parked(world, "b", **reads)
    decide(world, "a")
    decisions = world.admit(first, second)
    assert [told(each) for each in decisions] == [("allow", "allowed"), ("hold", "held")]
    assert parked(world, "b", **reads)[1].ticket == "b"


def test_a_call_whose_twin_used_its_ticket_opens_another(world: World) -> None:
    world.policy = a_policy(a_ceiling(0, then=Then.HOLD))
    reads: dict[str, Any] = {"effect": "read", "tool": "read"}
    first, _ = parked(world, "a", **reads)
    second, _ = parked(world, "b", **reads)
    decide(world, "a")
    decisions = world.admit(second, first)
    assert [told(each) for each in decisions] == [("allow", "allowed"), ("hold", "held")]
    hold = world.store.hold(first, ARGUMENTS, "rule", WAIT_SECONDS)
    assert hold is not None
    assert hold.ticket == "a-2"
    decide(world, "a-2")
    assert told(world.decided(replace(first, approval="a-2"))) == ("allow", "allowed")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"body": "y"}, id="another body"),
        pytest.param({"tool": "mail"}, id="another tool"),
        pytest.param({"claimant": Identity("r2", "acme")}, id="another run"),
        pytest.param({"claimant": Identity("r1", "globex")}, id="a run of that name elsewhere"),
    ],
)
def test_an_approval_is_for_that_request_alone(held: World, other: dict[str, Any]) -> None:
    parked(held)
    decide(held, "a")
    stranger = replace(asked(held, "b", **other), approval="a")
    assert told(held.decided(stranger)) == ("hold", "held")
    assert parked(held, "b", **other)[1].ticket == "b"
    assert state(held) is APPROVED


def test_a_rejected_call_is_told_by_whom_and_why(held: World) -> None:
    ask, _ = parked(held)
    decide(held, "a", REJECTED, "the amount is wrong")
    decision = held.decided(ask)
    assert told(decision) == ("refuse", "hold_rejected")
    assert decision.verdict.detail == "by ann: the amount is wrong"
    assert held.shown("a")["reason"] == "hold_rejected"
    assert history(held)[-1] == ("hold.rejected", "a", "ann", "the amount is wrong")


def test_a_call_that_nobody_decides_expires(held: World) -> None:
    ask, _ = parked(held)
    held.wait(WAIT_SECONDS)
    assert told(held.decided(replace(ask, at_us=held.now_us))) == ("refuse", "hold_expired")
    assert state(held) is EXPIRED
    assert history(held)[-1] == ("hold.expired", "a", "pullcord", "nobody decided in time")
    with pytest.raises(LedgerError, match="expired"):
        decide(held, "a")


def test_an_approval_that_nobody_uses_expires(held: World) -> None:
    ask, _ = parked(held)
    held.wait(WAIT_SECONDS - 1)
    decide(held, "a")
    held.wait(HOLD_APPROVAL_SECONDS - 1)
    assert state(held) is APPROVED
    held.wait(1)
    assert told(held.decided(replace(ask, at_us=held.now_us))) == ("refuse", "hold_expired")
    assert state(held) is EXPIRED


def test_a_halt_since_then_wins_and_uses_nothing(held: World) -> None:
    ask, _ = parked(held)
    decide(held, "a")
    held.store.pull(a_pull())
    assert told(held.decided(ask)) == ("refuse", "halted")
    assert state(held) is APPROVED


def test_another_ceiling_still_counts(held: World) -> None:
    hold, stop = a_ceiling(0, count=Count.WRITES, then=Then.HOLD), a_ceiling(0, per=Per.TENANT)
    ask, _ = parked(held)
    decide(held, "a")
    held.policy = a_policy(hold, stop)
    assert told(held.decided(ask)) == ("refuse", "over_ceiling")
    assert state(held) is APPROVED


def test_a_call_that_was_not_sent_gives_its_approval_back(held: World) -> None:
    ask, _ = parked(held)
    decide(held, "a")
    held.decided(ask)
    assert held.settle("a", sent=False, status=None, complete=False)
    assert state(held) is APPROVED
    assert history(held)[-1] == ("hold.kept", "a", "pullcord", "call a was not sent")
    again, joined = parked(held, "b")
    assert joined.ticket == "a"
    assert told(held.decided(again)) == ("allow", "allowed")


def test_an_approval_is_not_given_back_beside_a_newer_ticket(held: World) -> None:
    held.policy = a_policy(a_ceiling(0, then=Then.HOLD))
    reads: dict[str, Any] = {"effect": "read", "tool": "read"}
    ask, _ = parked(held, "a", **reads)
    decide(held, "a")
    held.decided(ask)
    assert parked(held, "b", **reads)[1].ticket == "b"
    assert held.settle("a", sent=False, status=None, complete=False)
    assert state(held, "a") is HoldState.USED


def test_an_approval_survives_a_restart(held: World) -> None:
    ask, _ = parked(held)
    decide(held, "a")
    held.reopen()
    assert told(held.decided(ask)) == ("allow", "allowed")
    held.reopen()
    assert state(held) is HoldState.USED


def test_a_rolled_back_transaction_uses_nothing(held: World) -> None:
    ask, _ = parked(held)
    decide(held, "a")
    with held.failing():
        assert told(held.store.admit(ask, held.policy, held.judge)) == ("allow", "allowed")
    assert state(held) is APPROVED
    assert told(held.decided(ask)) == ("allow", "allowed")


@pytest.mark.parametrize("to", [APPROVED, REJECTED])
@pytest.mark.parametrize("before", [REJECTED, HoldState.USED])
def test_what_is_closed_is_not_decided_again(held: World, before: HoldState, to: HoldState) -> None:
    ask, _ = parked(held)
    decide(held, "a", REJECTED if before is REJECTED else APPROVED)
    held.decided(ask)
    assert state(held) is before
    with pytest.raises(LedgerError, match=f"{before} already"):
        decide(held, "a", to)


def test_an_approval_is_taken_back(held: World) -> None:
    ask, _ = parked(held)
    decide(held, "a")
    with pytest.raises(LedgerError, match="approved already"):
        decide(held, "a")
    decide(held, "a", REJECTED)
    assert told(held.decided(ask)) == ("refuse", "hold_rejected")


@pytest.mark.parametrize("actor, to", [(" ", APPROVED), ("ann", EXPIRED), ("ann", HoldState.USED)])
def test_only_a_named_person_decides(held: World, actor: str, to: HoldState) -> None:
    parked(held)
    with pytest.raises(LedgerError, match="named person"):
        held.store.decide_hold("a", to, actor=actor, reason="", at_us=held.now_us)
    assert state(held) is HoldState.WAITING


def test_there_is_no_such_ticket(held: World) -> None:
    assert held.store.held("b", 0) is None
    assert held.store.shown("b", 0) is None
    assert held.store.decide_hold("b", APPROVED, actor="ann", reason="", at_us=0) is None


def test_a_client_that_left_was_not_sent(held: World) -> None:
    ask, _ = parked(held)
    held.store.left("a", held.now_us, Reason.NOT_SENT, "the client left")
    assert (held.shown("a")["state"], held.shown("a")["reason"]) == ("not_sent", "not_sent")
    held.store.left("a", held.now_us, Reason.NOT_SENT, "again")
    assert len(held.rows("SELECT 1 FROM event WHERE type = 'call.outcome'")) == 1
    decide(held, "a")
    held.decided(ask)
    held.store.left("a", held.now_us, Reason.NOT_SENT, "too late")
    assert len(held.rows("SELECT 1 FROM event WHERE type = 'call.outcome'")) == 1


def test_the_list_begins_with_who_has_waited_longest(held: World) -> None:
    for name in "abcd":
        parked(held, name, body=name)
        held.wait(1)
    decide(held, "a", REJECTED)
    decide(held, "c")
    assert [hold.ticket for hold in held.store.holds(held.now_us)] == ["b", "c", "d", "a"]
    assert holds.waiting(held.conn, held.now_us) == 2
    assert holds.waiting(held.conn, held.now_us + WAIT_SECONDS * 1_000_000) == 0


def test_a_body_that_nobody_could_read_is_refused(held: World) -> None:
    ask = held.ask("a")
    ask = replace(ask, call=replace(ask.call, worth=Worth(bytes_up=HOLD_BODY_BYTES_MAX + 1)))
    assert told(held.decided(ask)) == ("refuse", "body_too_large")
    long = replace(ARGUMENTS, body=bytes(HOLD_BODY_BYTES_MAX + 1))
    with pytest.raises(LedgerError, match="so long a body"):
        held.store.hold(asked(held), long, "rule", WAIT_SECONDS)


def test_whoever_is_nobody_any_more_gets_no_ticket(held: World) -> None:
    assert held.store.hold(asked(held, claimant=None), ARGUMENTS, "rule", WAIT_SECONDS) is None
    with pytest.raises(LedgerError, match="bound"):
        held.store.hold(held.ask("b"), ARGUMENTS, "rule", WAIT_SECONDS)


def test_closed_tickets_go_after_a_day(held: World) -> None:
    parked(held)
    held.wait(WAIT_SECONDS)
    held.store.reap()
    assert state(held) is EXPIRED
    held.wait(HOLD_KEPT_SECONDS)
    assert held.store.reap() == 1
    assert held.store.holds(held.now_us) == []


def test_an_approval_that_does_not_help_lets_nothing_pass(held: World) -> None:
    ask, _ = parked(held)
    decide(held, "a")
    judge = held.judge

    def stubborn(policy: Any, call: Any, facts: Any) -> Any:
        return judge(policy, call, replace(facts, approved=False))

    held.judge = stubborn
    assert told(held.decided(ask)) == ("refuse", "policy_failure")
    assert state(held) is APPROVED
