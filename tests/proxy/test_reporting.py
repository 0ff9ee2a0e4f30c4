"""What is in a report: from a real ledger and its trace, by its queries alone."""

import json
from collections.abc import Callable

import pytest

from ledger.compensation import Undoing
from policies.call import Identity
from policies.decide import decide_undo
from policies.policy import UNDO_RUN, Policy
from policies.verdict import Action, Level, Pull, Scope
from proxy import report_actions
from proxy.cli.incidents import _turned
from proxy.report_chart import SLOTS
from proxy.report_html import page
from proxy.report_parts import Cell, Command, Paragraph, Ref, Said, Section, Table
from tests.ledger.conftest import template, world
from tests.ledger.findings import close, the_one
from tests.ledger.world import World
from tests.proxy.reported import Runaway, a_runaway, facts, texts, written

__all__ = ["template", "world"]


def section(world: World, title: str) -> Section:
    return next(one for one in written(world).sections if one.title == title)


def sentences(told: Section) -> list[Said]:
    found: list[Said] = []
    for part in told.parts:
        found += part.sentences if isinstance(part, Paragraph) else ()
        found += [part] if isinstance(part, Said) else ()
    return found


def shown(cell: Cell) -> str:
    match cell:
        case Ref():
            return cell.id
        case Command():
            return cell.text
    return str(cell)


def said(world: World, title: str) -> str:
    """The sentences and the cells of a section."""
    words = [f"{one.text} {one.command}" for one in sentences(section(world, title))]
    for part in section(world, title).parts:
        if isinstance(part, Table):
            words += [
                " ".join(str(getattr(c, "text", getattr(c, "id", c))) for c in row)
                for row in part.rows
            ]
    return "\n".join(words)


def test_a_report_has_all_that_the_record_tells(world: World) -> None:
    made = a_runaway(world)
    told = facts(world)
    assert told["scope"]["calls"]["count"] == 12
    assert told["scope"]["after_cord"]["admitted"] == 0
    assert told["trigger"]["finding"]["detail"] == "the same write 5 times"
    assert told["trigger"]["first_call"] == made.ids[1]
    assert told["times"]["detect_seconds"] == pytest.approx(4.7)
    assert told["times"]["contain_seconds"] == pytest.approx(4.7)
    assert told["times"]["recover_seconds"] is None
    assert [one["rule"] for one in told["standing"]] == ["halt:run:r1"]
    assert len(told["calls"]) == 12
    assert json.loads(json.dumps(told))["title"].startswith("Incident report: run r1 of tenant")


def test_what_the_model_was_asked_and_what_came_of_it(world: World) -> None:
    made = a_runaway(world)
    one = next(each for each in facts(world)["decisions"] if each["call"]["id"] == made.ids[9])
    assert one["model_call"] == made.ids[8]
    assert one["asked"].startswith("[message 2 of 2] user: Refund every order of today")
    assert one["answered"] == 'I refund order 4.\ncalls refund with {"order": 4}'
    assert '"order":4' in one["arguments"].replace(" ", "")
    assert one["request"] == "POST https://api.example/v1/charges"
    assert "sk-live" not in json.dumps(facts(world))


def test_the_chart_has_the_calls_and_the_cord(world: World) -> None:
    a_runaway(world)
    chart = facts(world)["chart"]
    sums = {lane["kind"]: sum(lane["figures"]) for lane in chart["lanes"]}
    assert sums == {"calls": 10, "writes": 5, "spend": 6_250, "refuse": 2}
    marks = texts(chart["marks"], "text")
    assert "pulled halt:run:r1; the incident was opened; detected" in marks
    assert "the first bad call" in marks
    assert chart["before"] == chart["after"] == 0
    assert "outside of the chart" not in said(world, "Chart")
    pulled = next(one for one in chart["marks"] if one["kind"] == "pulled")
    assert chart["start_us"] <= pulled["at_us"] <= chart["start_us"] + SLOTS * chart["width_us"]


def test_a_mark_long_after_the_calls_is_told_to_be_outside_of_the_chart(world: World) -> None:
    a_runaway(world)
    world.wait(3_600)
    world.store.release(
        Level.HALT, Scope.RUN, "r1", reason="mended", actor="ann", at_us=world.now_us
    )
    assert "released halt:run:r1 (outside of the chart)" in said(world, "Chart")
    chart = facts(world)["chart"]
    assert chart["width_us"] * SLOTS < 15_000_000


def test_each_sentence_of_the_summary_says_what_shows_it(world: World) -> None:
    a_runaway(world)
    for title in ("Summary", "Root trigger", "Scope"):
        for one in sentences(section(world, title)):
            assert one.command.startswith("pullcord "), one.text
    assert "1 write may have reached it; nobody knows yet" in said(world, "Summary")
    assert "0 writes that it covers were let through" in said(world, "Summary")


def test_the_first_cord_and_the_one_that_contained_it_are_told_apart(world: World) -> None:
    """A cord that is too narrow, and a wider one; nothing passed what either stands over."""
    made = Runaway(world)
    made.trip(made.step(0), why="round and round")
    one = the_one(world)
    world.store.release(
        Level.HALT, Scope.RUN, "r1", reason="too wide", actor="ann", at_us=world.now_us
    )
    child = Identity("kid", "acme", ancestors=("r1",))
    _pulled(world, one.id, Scope.RUN, "kid")
    for number in range(2):
        world.wait(1)
        world.decided(world.ask(made.id(), body=f"late{number}"))
    glance, actions = said(world, "At a glance"), said(world, "Action items")
    assert "contained not yet" in glance
    assert "writes of all of it after it was contained not contained: 2 after the last" in glance
    assert "Stop the rest of it, or say why not: 2 writes passed after its last cord" in actions
    _pulled(world, one.id, Scope.TENANT, "acme")
    world.wait(1)
    world.decided(world.ask(made.id(), body="later"))
    world.decided(world.ask(made.id(), body="latest", claimant=child))
    told = facts(world)
    assert [row["admitted"] for row in told["scope"]["cords"]] == [0, 0, 0]
    assert told["scope"]["after_all"]["contained"] is True
    assert told["times"]["first_cord"] < told["times"]["contained"]
    turned = _turned(told["times"])
    assert turned.index("; first cord pulled ") < turned.index("; contained ")
    assert "first cord" not in _turned({**told["times"], "first_cord_seconds": None})
    words = said(world, "Summary")
    assert "halt:run:r1 was the first to be pulled" in words
    assert "halt:tenant:acme, pulled at" in words
    assert "stopped all of it: after it 0 writes of the whole incident were let through" in words
    assert "Stop the rest" not in said(world, "Action items")
    assert "all of the incident 0" in said(world, "Scope")


def _pulled(world: World, incident: str, scope: Scope, subject: str) -> None:
    world.wait(1)
    pull = Pull(Level.HALT, scope, subject, "stop", "ann", world.now_us)
    with world.store.transaction(durable=True):
        world.store._open_batch().trip(pull, incident=incident)


def test_what_is_left_to_do_is_derived(world: World, a_policy: Callable[[str], Policy]) -> None:
    a_runaway(world)
    whats = " ".join(texts(facts(world, a_policy(""))["actions"], "what"))
    for words in ("unknown outcome", "regression test", "known to be good", "by name", "Close it"):
        assert words in whats
    assert "it stands" in whats
    assert "Nothing was ever stopped" not in whats


def test_what_is_done_is_not_left_to_do(world: World, a_policy: Callable[[str], Policy]) -> None:
    a_runaway(world)
    one = the_one(world)
    world.store.ack_incident(one.id, owner="ann", actor="ann", at_us=world.now_us)
    world.store.prove_incident(one.id, "ab" * 32, "t", actor="ann", at_us=world.now_us)
    world.store.release(
        Level.HALT, Scope.RUN, "r1", reason="mended", actor="ann", at_us=world.now_us
    )
    close(world, one)
    told = facts(world, a_policy("releases: {known_good: [v1]}"))
    whats = " ".join(texts(told["actions"], "what"))
    for words in ("regression test", "known to be good", "by name", "Close it", "stands"):
        assert words not in whats
    assert "unknown outcome" in whats
    assert told["times"]["recovered"] is not None


def test_an_incident_that_stopped_nothing_says_so(world: World) -> None:
    made = Runaway(world)
    made.step(0)
    world.store.open_incident(
        Scope.RUN, "r1", "acme", None, reason="odd", actor="ann", at_us=world.now_us
    )
    made.keep()
    told = facts(world)
    assert told["actions"][0]["what"].startswith("Nothing was ever stopped")
    assert told["actions"][0]["command"] == "pullcord halt run r1"
    assert "ann opened it by hand" in said(world, "Root trigger")
    assert "No cord was pulled for it." in said(world, "Summary")


def test_only_public_notes_are_told(world: World) -> None:
    a_runaway(world)
    one = the_one(world)
    for text, public in (("we look into it", True), ("it was Bob", False)):
        world.store.note_incident(one.id, text, public=public, actor="ann", at_us=world.now_us)
    assert texts(facts(world)["notes"], "detail") == ["we look into it"]
    assert "we look into it" in said(world, "Notes")
    assert "No tenant was told of it." in said(world, "Notes")


def test_who_was_told_is_told(world: World) -> None:
    a_runaway(world)
    world.store.notified_incident(
        the_one(world).id, tenant="acme", contact="mail", digest="ab" * 16, to="ops@acme.example",
        actor="ann", at_us=world.now_us,
    )  # fmt: skip
    told = said(world, "Notes")
    assert "acme mail ann" in told
    assert "No tenant was told" not in told


def test_an_incident_without_calls_has_a_report(world: World) -> None:
    world.decided(world.read("x"))
    world.wait(7_200)
    world.store.open_incident(
        Scope.RUN, "r1", "acme", world.now_us, reason="odd", actor="ann", at_us=world.now_us
    )
    told = facts(world)
    assert told["chart"] is None
    assert "No call belongs to it." in said(world, "Chart")
    assert page(written(world))


def test_calls_that_are_not_in_the_trace_say_why(world: World) -> None:
    made = Runaway(world)
    made.trip(made.step(0, traced=False))
    made.keep()
    assert "nothing is in the trace" in said(world, "Decisions")


def test_several_releases_are_marked(world: World) -> None:
    a_runaway(world)
    assert not [one for one in facts(world)["chart"]["marks"] if "release" in one["text"]]
    child = Identity("r2", "acme", ancestors=("r1",), release="v2")
    world.wait(1)
    world.decided(world.ask("child", claimant=child, body="c"))
    marks = " ".join(texts(facts(world)["chart"]["marks"], "text"))
    assert "release 2026-11-20.3 calls" in marks
    assert "release v2 calls" in marks


def test_what_was_undone_is_told_with_its_state(world: World) -> None:
    made = a_runaway(world)
    one, first = the_one(world), made.ids[1]
    undo = world.ask(made.id(), body="undo", claimant=Identity(UNDO_RUN, "acme"))
    decision = world.store.compensate(
        undo, Undoing(first, one.id, "ann", "sorry"), world.policy, decide_undo
    )
    assert decision.verdict.action is Action.ALLOW
    world.settle(undo.call_id)
    (row,) = facts(world)["undo"]
    assert (row["undoes"], row["actor"], row["state"]) == (first, "ann", "done")
    told = said(world, "Undo")
    assert "1 call to undo writes; 1 write undone." in told
    assert f"{first} {undo.call_id}" in told


def test_a_call_to_undo_that_the_tool_declined_undid_nothing() -> None:
    counts: dict[str, list[str]] = {"by_state": [], "by_reversibility": []}
    declined = {"id": "u1", "undoes": "c1", "state": "done", "status": 402}
    facts = {"incident": {"id": "i"}, "scope": {"writes": counts, "undo": {"left": 1}},
             "undo": [declined]}  # fmt: skip
    told = [what for what, _ in report_actions._settled(facts)]
    assert [what.split()[0] for what in told] == ["Undo", "Look"]
