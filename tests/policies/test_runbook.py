"""Walking the tree: which steps an incident takes, which of them are done, what is filled in."""

import shlex

import pytest

from policies.load_runbook import load
from policies.runbook import State, Told, Value, command, in_order, missing, to_do, walk, words

BOOK = load(
    """\
version: 1
start: [{when: {kind: run}, step: stop_run}, stop_all]
steps:
  stop_run: {title: stop it, why: w, until: {contained: true}, next: look}
  stop_all: {title: stop all, why: w, until: {contained: true}, next: look}
  look: {title: look, why: w, next: ask}
  ask:
    title: ask the service
    why: w
    when: {unknown_writes: {at_least: 1}}
    until: {unknown_writes: 0}
    next: [{when: {irreversible_writes: {at_least: 1}}, step: talk}, close]
  talk: {title: talk, why: w, next: close}
  close: {title: close, why: w, until: {closed: true}}
""",
    "runbook.yaml",
)
FACTS: dict[str, Value | None] = {
    "kind": "run",
    "contained": False,
    "closed": False,
    "unknown_writes": 0,
    "irreversible_writes": 0,
}
ANN = Told("ran: pullcord incident scope", "ann", "2026-11-23T01:00:00.000Z")


def states(told: dict[str, Told] | None = None, **facts: Value | None) -> dict[str, State]:
    return {each.step.name: each.state for each in walk(BOOK, {**FACTS, **facts}, told or {})}


def first(told: dict[str, Told] | None = None, **facts: Value | None) -> tuple[str, bool]:
    found = to_do(walk(BOOK, {**FACTS, **facts}, told or {}))
    assert found is not None
    return found.step.name, found.is_certain


def test_containment_comes_first() -> None:
    assert first() == ("stop_run", True)
    assert states() == {
        "stop_run": State.TODO,
        "look": State.TODO,
        "ask": State.NOT_NEEDED,
        "close": State.TODO,
    }


def test_the_branch_whose_condition_holds_is_taken() -> None:
    assert first(kind="global") == ("stop_all", True)
    assert "talk" in states(irreversible_writes=1)


def test_what_the_ledger_shows_is_done_whatever_was_said() -> None:
    assert states(contained=True)["stop_run"] is State.DONE
    assert states({"stop_run": ANN})["stop_run"] is State.TODO, "it was said, but nothing stands"


def test_without_an_until_a_persons_word_counts() -> None:
    assert first({"look": ANN}, contained=True) == ("close", True)
    assert states({"look": ANN})["look"] is State.DONE


def test_what_was_skipped_is_passed_and_shown_so() -> None:
    told = {"stop_run": Told("skipped: a false alarm", "ann", "")}
    assert states(told)["stop_run"] is State.SKIPPED
    assert first(told) == ("look", True)
    assert states(told, contained=True)["stop_run"] is State.DONE


def test_what_is_not_known_may_be_so_and_is_told_to_be_uncertain() -> None:
    done = {"look": ANN}
    assert first(done, contained=True, unknown_writes=None) == ("ask", False)
    assert "talk" in states(irreversible_writes=None)
    assert first(contained=None) == ("stop_run", False)


def test_one_that_asks_for_nothing_any_more_is_not_needed() -> None:
    assert states(unknown_writes=0)["ask"] is State.NOT_NEEDED
    assert states({"ask": ANN}, unknown_writes=0)["ask"] is State.DONE


def test_at_its_end_nothing_is_to_do() -> None:
    found = walk(BOOK, {**FACTS, "contained": True, "closed": True}, {"look": ANN})
    assert to_do(found) is None


def test_each_step_stands_behind_all_that_lead_to_it() -> None:
    assert [step.name for step in in_order(BOOK)] == [
        *("stop_run", "stop_all", "look", "ask", "talk", "close"),
    ]


# ---------------------------------------------------------------------------------- commands

HALT = ("pullcord", "halt", "run", "{run}", "--reason", "{text}")


@pytest.mark.parametrize("name", ["r1", "r 1; rm -rf /", "$(id)", "a'b", "ünï\u202e"])
def test_what_is_filled_in_stays_one_word(name: str) -> None:
    shown = command(HALT, {"run": name})
    assert shlex.split(shown)[3] == name
    assert shown.endswith('--reason "..."')
    assert words(HALT, {"run": name}, "why {run}") == ["halt", "run", name, "--reason", "why {run}"]


def test_a_value_is_not_filled_in_again() -> None:
    run = ("pullcord", "halt", "run", "{run}", "{tenant}")
    assert words(run, {"run": "{tenant}", "tenant": "acme"}, "") == [
        *("halt", "run", "{tenant}", "acme"),
    ]


@pytest.mark.parametrize("name", ["", "--dry-run", "-n"])
def test_a_name_that_is_missing_or_would_be_an_option_is_a_gap(name: str) -> None:
    places = {"run": name}
    assert missing(HALT, places) == ["run"]
    assert command(HALT, places) == 'pullcord halt run RUN --reason "..."'
    with pytest.raises(ValueError, match="nothing is known to fill in for run"):
        words(HALT, places, "x")
