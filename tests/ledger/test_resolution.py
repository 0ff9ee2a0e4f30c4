"""A person's word on a call of unknown outcome: what it changes, and when it is not taken."""

from typing import Any

import pytest

from ledger.errors import LedgerError
from ledger.queries import QueryError
from ledger.resolution import Resolution
from ledger.states import CallState, ClaimAfter
from policies.ceilings import Count, Then
from policies.verdict import Action, Reason
from tests.ledger.test_holds import decide, parked
from tests.ledger.world import START_US, World, a_ceiling, a_policy

DONE, NOT_SENT = CallState.DONE, CallState.NOT_SENT


def unknown(world: World, name: str = "a", **rest: Any) -> None:
    """A write that was sent and never answered."""
    world.decided(world.ask(name, **rest))
    world.settle(name, status=None, complete=False, reason="outcome_unknown")
    assert world.shown(name)["state"] == "unknown"


def resolve(world: World, name: str, state: CallState, **rest: Any) -> Resolution:
    said = {"reason": "looked at the dashboard", "actor": "ann", "at_us": world.now_us, **rest}
    done = world.store.resolve(name, state, **said)
    assert done is not None
    return done


def words(world: World) -> list[tuple[Any, ...]]:
    return world.rows(
        "SELECT call_id, state, actor, detail, run, tenant, tool FROM event "
        "WHERE type = 'call.resolved' ORDER BY seq"
    )


def test_a_write_that_was_done_is_done_and_a_repeat_is_told_so(world: World) -> None:
    unknown(world)
    assert world.decided(world.ask("b")).verdict.reason is Reason.OUTCOME_UNKNOWN
    world.wait(3)
    done = resolve(world, "a", DONE)
    assert (done.changed, done.state, done.claim) == (True, DONE, ClaimAfter.DONE)
    assert done.at == "2026-11-18T11:06:43.000Z"
    assert world.shown("a")["state"] == "done"
    told = "looked at the dashboard"
    assert words(world) == [("a", "done", "ann", told, "r1", "acme", "pay")]
    verdict = world.decided(world.ask("c")).verdict
    assert (verdict.action, verdict.reason) == (Action.REFUSE, Reason.DONE_BUT_NOT_STORED)
    assert verdict.earlier_call == "a"


def test_a_write_that_was_not_sent_may_be_made_again(world: World) -> None:
    unknown(world)
    done = resolve(world, "a", NOT_SENT)
    assert (done.changed, done.claim, done.protected_until_us) == (True, ClaimAfter.RELEASED, None)
    assert world.shown("a")["state"] == "not_sent"
    assert world.rows("SELECT * FROM claim") == []
    assert world.decided(world.ask("b")).verdict.action is Action.ALLOW


@pytest.mark.parametrize("key, seconds", [(None, 600), ("k1", 86_400)])
def test_what_was_done_is_protected_from_the_word_on(
    world: World, key: str | None, seconds: int
) -> None:
    unknown(world, key=key)
    world.wait(100)
    done = resolve(world, "a", DONE)
    since_us = world.now_us if key is None else START_US
    assert done.protected_until_us == since_us + seconds * 1_000_000
    assert world.store.reap() == 0
    world.now_us = done.protected_until_us or 0
    assert world.decided(world.ask("b", key=key)).verdict.action is Action.ALLOW


@pytest.mark.parametrize("state", [DONE, NOT_SENT])
def test_a_kept_failure_is_given_to_nobody_any_more(world: World, state: CallState) -> None:
    world.decided(world.ask("a"))
    world.settle("a", status=502)
    assert world.decided(world.ask("b")).verdict.action is Action.REPLAY
    resolve(world, "a", state)
    assert world.rows("SELECT * FROM answer") == []
    reason = world.decided(world.ask("c")).verdict.reason
    assert reason is (Reason.DONE_BUT_NOT_STORED if state is DONE else Reason.ALLOWED)


def test_what_a_crash_left_open_can_be_resolved(world: World) -> None:
    world.decided(world.ask("a"))
    world.reopen()
    resolve(world, "a", NOT_SENT)
    world.check_memory()
    world.reopen()
    assert world.shown("a")["state"] == "not_sent"


def test_a_read_of_unknown_outcome_has_no_claim(world: World) -> None:
    world.decided(world.read("a"))
    world.settle("a", complete=False)
    assert resolve(world, "a", DONE).claim is None
    assert world.shown("a")["state"] == "done"


def test_no_other_claim_is_touched(world: World) -> None:
    unknown(world, "a")
    unknown(world, "b", body="y")
    resolve(world, "a", NOT_SENT)
    assert world.rows("SELECT call_id, state FROM claim") == [("b", "unknown")]


def test_a_claim_that_is_another_calls_by_now_stays(world: World) -> None:
    unknown(world, "a")
    world.conn.execute("UPDATE claim SET call_id = 'z'")
    assert resolve(world, "a", NOT_SENT).claim is None
    assert world.rows("SELECT call_id, state FROM claim") == [("z", "unknown")]


def test_the_approval_of_a_write_that_was_not_sent_stands_again(world: World) -> None:
    world.policy = a_policy(a_ceiling(0, count=Count.WRITES, then=Then.HOLD))
    ask, hold = parked(world)
    decide(world, hold.ticket)
    assert world.decided(ask).verdict.action is Action.ALLOW
    world.settle("a", status=None, complete=False)
    assert world.rows("SELECT state FROM hold") == [("used",)]
    resolve(world, "a", NOT_SENT)
    assert world.rows("SELECT state FROM hold") == [("approved",)]


# The same again, and what is not taken


def test_the_same_word_again_changes_nothing(world: World) -> None:
    unknown(world)
    first = resolve(world, "a", DONE, reason="the invoice is there")
    world.wait(60)
    again = resolve(world, "a", DONE, actor="bob", reason="me too")
    assert not again.changed
    assert (again.actor, again.reason, again.at) == ("ann", "the invoice is there", first.at)
    assert len(words(world)) == 1


def test_in_one_transaction_a_word_counts_at_once(world: World) -> None:
    world.decided(world.ask("a"))
    with world.store.transaction(durable=True):
        world.settle("a", status=None, complete=False)
        assert resolve(world, "a", DONE).changed
        assert not resolve(world, "a", DONE).changed
        with pytest.raises(LedgerError, match="resolved as done before"):
            resolve(world, "a", NOT_SENT)
    assert len(words(world)) == 1
    kinds = world.rows("SELECT type FROM event WHERE call_id = 'a' ORDER BY seq")
    assert kinds == [("call.intent",), ("call.outcome",), ("call.resolved",)]


def test_another_word_is_not_taken(world: World) -> None:
    unknown(world)
    resolve(world, "a", DONE)
    with pytest.raises(LedgerError, match=r"resolved as done before, by ann .*ledger show a"):
        resolve(world, "a", NOT_SENT)
    assert world.shown("a")["state"] == "done"


def _refuse(world: World) -> None:
    unknown(world, "first")
    world.decided(world.ask("a"))


def _replay(world: World) -> None:
    world.decided(world.ask("first"))
    world.settle("first")
    world.decided(world.ask("a"))


def _hold(world: World) -> None:
    world.policy = a_policy(a_ceiling(0, count=Count.WRITES, then=Then.HOLD))
    world.decided(world.ask("a"))


def _end(world: World, **rest: Any) -> None:
    world.decided(world.ask("a"))
    world.settle("a", **rest)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda world: world.decided(world.ask("a")), "call a is pending, .*pullcord halt run r1"),
        (_hold, "call a is held, .*pullcord hold show a"),
        (_refuse, "call a is refused, .*pullcord ledger show first"),
        (_replay, "call a is replayed, .*pullcord ledger show first"),
        (_end, "call a is done, .*state:unknown"),
        (lambda world: _end(world, sent=False, status=None), "call a is not_sent, .*made again"),
    ],
    ids=["pending", "held", "refused", "replayed", "done", "not_sent"],
)
@pytest.mark.parametrize("state", [DONE, NOT_SENT])
def test_only_an_unknown_outcome_is_resolved(
    world: World, make: Any, told: str, state: CallState
) -> None:
    make(world)
    before = world.rows("SELECT * FROM claim"), world.rows("SELECT count(*) FROM event")
    with pytest.raises(LedgerError, match=told):
        resolve(world, "a", state)
    assert (world.rows("SELECT * FROM claim"), world.rows("SELECT count(*) FROM event")) == before


@pytest.mark.parametrize("state", [CallState.UNKNOWN, CallState.PENDING, CallState.REFUSED])
def test_it_is_done_or_was_not_sent(world: World, state: CallState) -> None:
    unknown(world)
    with pytest.raises(LedgerError):
        resolve(world, "a", state)
    assert words(world) == []


def test_the_start_of_an_id_must_name_one_call(world: World) -> None:
    unknown(world, "0190aa")
    unknown(world, "0190ab", body="y")
    with pytest.raises(QueryError, match="several calls begin with 0190"):
        resolve(world, "0190", DONE)
    assert resolve(world, "0190aB", DONE).call["id"] == "0190ab"
    said: dict[str, Any] = {"reason": "x", "actor": "ann", "at_us": 1}
    assert world.store.resolve("0191", DONE, **said) is None
    assert world.shown("0190aa")["state"] == "unknown"


@pytest.mark.parametrize("wrong", [{"reason": " "}, {"actor": ""}, {"reason": "caf\udce9"}])
def test_it_takes_a_named_person_with_a_reason(world: World, wrong: dict[str, str]) -> None:
    unknown(world)
    with pytest.raises(LedgerError):
        resolve(world, "a", DONE, **wrong)
    assert words(world) == []


def test_a_secret_in_a_reason_is_masked(world: World) -> None:
    unknown(world)
    resolve(world, "a", DONE, reason="asked with sk_live_abcdefgh12345678")
    ((_, _, _, detail, *_),) = words(world)
    assert detail.startswith("asked with [redacted:")


def test_a_dry_run_changes_nothing(world: World) -> None:
    unknown(world)
    looked = resolve(world, "a", DONE, reason="", dry_run=True)
    assert (looked.changed, looked.call["state"]) == (False, "unknown")
    assert words(world) == []
    assert world.rows("SELECT state FROM claim") == [("unknown",)]


def test_what_is_rolled_back_was_never_said(world: World) -> None:
    unknown(world)
    with world.failing():
        resolve(world, "a", NOT_SENT)
    assert (words(world), world.shown("a")["state"]) == ([], "unknown")
    assert world.decided(world.ask("b")).verdict.reason is Reason.OUTCOME_UNKNOWN
