"""Runbook files: what is told about a mistaken one (tests/cases/runbook_errors.yaml), and what a
sound one compiles to."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.document import MistakenFileError
from policies.load_runbook import load
from policies.runbook import Asked, Branch, Condition
from policies.schema_runbook import STEPS_MAX

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = yaml.safe_load(
    (ROOT / "tests" / "cases" / "runbook_errors.yaml").read_text()
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["it"]))
def test_a_mistake_is_told(row: dict[str, Any]) -> None:
    with pytest.raises(MistakenFileError) as told:
        load(row["text"], "runbook.yaml")
    assert str(told.value) == row["says"]


def test_sentences_name_rows_once() -> None:
    assert len({row["it"] for row in ROWS}) == len(ROWS)


def test_the_shipped_one_is_sound() -> None:
    load((ROOT / "config" / "runbook.yaml").read_text(), "runbook.yaml")


def test_what_a_sound_one_compiles_to() -> None:
    book = load(
        """\
version: 1
start: [{when: {kind: [run, tool]}, step: a}, b]
steps:
  a:
    title: stop it
    why: it goes on
    when: {writes: {at_least: 1, at_most: 5}, acked: false}
    until: [{contained: true}, {calls: 0}]
    show: cords
    run: pullcord halt run {run} --reason {text}
    next: b
  b: {title: look, why: to see}
""",
        "runbook.yaml",
    )
    assert book.start == (
        Branch("a", Condition(((Asked("kind", ("run", "tool")),),))),
        Branch("b"),
    )
    step = book.steps["a"]
    assert step.when == Condition(((Asked("writes", (), 1, 5), Asked("acked", (False,))),))
    assert step.until == Condition(((Asked("contained", (True,)),), (Asked("calls", (), 0, 0),)))
    assert str(step.when) == "writes is at least 1 and at most 5 and acked is false"
    assert str(step.until) == "contained is true, or calls is 0"
    assert (step.show, step.next) == (("cords",), (Branch("b"),))
    assert step.run == ("pullcord", "halt", "run", "{run}", "--reason", "{text}")


def test_commands_are_checked_by_whoever_knows_them() -> None:
    text = "version: 1\nstart: a\nsteps:\n  a: {title: t, why: w, run: pullcord hlat global}\n"
    with pytest.raises(MistakenFileError, match=r"^r:4:30: no hlat$"):
        load(text, "r", lambda words: f"no {words[0]}")


def test_more_steps_than_anybody_walks_are_refused() -> None:
    steps = "".join(f"  s{n}: {{title: t, why: w, next: s{n + 1}}}\n" for n in range(STEPS_MAX))
    last = f"  s{STEPS_MAX}: {{title: t, why: w}}\n"
    with pytest.raises(MistakenFileError, match="'steps'"):
        load(f"version: 1\nstart: s0\nsteps:\n{steps}{last}", "runbook.yaml")
