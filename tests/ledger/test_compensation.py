"""The claim of a call that undoes a write: once for each write, whoever asks, whatever happens."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger import compensation, steps
from ledger.compensation import (
    DECLINED,
    Kept,
    Undoing,
    answer_of,
    attempts,
    is_declined,
    undone_calls,
)
from ledger.connection import open_reader
from ledger.containment import proof
from ledger.errors import LedgerError
from ledger.records import Decision
from ledger.states import CallState, ClaimAfter
from ledger.vault import Vault
from policies.ceilings import Count, Per
from policies.decide import decide_undo
from policies.policy import UNDO_RUN
from policies.verdict import Action, Level, Reason, Scope
from tests.ledger.simulated import simulated
from tests.ledger.world import HEADERS, VAULT_KEY, World, a_ceiling, a_policy, a_pull

INCIDENT = "01890000-0000-7000-8000-000000000001"
YEARS = 20 * 366 * 86_400.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.admit(made.ask("charge"))
    made.settle("charge", body=b'{"id":"ch_1"}')
    yield made
    made.store.close()


def undo(world: World, name: str, of: str = "charge", actor: str = "ann", **rest: Any) -> Decision:
    ask = world.ask(name, tool="mail", body=f"refund of {of}", claimant=None, **rest)
    with world.store.transaction(durable=True):
        undoing = Undoing(of, INCIDENT, actor, "it was too much")
        return world.store.compensate(ask, undoing, world.policy, decide_undo)


def told(decision: Decision) -> tuple[Action, Reason, str]:
    verdict = decision.verdict
    return verdict.action, verdict.reason, verdict.earlier_call


def resolved(world: World, name: str, state: CallState) -> None:
    world.store.resolve(name, state, reason="looked", actor="ann", at_us=world.now_us)


ALLOWED = (Action.ALLOW, Reason.ALLOWED, "")


def test_it_is_an_intent_with_its_incident_its_actor_and_the_write_that_it_undoes(
    world: World,
) -> None:
    assert told(undo(world, "refund")) == ALLOWED
    ((run, tenant, root, tool, rule, actor, incident, detail, state),) = world.rows(
        "SELECT run, tenant, root, tool, rule, actor, incident, detail, state FROM event "
        "WHERE call_id = 'refund' AND type = 'call.intent'"
    )
    assert (run, tenant, root, tool) == (UNDO_RUN, "acme", UNDO_RUN, "mail")
    assert (rule, actor, incident) == ("undo:charge", "ann", INCIDENT)
    assert (detail, state) == ("it was too much", "pending")
    world.check_memory()


def test_it_is_made_once(world: World) -> None:
    undo(world, "refund")
    assert told(undo(world, "again", actor="bob")) == (Action.REFUSE, Reason.IN_FLIGHT, "refund")
    world.settle("refund")
    done = (Action.REFUSE, Reason.DONE_BUT_NOT_STORED, "refund")
    assert told(undo(world, "later")) == done
    world.wait(YEARS)
    world.store.reap()
    assert told(undo(world, "much later")) == done


def test_another_body_and_another_tool_make_no_other_of_it(world: World) -> None:
    undo(world, "refund")
    ask = world.ask("other", tool="pay", body="something else", key="k", claimant=None)
    with world.store.transaction(durable=True):
        undoing = Undoing("charge", INCIDENT.replace("1", "2"), "bob")
        decision = world.store.compensate(ask, undoing, world.policy, decide_undo)
    assert decision.verdict.reason is Reason.IN_FLIGHT


def test_one_of_unknown_outcome_is_not_made_again_before_a_person_has_said(world: World) -> None:
    undo(world, "refund")
    world.settle("refund", status=None, complete=False)
    unknown = (Action.REFUSE, Reason.OUTCOME_UNKNOWN, "refund")
    assert told(undo(world, "again")) == unknown
    world.wait(YEARS)
    world.store.reap()
    assert told(undo(world, "later")) == unknown
    resolved(world, "refund", CallState.NOT_SENT)
    assert told(undo(world, "anew")) == ALLOWED
    world.settle("anew", status=None, complete=False)
    resolved(world, "anew", CallState.DONE)
    assert told(undo(world, "once more"))[:2] == (Action.REFUSE, Reason.DONE_BUT_NOT_STORED)


def test_one_that_was_not_sent_or_was_declined_may_be_made_again(world: World) -> None:
    undo(world, "refund")
    world.settle("refund", sent=False, status=None, complete=False)
    assert told(undo(world, "second")) == ALLOWED
    declined = world.outcome("second", CallState.DONE, ClaimAfter.RELEASED, status=402)
    world.store.settle(declined)
    assert told(undo(world, "third")) == ALLOWED
    with closing(open_reader(world.data)) as reader:
        tried = attempts(reader, ["charge", "another"])
        assert {name: [row["id"] for row in rows] for name, rows in tried.items()} == {
            "charge": ["refund", "second", "third"]
        }
        assert [row["state"] for row in tried["charge"]] == ["not_sent", "done", "pending"]
        assert attempts(reader, ["another"]) == {}
        assert undone_calls(reader, 0) == set()
        world.settle("third")
        assert undone_calls(reader, 0) == undone_calls(reader, world.now_us) == {"charge"}
        assert undone_calls(reader, world.now_us + 61_000_000) == set()
        for asked, values, by in (
            (compensation._ATTEMPTS, ("[]",), "rule=?"),
            (compensation._UNDOING, ("a", "a", 0), "rule>? AND rule<?"),
        ):
            plan = reader.execute(f"EXPLAIN QUERY PLAN {asked}", values).fetchall()
            assert any(f"event_act (type=? AND {by})" in row[3] for row in plan), plan
            assert not any(row[3].startswith("SCAN d") for row in plan)


def test_what_was_declined_is_said_in_one_place(world: World) -> None:
    """The condition for the database and the function say the same of every answer."""
    for state in CallState:
        for status in (None, 200, 399, 400, 404, 408, 409, 410, 499, 500):
            asked = f"SELECT {DECLINED} FROM (SELECT ? AS state, ? AS status)"
            (found,) = world.conn.execute(asked, (state.value, status)).fetchone()
            row = {"state": state.value, "status": status}
            assert (
                bool(found)
                is is_declined(row)
                is (state == "done" and status in (400, 404, 408, 410, 499))
            )


def test_a_crash_leaves_it_unknown(world: World) -> None:
    undo(world, "refund")
    world.reopen()
    assert world.shown("refund")["state"] == "unknown"
    assert told(undo(world, "again")) == (Action.REFUSE, Reason.OUTCOME_UNKNOWN, "refund")


def test_what_fails_with_its_transaction_was_never_there(world: World) -> None:
    with world.failing():
        ask = world.ask("refund", tool="mail", body="b", claimant=None)
        world.store.compensate(ask, Undoing("charge", INCIDENT, "ann"), world.policy, decide_undo)
    world.check_memory()
    assert told(undo(world, "again")) == ALLOWED


def test_each_write_has_its_own(world: World) -> None:
    world.admit(world.ask("second", body="y"))
    world.settle("second")
    undo(world, "refund")
    assert told(undo(world, "refund of the second", of="second")) == ALLOWED


def test_only_a_write_that_is_done_is_undone(world: World) -> None:
    world.admit(world.ask("open", body="z"), world.read("look"))
    world.settle("look")
    for name in ("open", "look", "nothing", "char"):
        with pytest.raises(LedgerError):
            undo(world, f"refund of {name}", of=name)
    assert world.calls(f"run:{UNDO_RUN}") == []


def test_only_ceilings_over_everybody_count(world: World) -> None:
    per = [Per.TENANT, Per.RUN, Per.TREE, Per.TOOL, Per.DESTINATION]
    world.policy = a_policy(*(a_ceiling(0, each, Count.WRITES) for each in per))
    assert told(undo(world, "refund")) == ALLOWED
    world.admit(world.ask("second", body="y"))
    world.policy = a_policy(a_ceiling(0, Per.GLOBAL, Count.WRITES), digest="d2")
    world.settle("refund", sent=False, status=None, complete=False)
    assert told(undo(world, "again"))[:2] == (Action.REFUSE, Reason.OVER_CEILING)


def test_a_halt_of_the_run_does_not_stop_it_and_one_of_all_does(world: World) -> None:
    world.store.pull(a_pull())
    world.store.pull(a_pull(Scope.TENANT, "acme"))
    assert told(undo(world, "refund")) == ALLOWED
    world.settle("refund", sent=False, status=None, complete=False)
    world.store.pull(a_pull(Scope.GLOBAL, ""))
    assert told(undo(world, "again"))[:2] == (Action.REFUSE, Reason.HALTED)
    ((incident, actor),) = world.rows(
        "SELECT incident, actor FROM event WHERE call_id = 'again' AND type = 'call.refused'"
    )
    assert (incident, actor) == (INCIDENT, "ann")


def test_a_halt_of_a_tenant_is_proven_while_what_it_did_is_undone(world: World) -> None:
    world.store.pull(a_pull(Scope.TENANT, "acme"))
    undo(world, "refund")
    with closing(open_reader(world.data)) as reader:
        proven = proof(reader, Level.HALT, Scope.TENANT, "acme")
        assert proven is not None
        assert (proven.admitted_after, proven.still_open) == (0, ())
    world.store.pull(a_pull(Scope.TOOL, "mail"))
    with closing(open_reader(world.data)) as reader:
        proven = proof(reader, Level.HALT, Scope.TOOL, "mail")
        assert proven is not None
        assert proven.still_open == ("refund",)


def test_no_detector_is_told_of_it(world: World) -> None:
    undo(world, "refund")
    step = world.store._memory.open_calls["refund"].step
    assert step is not None
    assert not steps.counts(step.run, step.tenant, step.tool)


def test_a_simulation_passes_over_it(world: World) -> None:
    undo(world, "refund")
    world.settle("refund")
    told = simulated(world)
    assert [judged.asked.call_id for judged in told.verdicts] == ["charge"]


def test_the_answer_of_a_write_is_there_while_its_claim_protects(world: World) -> None:
    vault = Vault(VAULT_KEY)
    with closing(open_reader(world.data)) as reader:
        kept = answer_of(reader, vault, world.shown("charge"))
        assert kept.answer is not None
        assert (kept.answer.body, kept.answer.headers) == (b'{"id":"ch_1"}', HEADERS)
        world.wait(601)
        world.store.reap()
        assert answer_of(reader, vault, world.shown("charge")) == Kept(None)
        assert answer_of(reader, vault, {**world.shown("charge"), "key": None}) == Kept(None)
