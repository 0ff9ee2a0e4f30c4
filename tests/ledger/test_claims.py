"""Writes happen once: the stories of tests/cases/claims.yaml, the decision table row by row
(tests/cases/table.yaml), and what they leave behind."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ledger import claims
from ledger.claims import digest
from ledger.states import CallState
from ledger.vault import BODY_BYTES_MAX
from policies.call import Identity
from policies.verdict import Action, Level, Scope
from tests.ledger.world import HEADERS, World, a_policy, a_pull

PLACE = Path(__file__).parents[1] / "cases"
CASES = yaml.safe_load((PLACE / "claims.yaml").read_text("utf-8"))
TABLE = yaml.safe_load((PLACE / "table.yaml").read_text("utf-8"))
ROWS = range(1, 19)


def tell(world: World, step: Any) -> None:
    match step:
        case "restart":
            world.reopen()
        case "crash":
            # Without `close`: the lock goes with the file handle, as at a SIGKILL.
            world.store._writer.conn.close()
            world.store._writer.release_lock()
            world.store = world.opened()
        case "reap":
            while world.store.reap():
                pass
        case {"policy": rule}:
            world.policy = a_policy(**rule)
        case {"wait": seconds}:
            world.wait(seconds)
        case {"settle": name, **rest}:
            how: dict[str, Any] = {str(word): value for word, value in rest.items()}
            if how.pop("big", False):
                how["body"] = b"x" * (BODY_BYTES_MAX + 1)
            assert world.settle(name, **how)
        case {"lost": name, "key": key}:
            with world.failing():
                world.store.admit(world.ask(name, key=key), world.policy, world.judge)
        case {"unsettled": name}:
            with world.failing():
                assert world.settle(name)
        case {"resolve": name, "as": state}:
            at_us, word = world.now_us, CallState(state)
            assert world.store.resolve(name, word, reason="seen", actor="ann", at_us=at_us)
        case {"state": name, "is": state}:
            assert world.shown(name)["state"] == state
        case {"ask": _, **_rest}:
            check(world, step)
        case _:
            pytest.fail(f"no such step: {step}")


def check(world: World, step: dict[str, Any]) -> None:
    step = dict(step)
    name, told, of = step.pop("ask"), step.pop("is"), step.pop("of", "")
    status = step.pop("status", None)
    who = Identity(step.pop("run", "r1"), step.pop("tenant", "acme"))
    decision = world.decided(world.ask(name, claimant=who, **step))
    verdict = decision.verdict
    got = verdict.reason if verdict.action is Action.REFUSE else verdict.action
    assert (name, got, verdict.earlier_call) == (name, told, of)
    if told == "replay":
        assert decision.answer is not None
        assert decision.answer.body == f"answer to {of}".encode()
        assert decision.answer.headers == HEADERS
        if status:
            assert decision.answer.status == status
    else:
        assert decision.answer is None


@pytest.mark.parametrize("case", CASES, ids=[case["it"] for case in CASES])
def test_a_write_is_made_once(world: World, case: dict[str, Any]) -> None:
    world.policy = a_policy(**case.get("rule", {}))
    for step in case["steps"]:
        tell(world, step)


def told_table() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row with what its settlements have in common, once for each of `each`."""
    return [
        (case, {} if status == "" else {"status": status})
        for case in TABLE
        for status in case.get("each", {}).get("status", [""])
    ]


@pytest.mark.parametrize(
    "case, common",
    told_table(),
    ids=lambda part: f"{part['row']}: {part['it']}" if "row" in part else str(part),
)
def test_the_decision_table_holds(
    world: World, case: dict[str, Any], common: dict[str, Any]
) -> None:
    world.policy = a_policy(**case.get("rule", {}))
    for step in case["steps"]:
        tell(world, {**step, **common} if "settle" in step else step)


def test_the_table_has_every_row() -> None:
    assert sorted({case["row"] for case in TABLE}) == list(ROWS)


def test_the_stories_are_told_by_different_names() -> None:
    names = [case["it"] for case in (*CASES, *TABLE)]
    assert len(names) == len(set(names)) >= 30


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc") != digest(b"abc")


def test_keys_that_are_no_text_are_told_apart(world: World) -> None:
    assert world.decided(world.ask("a", key="\udce9", body="x")).verdict.action is Action.ALLOW
    assert world.decided(world.ask("b", key="\udcea", body="y")).verdict.action is Action.ALLOW


def test_two_writes_of_one_transaction_meet_each_other(world: World) -> None:
    first, second, third = world.admit(
        world.ask("a", key="k1"), world.ask("b", key="k1"), world.ask("c", key="k2")
    )
    assert first.verdict.action is Action.ALLOW
    assert (second.verdict.reason, third.verdict.reason) == ("in_flight", "in_flight")


def test_expired_claims_go_with_their_answers_a_few_at_a_time(world: World) -> None:
    for number in range(7):
        world.decided(world.ask(f"a{number}", body=f"b{number}"))
        world.settle(f"a{number}")
    world.decided(world.ask("lasting", body="other", key="k1"))
    world.settle("lasting")
    world.wait(601)
    assert [world.store.reap(limit=3) for _ in range(4)] == [3, 3, 1, 0]
    assert world.rows("SELECT call_id FROM claim") == [("lasting",)]
    assert world.rows("SELECT count(*) FROM answer") == [(1,)]


def test_a_key_that_is_taken_again_drops_the_old_answer(world: World) -> None:
    world.decided(world.ask("a", key="k1"))
    world.settle("a")
    world.wait(86_401)
    world.decided(world.ask("b", key="k1", body="y"))
    assert world.rows("SELECT call_id FROM claim") == [("b",)]
    assert world.rows("SELECT count(*) FROM answer") == [(0,)]


def test_a_call_that_a_cord_stops_stretches_nothing(world: World) -> None:
    world.decided(world.ask("a", key="k1"))
    world.settle("a")
    world.wait(500)
    world.store.pull(a_pull())
    assert world.decided(world.ask("b", key="k2")).verdict.reason == "halted"
    world.store.release(Level.HALT, Scope.RUN, "r1", reason="ok", actor="ann", at_us=1)
    world.wait(101)
    assert world.decided(world.ask("c", key="k3")).verdict.action is Action.ALLOW


def test_a_claim_and_its_answer_stay_while_a_key_that_was_told_of_it_protects(
    world: World,
) -> None:
    world.decided(world.ask("a"))
    world.settle("a")
    world.decided(world.ask("b", key="k1"))
    started = world.shown("a")["key"]
    assert world.shown("b")["key"] == started  # the record shows the key of the claim
    world.wait(601)
    assert world.store.reap() == 0
    world.decided(world.ask("c"))
    assert world.shown("c")["state"] == "pending"
    row = claims.of_call(world.conn, "a", bytes.fromhex(started))
    assert row is not None, "what the call of a claim looks for it by"
    assert world.decided(world.ask("d", key="k1")).verdict.earlier_call == "a"
    assert world.shown("d")["key"] == started
    world.wait(86_401)
    assert world.store.reap() == 1
    assert world.rows("SELECT call_id FROM claim") == [("c",)]
    assert world.rows("SELECT (SELECT count(*) FROM claim_alias), count(*) FROM answer") == [(0, 0)]


def test_what_a_call_of_no_claim_was_told_binds_no_key(world: World) -> None:
    """A cord, a key of another body, and a call that goes on waiting in line say nothing of it."""
    world.decided(world.ask("a", key="k1"))
    assert world.decided(world.ask("b", key="k2", may_wait=True)).verdict.reason == "in_flight"
    world.settle("a")
    world.decided(world.ask("c", key="k1", body="other"))
    world.store.pull(a_pull())
    assert world.decided(world.ask("d", key="k3")).verdict.reason == "halted"
    world.decided(world.ask("e"))
    assert world.rows("SELECT count(*) FROM claim_alias") == [(0,)]


def test_what_is_told_of_a_resolved_write_is_for_its_own_key(world: World) -> None:
    world.decided(world.ask("a", key="k1"))
    world.settle("a", status=None, complete=False)
    until_us = world.now_us + 86_400_000_000
    world.wait(60)
    world.decided(world.ask("b", key="k2"))
    said: dict[str, Any] = {"reason": "seen", "actor": "ann", "at_us": world.now_us}
    done = world.store.resolve("a", CallState.DONE, **said)
    assert done is not None
    assert done.protected_until_us == until_us
    assert world.rows("SELECT expires_us FROM claim") == [(until_us + 60_000_000,)]


def test_a_released_write_leaves_no_claim(world: World) -> None:
    world.decided(world.ask("a", key="k1"))
    world.settle("a", status=429)
    assert world.rows("SELECT count(*) FROM claim") == [(0,)]
    assert world.rows("SELECT count(*) FROM answer") == [(0,)]
    assert world.shown()["state"] == "done"
