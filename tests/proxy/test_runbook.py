"""The runbook for one incident: which book counts, what stands over it, the next safest action,
and the whole walk with what the ledger shows."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ledger.connection import open_reader
from ledger.open_incidents import Incident
from policies.document import MistakenFileError
from policies.load import load
from policies.runbook import COUNTS, EVIDENCE, FACTS, PLACES, TEXT, Book, State
from policies.verdict import Action, Level, Pull, Reason, Scope, Verdict
from proxy import compensations, walking
from proxy.incident_acts import stepped
from proxy.incidents import named, shown
from proxy.operations import OperationError, cord_name
from proxy.runbook import FILE, book, covering, next_action, usable
from proxy.walking import Sheet, as_json, look
from tests.ledger.findings import ALERT, the_one, told
from tests.ledger.world import World
from tests.proxy.scoped import a_busy_ledger

ROOT = Path(__file__).parents[2]
OWN = "version: 1\nstart: a\nsteps:\n  a: {title: call Ann, why: she knows}\n"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[World]:
    made = a_busy_ledger(tmp_path, 120)
    yield made
    made.store.close()


def reading(world: World) -> Any:
    return closing(open_reader(world.data))


def action(world: World, config: Path | None = None) -> Any:
    with reading(world) as reader:
        return next_action(reader, the_one(world), config)


def sheet(world: World, start: str, own: Book | None = None, *, known: bool = True) -> Sheet:
    with reading(world) as reader:
        one = named(reader, start)
        return look(reader, one, own or book(None), world.policy if known else None)


# ---------------------------------------------------------------------------------- the book


def test_the_one_beside_the_policy_counts_and_else_the_shipped_one(tmp_path: Path) -> None:
    shipped = ROOT / "proxy" / FILE
    assert shipped.resolve() == ROOT / "config" / FILE
    assert book(None).source == book(tmp_path).source == str(shipped)
    (tmp_path / FILE).write_text(OWN)
    assert list(book(tmp_path).steps) == ["a"]


def test_a_mistaken_one_is_told_and_the_shipped_one_counts_meanwhile(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(OWN.replace("why", "whyy"))
    with pytest.raises(MistakenFileError, match=r"runbook\.yaml:4:6: 'why' is missing"):
        book(tmp_path)
    found, wrong = usable(tmp_path)
    assert found.source == str(ROOT / "proxy" / FILE)
    assert "'why' is missing" in wrong


# ---------------------------------------------------------------------------------- at once


def cord(scope: Scope, subject: str, level: Level = Level.HALT) -> Pull:
    return Pull(level, scope, subject, "", "ann", 1)


RUN = Incident(
    *("i1", "run", "r1", "acme", "open", "trip", "loop", "why", "", "kid", "r1", "pay", "v7", ""),
    *(1, (), 0, 0),
)


TABLE: dict[str, Any] = yaml.safe_load((ROOT / "tests/cases/contained.yaml").read_text())


@pytest.mark.parametrize("case", TABLE["cases"].values(), ids=list(TABLE["cases"]))
def test_what_stops_it(case: dict[str, Any]) -> None:
    about = {**TABLE["incident"], **case.get("about", {})}
    one = replace(RUN, **{**about, "runs": tuple(about["runs"])})
    cords = [as_told(text, case.get("actor", "ann")) for text in case["cords"]]
    policy = load(POLICY_OF_CORDS) if case.get("policy") else None
    assert [found.rule for found in covering(one, cords, policy)] == case["covers"]


POLICY_OF_CORDS = f"""\
version: 1
halted: {{tenants: [umbrella]}}
releases: {{known_good: {TABLE["known_good"]}}}
"""


def as_told(text: str, actor: str) -> Pull:
    rule, _, releases = text.partition(" but ")
    level, scope, *subject = rule.split(":", 2)
    passing = (releases,) if releases else ()
    return Pull(Level(level), Scope(scope), "".join(subject), "", actor, 1, but_releases=passing)


def contained(one: Incident, *cords: Pull) -> None:
    pulls = {cord_name(cord): cord for cord in cords}
    compensations.check_contained(one, load("version: 1"), pulls)


def test_nothing_is_undone_while_a_part_of_it_may_go_on() -> None:
    contained(RUN, cord(Scope.RUN, "r1"))
    for narrower in (cord(Scope.RUN, "kid"), cord(Scope.TOOL, "r1/pay")):
        with pytest.raises(OperationError, match=r"not contained.*pullcord halt run r1"):
            contained(RUN, narrower)


def test_nothing_is_undone_of_what_was_too_much_to_have_an_incident_each() -> None:
    """Healthy runs are in it. What a person opened over a tenant is as wide as was meant."""
    many = replace(RUN, kind="tenant", name="acme")
    with pytest.raises(OperationError, match=r"healthy runs.*pullcord incident open --run R"):
        contained(many, cord(Scope.TENANT, "acme"))
    contained(replace(many, opened_by="ann"), cord(Scope.TENANT, "acme"))


def test_a_cord_below_the_root_is_shown_and_the_root_is_to_be_stopped(world: World) -> None:
    """Which an agent may bring about by a child that loops."""
    told(world, run="kid", root="r1", cord=(Scope.RUN, "kid"))
    assert action(world)["command"] == "pullcord halt run r1"
    with reading(world) as reader:
        answer = shown(reader, the_one(world).id[:8])
    assert [one["rule"] for one in answer["pulled"]] == ["halt:run:kid"]


def test_what_nothing_stops_is_stopped_first(world: World) -> None:
    told(world, ALERT)
    assert action(world) == {
        "what": "it is not stopped; stop it",
        "command": "pullcord halt run r1",
    }


def test_what_is_stopped_by_hand_is_stopped(world: World) -> None:
    told(world, ALERT)
    world.store.pull(replace(cord(Scope.GLOBAL, ""), at_us=world.now_us))
    one = the_one(world)
    assert action(world) == {"what": "take it", "command": f"pullcord incident ack {one.id}"}


def test_what_the_policy_stops_is_stopped(world: World, tmp_path: Path) -> None:
    told(world, ALERT)
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nhalted: {runs: [r1]}\n")
    assert action(world, tmp_path)["what"] == "take it"
    for unusable in ("version: 2\n", "version: 1\nhalted: {runs: [r2]}\n"):
        policy.write_text(unusable)
        assert action(world, tmp_path)["command"] == "pullcord halt run r1"


def test_what_hangs_on_its_calls_is_for_the_walk_to_tell(world: World) -> None:
    told(world)
    one = the_one(world)
    world.store.ack_incident(one.id, actor="ann", at_us=world.now_us)
    assert action(world) == {
        "what": "go on with the runbook",
        "command": f"pullcord runbook {one.id}",
    }


def test_a_release_of_the_cord_makes_it_one_to_stop_again(world: World) -> None:
    told(world)
    assert action(world)["what"] == "take it"
    world.store.release(
        Level.HALT, Scope.RUN, "r1", reason="mended", actor="ann", at_us=world.now_us
    )
    assert action(world)["command"] == "pullcord halt run r1"


def test_own_steps_count_and_what_is_recorded_of_them(world: World, tmp_path: Path) -> None:
    told(world)
    one, config = the_one(world), tmp_path / "config"
    config.mkdir()
    (config / FILE).write_text(OWN)
    assert action(world, config)["command"] == f"pullcord runbook {one.id}"
    stepped(world.store, one.id, "a", "done: she comes", actor="ann", at_us=world.now_us)
    assert action(world, config) is None
    (config / FILE).write_text("version: 2\n")
    shipped = action(world, config)
    assert "cannot be used, so the shipped one counts" in shipped["what"]
    assert shipped["command"] == f"pullcord incident ack {one.id}"


# ---------------------------------------------------------------------------------- the walk


def every_part() -> Book:
    """A step that shows everything, and waits for every count."""
    from policies.load_runbook import load

    waits = "".join(f"        - {{{fact}: 99999}}\n" for fact in COUNTS)
    places = " ".join(f"{{{place}}}" for place in PLACES)
    return load(
        f"""\
version: 1
start: a
steps:
  a:
    title: look at all
    why: to see
    until:
{waits}    show: [{", ".join(EVIDENCE)}]
    run: pullcord incident note {places}
""",
        "all.yaml",
    )


def test_every_fact_is_known_and_every_evidence_is_shown(busy: World) -> None:
    found = sheet(busy, "a1", every_part())
    assert {name for name, value in found.facts.items() if value is not None} == set(FACTS)
    (page,) = found.pages
    assert {line.shows for line in page.evidence} == set(EVIDENCE)
    assert set(walking._EVIDENCE) == set(EVIDENCE)
    assert page.walked.is_certain
    assert not page.gaps
    assert set(found.places) | {TEXT} >= set(PLACES)


def test_the_figures_are_those_of_the_ledger(busy: World) -> None:
    found = sheet(busy, "a1")
    rows = [row for row in busy.calls("root:r1", limit=1_000) if row["id"] >= "c0040"]
    unknown = [row for row in rows if (row["effect"], row["state"]) == ("write", "unknown")]
    assert found.facts["unknown_writes"] == len(unknown) > 0
    assert found.places["unknown_call"] in {row["id"] for row in unknown}
    made = [r for r in rows if r["effect"] == "write" and r["state"] in ("done", "unknown")]
    kinds = {"compensable": {"pay"}, "irreversible": {"mail"}, "undeclared": {"note", "unlisted"}}
    for fact, tools in kinds.items():
        kind = [row for row in made if row["tool"] in tools]
        assert found.facts[f"{fact}_writes"] == len(kind) > 0
    assert (found.facts["tenants_affected"], found.facts["release"]) == (1, "other")


def test_without_a_policy_nobody_knows_what_can_be_undone(busy: World) -> None:
    found = sheet(busy, "a1", known=False)
    assert found.facts["compensable_writes"] is None
    undo = next(page for page in found.pages if page.walked.step.name == "undo")
    assert (undo.walked.state, undo.walked.is_certain) == (State.TODO, False)
    assert "nobody knows" in undo.evidence[0].said


def test_one_that_did_nothing_is_told_of_and_closed(busy: World) -> None:
    """Its run never called, so that no write has to be looked at."""
    names = [page.walked.step.name for page in sheet(busy, "a6").pages]
    assert "verify" not in names
    assert names[-1] == "close"


def test_what_a_throttle_lets_pass_is_no_leak_and_a_throttle_stops_nothing(world: World) -> None:
    told(world, ALERT)
    one = the_one(world)
    throttle = Pull(Level.THROTTLE, Scope.RUN, "r1", "slow", "detector:loop", world.now_us)
    with world.store.transaction(durable=True):
        world.store._open_batch().trip(throttle, incident=one.id)
    world.wait(1)
    world.decided(world.ask())
    found = sheet(world, one.id)
    assert "1 write let through after throttle:run:r1" in " ".join(
        line.said for page in found.pages for line in page.evidence
    )
    assert found.facts["effects_after_pull"] == 0
    assert found.facts["contained"] is False


def test_a_write_after_the_cord_is_a_leak(world: World) -> None:
    told(world)
    one = the_one(world)
    world.judge = lambda *_: Verdict(Action.ALLOW, Reason.ALLOWED, "a fault of ours")
    world.wait(1)
    world.decided(world.ask())
    world.store.ack_incident(one.id, actor="ann", at_us=world.now_us)
    page = sheet(world, one.id).to_do
    assert page is not None
    assert (page.walked.step.name, page.command) == ("leaks", "pullcord halt global")


def test_effects_after_a_persons_cord_are_counted(world: World) -> None:
    told(world, ALERT)
    world.wait(1)
    world.store.pull(replace(cord(Scope.RUN, "r1"), at_us=world.now_us))
    world.judge = lambda *_: Verdict(Action.ALLOW, Reason.ALLOWED, "a fault of ours")
    world.wait(1)
    world.decided(world.ask())
    assert sheet(world, the_one(world).id).facts["effects_after_pull"] == 1


def test_what_passed_a_cord_of_the_policy_is_not_known(world: World) -> None:
    """The record does not tell since when it stands."""
    told(world, ALERT)
    start = the_one(world).id
    assert sheet(world, start).facts["effects_after_pull"] == 0
    with reading(world) as reader:
        found = look(reader, the_one(world), book(None), load("version: 1\nhalted: {global: true}"))
    assert (found.facts["contained"], found.facts["effects_after_pull"]) == (True, None)


def test_a_closed_one_is_reported_and_not_stopped_again(busy: World) -> None:
    busy.conn.execute("UPDATE incident SET state = 'closed', closed_us = updated_us")
    found = sheet(busy, "a2")
    assert [page.walked.step.name for page in found.pages] == ["report", "close"]
    assert found.pages[1].walked.state is State.DONE


def test_as_json_has_one_object_for_each_step_and_marks_the_next(busy: World) -> None:
    stepped(busy.store, "a1", "scope", "ran: it", actor="ann", at_us=busy.now_us)
    rows = as_json(sheet(busy, "a1"))
    assert [row["step"] for row in rows if row["next"]] == ["stop_run"]
    (scope,) = [row for row in rows if row["step"] == "scope"]
    assert (scope["state"], scope["by"], scope["text"]) == ("done", "ann", "ran: it")
    assert scope["evidence"][0]["command"].startswith("pullcord ledger query --by effect root:r1 ")
    assert rows[0]["command"] == "pullcord halt run r1"
