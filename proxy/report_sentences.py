"""The report in words: its facts (reporting.py) as sections of sentences and tables. Pure.

Each sentence carries the command that shows what it stands on, and the calls it is about. How much
is shown is a matter of room; what is left out is told. Its beginning is in report_account.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ledger.compensation import undid
from proxy.report_account import at_a_glance, show_command, summary, trigger
from proxy.report_chart import Chart, Lane, Mark, figure, seconds
from proxy.report_parts import (
    Appendix,
    Command,
    Document,
    Heading,
    Paragraph,
    Part,
    Picture,
    Ref,
    Said,
    Section,
    Table,
    Words,
    counted,
    cut,
)
from proxy.report_scope import scope_parts

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Room:
    """How many calls the appendix has, how many rows a timeline, and how many characters what a
    model said and a cell of a table."""

    calls: int
    rows: int
    word_characters: int
    cell_characters: int


ROOMS = (Room(300, 200, 3_000, 120), Room(120, 80, 1_000, 80), Room(40, 30, 300, 40))
"""From the most to the least."""


def document(facts: Facts, room: Room = ROOMS[0]) -> Document:
    """The whole report."""
    shown = _appendix_rows(facts, room)
    numbers = {row["id"]: number for number, row in enumerate(shown, 1)}
    sections = (
        Section("Summary", (Paragraph(tuple(summary(facts))),)),
        Section("At a glance", tuple(at_a_glance(facts))),
        Section("Root trigger", tuple(trigger(facts))),
        Section("Scope", tuple(scope_parts(facts["scope"]))),
        Section("Chart", tuple(_chart(facts))),
        Section("Timeline", tuple(_timeline(facts, room))),
        Section("Decisions", tuple(_decisions(facts, room))),
        Section("Undo", tuple(_undo(facts, room))),
        Section("Notes", tuple(_notes(facts, room))),
        Section("Action items", tuple(_actions(facts))),
        Section("Appendix of calls", tuple(_appendix(facts, shown))),
    )
    return Document(facts["title"], sections, numbers, room.cell_characters)


# ---------------------------------------------------------------------------------- over time


def _chart(facts: Facts) -> Iterator[Part]:
    told = facts["chart"]
    if told is None:
        yield Said("No call belongs to it.", facts["scope"]["command"])
        return
    chart = Chart(
        told["start_us"],
        told["width_us"],
        tuple(Lane(one["name"], one["kind"], tuple(one["figures"])) for one in told["lanes"]),
        tuple(Mark(one["at_us"], one["kind"], one["text"]) for one in told["marks"]),
        told["before"],
        told["after"],
    )
    yield Picture(chart)
    fine = chart.width_us < 1_000_000
    marks = tuple(
        (number, seconds(mark.at_us, fine=True), mark.text + _outside(chart, mark))
        for number, mark in enumerate(chart.marks, 1)
    )
    yield Table("Marks of the chart", ("mark", "at", "what"), marks)
    slots = tuple(
        (
            seconds(chart.start_us + slot * chart.width_us, fine=fine),
            *(figure(lane, lane.figures[slot]) for lane in chart.lanes),
        )
        for slot in range(len(chart.lanes[0].figures))
        if any(lane.figures[slot] for lane in chart.lanes)
    )
    titles = ("from", *(lane.name for lane in chart.lanes))
    yield Table(f"Figures of the chart, each {chart.width_us / 1e6:g} s", titles, slots)
    for amount, where in ((chart.before, "before"), (chart.after, "after")):
        if amount:
            said = f"{counted(amount, 'call')} came {where} the time of the chart."
            yield Said(said, facts["scope"]["command"])


def _outside(chart: Chart, mark: Mark) -> str:
    return "" if chart.start_us <= mark.at_us <= chart.end_us else " (outside of the chart)"


def _timeline(facts: Facts, room: Room) -> Iterator[Part]:
    rows = facts["timeline"]
    shown = rows[-room.rows :]
    left = "" if len(shown) == len(rows) else f", the newest {len(shown)} of {len(rows)}"
    titles = ("row", "at", "what", "in words", "call", "run", "tool", "cord or rule", "by")
    found = tuple(
        (
            str(row["seq"]), row["at"], row["type"], row["detail"],
            Ref(row["id"]) if row["id"] else None, row["run"], row["tool"], row["rule"],
            row["actor"],
        )
        for row in shown
    )  # fmt: skip
    yield Said("The rows of the record that tell it, oldest first.", show_command(facts))
    yield Table(f"Rows of the record{left}", titles, found)


def _decisions(facts: Facts, room: Room) -> Iterator[Part]:
    found = facts["decisions"]
    if not found:
        yield Said("No call is named that could be looked at.", show_command(facts))
    told: set[str] = set()
    for one in found:
        row, model = one["call"], one["model_call"]
        name = row["tool"] or "no tool"
        yield Heading(f"{row['effect']} {name} at {row['at']},", row["id"])
        yield Said(
            f"Run {row['run']}, release {row['release'] or 'unknown'}; {row['decision']}, "
            f"{row['reason']}; {row['state']}.",
            f"pullcord ledger show {row['id']}",
        )
        yield from _model(one, model, model in told, room)
        if model:
            told.add(model)
        for title, text in (
            ("What was called", one.get("request", "")),
            ("With", one.get("arguments", "")),
            (
                "What was answered",
                "\n".join(filter(None, (one.get("response"), one.get("answer")))),
            ),
        ):
            if text:
                yield Words(title, _within(text, room))
        if one.get("note"):
            yield Said(f"Of the call: {one['note']}.", f"pullcord ledger show {row['id']}")


def _model(one: Facts, model: str | None, is_told: bool, room: Room) -> Iterator[Part]:
    if model is None:
        yield Said("No call of this run to a model before it is in the ledger.")
        return
    show = f"pullcord ledger show {model}"
    if is_told:
        yield Said("It came of the same answer of the model as above.", show, (model,))
        return
    yield Said("What the model was asked and answered before it:", show, (model,))
    for title, text in (("The model was asked", one["asked"]), ("It answered", one["answered"])):
        if text:
            yield Words(title, _within(text, room))
    if one["model_note"]:
        yield Said(f"Of the call to the model: {one['model_note']}.", show)


def _within(text: str, room: Room) -> str:
    return cut(text, room.word_characters)


# ---------------------------------------------------------------------------------- what was done


def _undo(facts: Facts, room: Room) -> Iterator[Part]:
    plan = f"pullcord incident compensate {facts['incident']['id']} --plan"
    rows = facts["undo"]
    if not rows:
        yield Said("No write was undone.", plan)
        return
    done = {row["undoes"] for row in rows if row["undoes"] and undid(row)}
    yield Said(
        f"{counted(len(rows), 'call')} to undo writes; {counted(len(done), 'write')} undone.",
        plan,
    )
    titles = ("write", "undone by", "at", "tool", "state", "status", "who")
    found = tuple(
        (
            Ref(row["undoes"]) if row["undoes"] else "not let through", Ref(row["id"]), row["at"],
            row["tool"], row["state"], row["status"] and str(row["status"]), row["actor"],
        )
        for row in rows[: room.rows]
    )  # fmt: skip
    yield Table("Writes that were undone", titles, found)


def _notes(facts: Facts, room: Room) -> Iterator[Part]:
    show = show_command(facts)
    if facts["notes"]:
        found = facts["notes"][-room.rows :]
        said = tuple((row["at"], row["actor"], row["detail"]) for row in found)
        yield Said("What was said in public.", show)
        yield Table("Public notes", ("at", "by", "said"), said)
    else:
        yield Said("Nobody has said anything in public.", show)
    if facts["notified"]:
        found = facts["notified"][-room.rows :]
        titles = ("at", "tenant", "contact", "by", "message")
        told = tuple(
            (row["at"], row["tenant"], row["rule"], row["actor"], row["detail"]) for row in found
        )
        yield Said("Who was told of it.", show)
        yield Table("Messages that arrived", titles, told)
    else:
        yield Said("No tenant was told of it.", show)


def _actions(facts: Facts) -> Iterator[Part]:
    found = tuple(
        (number, one["what"], Command(one["command"]))
        for number, one in enumerate(facts["actions"], 1)
    )
    if found:
        yield Table("What is left to do", ("item", "what", "type"), found)
    else:
        yield Said("Nothing is left to do, as far as the record tells.", show_command(facts))


def _appendix_rows(facts: Facts, room: Room) -> list[Facts]:
    """Those that matter most, the oldest first."""
    return sorted(facts["calls"][: room.calls], key=lambda row: (row["at"], row["id"]))


def _appendix(facts: Facts, shown: list[Facts]) -> Iterator[Part]:
    command = facts["scope"]["command"]
    count = facts["scope"]["calls"]["count"]
    yield Said(f"The incident has {counted(count, 'call')}.", command)
    yield Said(
        f"{counted(len(shown), 'call')} are shown: those that this report is about, with what led "
        "to them and what undid them, then the first writes and the newest calls."
    )
    titles = (
        *("call", "id", "at", "run", "release", "tool", "request", "effect", "verdict", "state"),
        "USD",
    )
    rows = tuple(
        (
            Ref(row["id"]), row["id"], row["at"], row["run"], row["release"], row["tool"],
            f"{row['method']} {row['host']}{row['path']}", row["effect"],
            f"{row['decision']}: {row['reason']}",
            row["state"] if row["status"] is None else f"{row['state']}, {row['status']}",
            None if not row["cost_usd"] else f"{row['cost_usd']:.6f}",
        )
        for row in shown
    )  # fmt: skip
    yield Appendix(Table("Calls", titles, rows))
