"""What is done of an incident is seen by whoever comes next, also where nobody said so."""

from ledger.compensation import Undoing
from ledger.states import CallState, ClaimAfter
from policies.call import Identity
from policies.decide import decide_undo
from policies.policy import UNDO_RUN
from policies.runbook import State
from policies.verdict import Action
from proxy.incident_acts import stepped
from tests.ledger.world import World
from tests.proxy.test_runbook import busy, sheet

__all__ = ["busy"]


def undone(world: World, incident: str, call: str, status: int = 200) -> None:
    """An operator undoes a write, and the tool answers so."""
    world.wait(1)
    name = f"undo-{call}-{world.now_us}"
    ask = world.ask(name, body=name, claimant=Identity(UNDO_RUN, "acme"))
    by = Undoing(call, incident, "ann", "sorry")
    decision = world.store.compensate(ask, by, world.policy, decide_undo)
    assert decision.verdict.action is Action.ALLOW
    claim = ClaimAfter.DONE if status == 200 else ClaimAfter.RELEASED
    world.store.settle(world.outcome(name, CallState.DONE, claim, status=status))


def notified(world: World, incident: str, tenant: str) -> None:
    world.store.notified_incident(
        incident, tenant=tenant, contact="mail", digest="ab" * 16, to=f"ops@{tenant}.example",
        actor="ann", at_us=world.now_us,
    )  # fmt: skip


def test_a_second_on_call_sees_what_is_undone_and_told(busy: World) -> None:
    """Without a word of the first; of what was declined nothing is left to undo."""

    def states(*names: str) -> list[State]:
        steps = {page.walked.step.name: page.walked for page in sheet(busy, "a1").pages}
        return [steps[name].state for name in names]

    busy.store.ack_incident("a1", actor="ann", at_us=busy.now_us)
    busy.decided(busy.ask("c9", body="c9"))
    busy.settle("c9", status=404)
    paid = [
        row
        for row in busy.calls("root:r1 tool:pay effect:write state:done", limit=1_000)
        if row["id"] >= "c0040"
    ]
    made = [row["id"] for row in paid if row["status"] != 404]
    todo, done = State.TODO, State.DONE
    assert states("scope", "decide", "undo", "draft", "tell") == [todo] * 5
    declined = sum(row["status"] == 404 for row in paid)
    assert declined
    assert len(made) > 1
    found = sheet(busy, "a1").facts
    assert (found["undone_writes"], found["left_to_undo"]) == (0, len(made))
    undone(busy, "a1", made[0], status=402)
    assert states("scope", "undo") == [todo, todo]
    undone(busy, "a1", made[0])
    assert states("scope", "decide", "undo", "tell") == [done, done, todo, todo]
    for call in made[1:]:
        undone(busy, "a1", call)
    found = sheet(busy, "a1").facts
    assert (found["undone_writes"], found["left_to_undo"]) == (len(made), 0)
    assert states("undo", "draft", "tell") == [done, todo, todo]
    assert (found["told_tenants"], found["left_to_tell"]) == (0, 1)
    notified(busy, "a1", "bolt")
    assert states("tell") == [todo]
    notified(busy, "a1", "acme")
    assert states("draft", "tell") == [done, done]
    said = {line.said for page in sheet(busy, "a1").pages for line in page.evidence}
    told_ = next(one for one in said if one.startswith("undone: "))
    assert told_.startswith(f"undone: {len(made)} writes, 0 left; ")
    assert told_.endswith(" did nothing: the tool declined")
    assert "told: 1 tenant, 0 left" in said


def test_a_step_that_a_person_says_is_done_is_done(busy: World) -> None:
    stepped(busy.store, "a1", "decide", "done: all", actor="ann", at_us=busy.now_us)
    stepped(busy.store, "a1", "undo", "ran: a part", actor="ann", at_us=busy.now_us)
    stepped(busy.store, "a1", "draft", "skipped: no", actor="ann", at_us=busy.now_us)
    steps = {page.walked.step.name: page.walked.state for page in sheet(busy, "a1").pages}
    assert (steps["decide"], steps["draft"]) == (State.DONE, State.SKIPPED)
    assert steps["undo"] is State.TODO, "the record knows better what is left"
