"""What people do about incidents, in the store: opened, acknowledged, noted, proven, closed."""

from collections.abc import Callable
from typing import Any

import pytest

from ledger import incidents
from ledger.errors import LedgerError
from ledger.incident_acts import SINCE_SECONDS
from ledger.incidents import QUIET_SECONDS
from ledger.open_incidents import ALERTS_OF_TENANT_MAX, EVERYBODY, Incident
from policies.detectors.rules import Mode
from policies.verdict import Scope
from tests.ledger.findings import ALERT, TOOL, TRIP, a_found, close, listed, the_one, told, types
from tests.ledger.made_incidents import an_incident
from tests.ledger.test_incidents import SECRET
from tests.ledger.world import START_US, World

PROOF = "ab" * 32


def opened(
    world: World, kind: Scope = Scope.RUN, name: str = "r1", tenant: str = "acme", **rest: Any
) -> Incident:
    given = {"since_us": None, "reason": "it pays twice", "actor": "ann", **rest}
    return world.store.open_incident(kind, name, tenant, at_us=world.now_us, **given)[0]


def acked(world: World, one: Incident, actor: str = "ann", owner: str = "") -> Incident:
    found = world.store.ack_incident(one.id, owner=owner, actor=actor, at_us=world.now_us)
    assert found is not None
    return found[1]


def acts(world: World) -> list[tuple[Any, ...]]:
    return world.rows(
        "SELECT type, actor, rule, detail, run, tenant, incident FROM event "
        "WHERE type LIKE 'incident.%' ORDER BY seq"
    )


# ---------------------------------------------------------------------------- opened by a person


def test_a_person_opens_one_over_a_run(world: World) -> None:
    one = opened(world, reason=f"it pays twice with {SECRET}")
    assert one == the_one(world)
    assert (one.kind, one.name, one.tenant, one.run, one.root) == ("run", "r1", "acme", "r1", "r1")
    assert (one.severity, one.detector, one.opened_by, one.state) == ("trip", "", "ann", "open")
    assert SECRET not in one.why
    assert one.why.startswith("it pays twice with [redacted:")
    assert one.since_us == world.now_us - SINCE_SECONDS * 1_000_000
    ((kind, actor, rule, detail, run, tenant, incident),) = acts(world)
    assert (kind, actor, rule) == ("incident.opened", "ann", None)
    assert detail == f"run r1 of tenant acme: {one.why}"
    assert (run, tenant, incident) == ("r1", "acme", one.id)
    assert world.store.pulls == {}


def test_calls_belong_to_it_from_when_the_person_says(world: World) -> None:
    assert opened(world, since_us=START_US - 5).since_us == START_US - 5


@pytest.mark.parametrize(
    "kind, name, tenant, about",
    [
        (Scope.TENANT, "acme", "acme", ("", "", "")),
        (Scope.TOOL, "pay", "acme", ("", "pay", "")),
        (Scope.RELEASE, "v7", "", ("", "", "v7")),
        (Scope.GLOBAL, EVERYBODY, "", ("", "", "")),
    ],
)
def test_a_person_opens_one_over_anything_else(
    world: World, kind: Scope, name: str, tenant: str, about: tuple[str, ...]
) -> None:
    one = opened(world, kind, name, tenant)
    assert (one.kind, one.name, one.tenant) == (kind, name, tenant)
    assert (one.run, one.tool, one.release) == about
    assert not one.is_many
    assert one.mixed == ("is over everything" if kind is Scope.GLOBAL else "")


def test_one_that_is_open_is_not_opened_twice_and_the_reason_is_a_note(world: World) -> None:
    told(world)
    before = the_one(world)
    given: dict[str, Any] = {"since_us": None, "reason": f"again {SECRET}", "actor": "ann"}
    given["at_us"] = world.now_us
    assert world.store.open_incident(Scope.RUN, "r1", "acme", **given) == (before, False)
    assert the_one(world) == before
    kind, actor, rule, detail, *_, incident = acts(world)[-1]
    assert (kind, actor, rule, incident) == ("incident.noted", "ann", None, before.id)
    assert detail.startswith("again [redacted:")
    close(world, before)
    after, is_new = world.store.open_incident(Scope.RUN, "r1", "acme", **given)
    assert (is_new, after.id != before.id, after.opened_by) == (True, True, "ann")


def test_a_person_says_how_bad_it_is(world: World) -> None:
    one = opened(world, severity=ALERT)
    assert (one.severity, the_one(world).severity) == ("alert", "alert")
    world.wait(1)
    assert opened(world).severity == "alert"  # who says nothing of it changes nothing
    assert the_one(world).raised_us is None
    worse = opened(world, severity=TRIP, reason="it pays thrice")
    assert worse == the_one(world)
    assert (worse.id, worse.severity, worse.raised_us) == (one.id, "trip", world.now_us)
    assert acts(world)[-1][3] == "a trip from now on: it pays thrice"
    assert opened(world, severity=ALERT).severity == "trip"  # what was told is not taken back


def test_what_a_person_opened_no_quiet_day_closes(world: World) -> None:
    opened(world, severity=ALERT)
    told(world, ALERT, run="quiet")
    world.wait(QUIET_SECONDS + 1)
    world.store.reap()
    assert [one.name for one in listed(world)] == ["r1"]


@pytest.mark.parametrize(
    "changes", [{"reason": " "}, {"actor": ""}, {"name": ""}, {"since_us": START_US + 1},
                {"reason": "caf\udce9"}]
)  # fmt: skip
def test_opening_takes_a_name_a_reason_and_a_past(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        opened(world, **changes)
    assert (listed(world), types(world)) == ([], [])


@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_detector_finds_of_the_same_joins_it(world: World, restarted: bool) -> None:
    """Its reason stays the person's; the cord that is pulled is told to the channels."""
    one = opened(world)
    if restarted:
        world.reopen()
    world.wait(60)
    told(world, ALERT, run="child", root="r1", call="c1")
    told(world, TRIP, run="r1", call="c2")
    found = the_one(world)
    assert (found.id, found.why, found.detector) == (one.id, "it pays twice", "")
    assert (found.rule, found.findings, found.evidence) == ("halt:run:r1", 2, ("c1", "c2"))
    assert (found.first_call, found.since_us) == ("c1", one.since_us)
    assert found.raised_us == world.now_us
    assert {row[-1] for row in acts(world)} == {one.id}


def test_what_joined_another_one_before_joins_the_persons_from_then_on(world: World) -> None:
    """The finding of a run was part of its tool's incident; then somebody opens one of the run."""
    told(world, ALERT, detector="write_spike", subject=TOOL, name="pay")
    told(world, ALERT, detector="write_spike")
    told(world, ALERT)
    tool = next(one for one in listed(world) if one.kind == "tool")
    mine = opened(world, Scope.RUN, "r1")
    told(world, TRIP, call="c9")
    by_id = {one.id: one for one in listed(world)}
    assert "c9" in by_id[mine.id].evidence
    assert "c9" not in by_id[tool.id].evidence


def test_a_tenants_that_a_person_opened_takes_what_is_too_much_as_well(world: World) -> None:
    """A run that is stopped gets its own as soon as there is room; and the words stay."""
    mine = opened(world, Scope.TENANT, "acme")
    for number in range(ALERTS_OF_TENANT_MAX + 1):
        told(world, ALERT, run=f"r{number}")
    last = f"r{ALERTS_OF_TENANT_MAX}"
    by_id = {one.id: one for one in listed(world)}
    assert len(by_id) == ALERTS_OF_TENANT_MAX + 1
    assert (by_id[mine.id].why, by_id[mine.id].findings) == ("it pays twice", 1)
    told(world, TRIP, run=last)
    assert [one.kind for one in listed(world) if one.rule == f"halt:run:{last}"] == ["run"]


def test_those_that_people_open_take_no_room_from_the_detectors(world: World) -> None:
    for number in range(ALERTS_OF_TENANT_MAX):
        opened(world, Scope.RUN, f"p{number}")
    for restarted in (False, True):
        if restarted:
            world.reopen()
        told(world, ALERT, run=f"found-{restarted}")
    assert all(one.kind == "run" for one in listed(world))


def test_an_opening_that_is_rolled_back_was_none(world: World) -> None:
    with world.failing():
        opened(world)
    told(world, ALERT)
    assert (the_one(world).opened_by, types(world)) == (
        *("",),
        ["incident.opened", "detector.alerted"],
    )


def test_the_first_cord_that_is_pulled_for_a_persons_is_told(world: World) -> None:
    opened(world)
    world.wait(60)
    told(world)
    assert (the_one(world).rule, the_one(world).raised_us) == ("halt:run:r1", world.now_us)


# ---------------------------------------------------------------------------- acknowledged


def test_acknowledging_names_an_owner_and_lifts_nothing(world: World) -> None:
    told(world)
    world.wait(5)
    found = acked(world, the_one(world))
    assert found == the_one(world)
    assert (found.owner, found.acked_by, found.acked_us) == ("ann", "ann", world.now_us)
    assert len(world.store.pulls) == 1
    assert acts(world)[-1][:4] == ("incident.acked", "ann", None, "owner ann")
    assert acked(world, found) == found
    assert types(world).count("incident.acked") == 1
    again = acked(world, found, actor="bob")
    assert (again.owner, again.acked_by) == ("bob", "bob")
    assert acked(world, again, actor="bob", owner="cy").owner == "cy"
    assert [row[3] for row in acts(world)][2:] == ["owner bob, before ann", "owner cy, before bob"]


def test_what_goes_on_keeps_the_owner(world: World) -> None:
    """The detectors remember the incident; so that memory has to know."""
    told(world, ALERT)
    acked(world, the_one(world))
    told(world, TRIP, call="c2")
    found = the_one(world)
    assert (found.owner, found.severity) == ("ann", "trip")
    assert found.acked_us is not None
    assert found.raised_us is not None
    assert found.raised_us > found.acked_us


def test_what_got_worse_is_acknowledged_once_more(world: World) -> None:
    told(world, ALERT)
    acked(world, the_one(world))
    told(world, TRIP)
    found = acked(world, the_one(world))
    assert found.acked_us == found.raised_us
    assert types(world).count("incident.acked") == 2


def test_a_closed_one_is_not_acknowledged(world: World) -> None:
    told(world)
    one = the_one(world)
    close(world, one)
    with pytest.raises(LedgerError, match="ann has closed it"):
        acked(world, one)


def test_an_acknowledgement_that_is_rolled_back_was_none(world: World) -> None:
    told(world, ALERT)
    one = the_one(world)
    with world.failing():
        acked(world, one)
    told(world, TRIP)
    assert the_one(world).owner == ""


# ---------------------------------------------------------------------------- notes, steps, proof


def test_notes_are_rows_public_or_not_and_of_closed_ones_too(world: World) -> None:
    told(world)
    one = the_one(world)
    note = world.store.note_incident
    assert note(one.id, f"key {SECRET} leaked", actor="ann", at_us=world.now_us) == one
    close(world, one)
    note(one.id, "refunds are stopped", public=True, actor="bob", at_us=world.now_us)
    first, _, last = acts(world)[1:]
    assert first[:3] == ("incident.noted", "ann", None)
    assert SECRET not in first[3]
    assert last[:4] == ("incident.noted", "bob", "public", "refunds are stopped")
    assert first[-1] == last[-1] == one.id


def test_a_step_of_the_runbook_is_a_row_with_its_name(world: World) -> None:
    one = opened(world)
    world.store.step_incident(one.id, "contain", "halted r1", actor="ann", at_us=world.now_us)
    assert acts(world)[-1][:4] == ("incident.step", "ann", "contain", "halted r1")
    assert the_one(world) == one


def test_a_proof_is_kept_and_the_detectors_do_not_undo_it(world: World) -> None:
    told(world)
    one = the_one(world)
    world.store.prove_incident(one.id, PROOF, "tests/incidents/x", actor="ann", at_us=world.now_us)
    assert acts(world)[-1][:4] == ("incident.proven", "ann", PROOF, "tests/incidents/x")
    world.wait(60)
    told(world, call="c2")
    assert (the_one(world).proof, the_one(world).evidence) == (PROOF, ("c1", "c2"))


@pytest.mark.parametrize("digest", ["", "x" * 64, "AB" * 32, "ab" * 65, "ab\n" + "ab" * 8])
def test_a_proof_is_a_digest(world: World, digest: str) -> None:
    one = opened(world)
    with pytest.raises(LedgerError, match="hexadecimal"):
        world.store.prove_incident(one.id, digest, "here", actor="ann", at_us=world.now_us)


Act = Callable[[World, str, str, str], object]
ACTS: dict[str, Act] = {
    "ack": lambda w, one, who, _: w.store.ack_incident(one, actor=who, at_us=w.now_us),
    "note": lambda w, one, who, text: w.store.note_incident(one, text, actor=who, at_us=w.now_us),
    "step": lambda w, one, who, text: w.store.step_incident(
        one, text, "", actor=who, at_us=w.now_us
    ),
    "prove": lambda w, one, who, text: w.store.prove_incident(
        one, PROOF, text, actor=who, at_us=w.now_us
    ),
    "close": lambda w, one, who, text: w.store.close_incident(
        one, reason=text, waived="x", actor=who, at_us=w.now_us
    ),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_every_act_takes_an_incident_a_name_and_words(world: World, act: Act) -> None:
    one, before = opened(world), types(world)
    assert act(world, "nothing", "ann", "text") is None
    with pytest.raises(LedgerError):
        act(world, one.id, " ", "text")
    with pytest.raises(LedgerError):
        act(world, one.id, "caf\udce9", "text")
    if act is not ACTS["ack"]:
        with pytest.raises(LedgerError):
            act(world, one.id, "ann", " ")
    assert types(world) == before


# ---------------------------------------------------------------------------- closing


def shut(world: World, one: Incident, **rest: Any) -> Incident | None:
    given = {"reason": "mended", "actor": "ann", **rest}
    return world.store.close_incident(one.id, at_us=world.now_us, **given)


def test_closing_takes_a_proof_or_a_reason_why_there_is_none(world: World) -> None:
    told(world)
    one = the_one(world)
    for waived in ("", " "):
        with pytest.raises(LedgerError) as refused:
            shut(world, one, waived=waived)
        assert f"pullcord incident export-test {one.id} --out DIR --prove" in str(refused.value)
        assert "--waive REASON" in str(refused.value)
    assert the_one(world) == one
    closed = shut(world, one, waived=f"known, {SECRET}")
    assert closed is not None
    assert SECRET not in closed.waived
    assert acts(world)[-1][3] == f"mended; no regression test: {closed.waived}"


def test_what_is_proven_is_closed_with_nothing_more(world: World) -> None:
    one = opened(world)
    world.store.prove_incident(one.id, PROOF, "here", actor="ann", at_us=world.now_us)
    closed = shut(world, one, waived="not needed")
    assert closed is not None
    assert (closed.proof, closed.waived) == (PROOF, "")
    assert acts(world)[-1][3] == "mended"


@pytest.mark.parametrize(
    "severity, mode, refused",
    [(ALERT, Mode.ENFORCE, False), (TRIP, Mode.ALERT, True), (TRIP, Mode.ENFORCE, True)],
)
def test_what_only_alerted_and_stopped_nothing_is_closed_without(
    world: World, severity: Any, mode: Mode, refused: bool
) -> None:
    told(world, severity, mode)
    if refused:
        with pytest.raises(LedgerError, match="--waive"):
            shut(world, the_one(world))
    else:
        assert shut(world, the_one(world)) is not None


def test_an_alert_for_which_something_is_pulled_wants_a_proof(world: World) -> None:
    an_incident(world.conn, rule="freeze:tool:pay")
    with pytest.raises(LedgerError, match="--waive"):
        shut(world, the_one(world))


def test_the_detectors_begin_anew_with_the_whole_tree_of_a_persons(world: World) -> None:
    opened(world)
    told(world, TRIP, run="child", root="r1")
    close(world, the_one(world))
    (seen,) = world.rows("SELECT seen FROM event WHERE type = 'incident.closed'")
    assert seen == ('{"forget":["run","r1"]}',)


def test_the_detectors_keep_what_they_know_where_they_had_no_part(world: World) -> None:
    for kind, name in ((Scope.RUN, "r1"), (Scope.TENANT, "acme")):
        close(world, opened(world, kind, name))
    assert world.rows("SELECT seen FROM event WHERE type = 'incident.closed'") == [(None,)] * 2


def test_no_finding_goes_to_one_that_is_closed(world: World) -> None:
    mine = opened(world)
    close(world, mine)
    with world.store.transaction(durable=False):
        incidents.found(world.store._open_batch(), a_found(world.now_us))
    assert the_one(world).id != mine.id
