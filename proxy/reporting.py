"""What is in the report of an incident: the facts, as JSON, from the record and the trace alone.

On connections that cannot write. How they are said is in report_sentences.py, how they look in
report_html.py and report_markdown.py. All text of calls is masked before it gets here.
"""

from datetime import datetime
from typing import Any

from ledger import incident_calls, incident_reads, incident_scope, queries
from ledger.containment import snapshot
from ledger.filters import Filter, parse
from ledger.incident_acts import PUBLIC
from ledger.incident_timeline import milestones, timeline
from ledger.open_incidents import Incident
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies.policy import Policy
from proxy import incidents, operations, report_actions, report_chart, report_decisions
from proxy.report_parts import cut
from proxy.scoping import scope
from proxy.traces import Traces

TITLE_MAX = 200  # characters
TIMELINE_MAX = 400  # rows; the record has the others
CALLS_MAX = 300  # of the appendix
WRITES_MAX = 150  # of these, first writes that were let through

Answer = dict[str, Any]


def report(
    reader: sqlite3.Connection,
    traces: Traces,
    incident: Incident,
    policy: Policy | None,
    now_us: int,
) -> Answer:
    """All of it, of one moment. `policy` is the one in force. Raises LedgerError."""
    with snapshot(reader):
        return _report(reader, traces, incident, policy, now_us)


def _report(
    reader: sqlite3.Connection,
    traces: Traces,
    incident: Incident,
    policy: Policy | None,
    now_us: int,
) -> Answer:
    chosen = parse(incident_scope.terms(incident), now_us)
    told = scope(reader, incident, policy)
    own = incident_reads.rows_of(reader, incident)
    pulled = incident_reads.cords_of(reader, incident)
    standing = [cord for cord in queries.pulls(reader) if cord.rule in pulled]
    first_bad = told["first_bad_call"]
    facts: Answer = {
        "title": _title(incident),
        "made_at": operations.timestamp(now_us),
        "incident": incidents.as_json(incident),
        "times": incidents.turned(milestones(reader, incident)),
        "trigger": _trigger(incident, own),
        "scope": told,
        "standing": [operations.pull_as_json(cord) for cord in standing],
        "timeline": timeline(reader, incident, TIMELINE_MAX),
        "undo": incident_calls.undoing(reader, incident.id),
        "notes": [row for row in own if _is_public(row)],
        "notified": [row for row in own if row["type"] == EventType.INCIDENT_NOTIFIED],
        "decisions": report_decisions.decisions(
            reader,
            traces,
            report_decisions.chosen(
                first_bad["id"] if first_bad else "",
                incident.evidence,
                incident_calls.first_writes(reader, chosen, report_decisions.DECISIONS_MAX),
            ),
        ),
    }
    facts["chart"] = _chart(reader, chosen, facts)
    facts["actions"] = report_actions.actions(facts, policy)
    facts["calls"] = _calls(reader, chosen, facts)
    return facts


def _title(incident: Incident) -> str:
    of = f" of tenant {incident.tenant}" if incident.tenant and incident.kind != "tenant" else ""
    return cut(f"Incident report: {incident.kind} {incident.name}{of}: {incident.why}", TITLE_MAX)


def _trigger(incident: Incident, rows: list[queries.Row]) -> Answer:
    """Why it began: what was found first, over which call, and what was pulled for it."""
    kinds = (EventType.DETECTOR_TRIPPED, EventType.DETECTOR_ALERTED)
    first = next((row for row in rows if row["type"] in kinds), None)
    return {
        "detector": incident.detector or None,
        "opened_by": incident.opened_by or None,
        "why": incident.why,
        "finding": first,
        "first_call": incident.first_call or None,
        "calls": list(incident.evidence),
        "cord": incident.rule or None,
    }


def _is_public(row: queries.Row) -> bool:
    return bool(row["type"] == EventType.INCIDENT_NOTED and row["rule"] == PUBLIC)


def _chart(reader: sqlite3.Connection, chosen: Filter, facts: Answer) -> Answer | None:
    """The figures of the chart; None where no call belongs to the incident."""
    span = incident_calls.span(reader, chosen)
    if span is None:
        return None
    marks = _marks(facts)
    pulled = [mark["at_us"] for mark in marks if mark["kind"] == "pulled"]
    focus_us = max([span.last_allowed_us or span.first_us, *pulled[:1]])
    moved = [mark["at_us"] for mark in marks if mark["kind"] != "other"]
    last_us = max([span.last_us, *moved])
    start_us, width_us = report_chart.window(span.first_us, focus_us, last_us)
    found = incident_calls.slots(reader, chosen, start_us, width_us, report_chart.SLOTS)
    lanes, before, after = report_chart.lanes(found)
    marks = _merged([*marks, *_releases(found, start_us, width_us)])
    return {
        "start_us": start_us,
        "width_us": width_us,
        "lanes": [{"name": one.name, "kind": one.kind, "figures": one.figures} for one in lanes],
        "marks": marks[: report_chart.MARKS_MAX],
        "before": before,
        "after": after,
    }


_MARKED = {
    EventType.PULLED: ("pulled", "pulled {}"),
    EventType.PULLED_AGAIN: ("pulled", "pulled {} again"),
    EventType.RELEASED: ("released", "released {}"),
    EventType.NARROWED: ("released", "narrowed {}"),
    EventType.INCIDENT_OPENED: ("other", "the incident was opened"),
    EventType.INCIDENT_CLOSED: ("other", "the incident was closed"),
}


def _marks(facts: Answer) -> list[Answer]:
    found = []
    for row in facts["timeline"]:
        if row["type"] in _MARKED:
            kind, words = _MARKED[EventType(row["type"])]
            text = words.format(row["rule"] or "")
            found.append({"at_us": _us(row["at"]), "kind": kind, "text": text, "seq": row["seq"]})
    for name, text in (("first_bad", "the first bad call"), ("detected", "detected")):
        if facts["times"][name]:
            at_us = _us(facts["times"][name])
            found.append({"at_us": at_us, "kind": "other", "text": text, "seq": None})
    return found


_KINDS = ("pulled", "released", "other")


def _merged(marks: list[Answer]) -> list[Answer]:
    """In order; what happened in one moment is one mark."""
    found: dict[int, Answer] = {}
    for mark in sorted(marks, key=lambda mark: (mark["at_us"], _KINDS.index(mark["kind"]))):
        first = found.setdefault(mark["at_us"], {**mark, "text": ""})
        first["text"] += f"; {mark['text']}" if first["text"] else mark["text"]
    return list(found.values())


def _releases(slots: list[queries.Row], start_us: int, width_us: int) -> list[Answer]:
    """Where several releases called: from when on each did."""
    first: dict[str, int] = {}
    for row in slots:
        if row["release"] and 0 <= row["slot"] < report_chart.SLOTS:
            first.setdefault(row["release"], row["slot"])
    if len(first) < 2:
        return []
    return [
        {
            "at_us": start_us + slot * width_us,
            "kind": "other",
            "text": f"release {release} calls",
            "seq": None,
        }
        for release, slot in first.items()
    ]


def _us(at: str) -> int:
    return round(datetime.fromisoformat(at).timestamp() * 1_000) * 1_000


def _calls(reader: sqlite3.Connection, chosen: Filter, facts: Answer) -> list[queries.Row]:
    """The calls of the appendix, what matters most first: those that the report is about, then
    writes, then the newest."""
    wanted = dict.fromkeys(mentioned(facts))
    wanted |= dict.fromkeys(incident_calls.first_writes(reader, chosen, WRITES_MAX))
    if len(wanted) < CALLS_MAX:
        wanted |= dict.fromkeys(incident_calls.newest(reader, chosen, CALLS_MAX))
    found = incident_calls.by_id(reader, list(wanted)[:CALLS_MAX])
    return [found[one] for one in wanted if one in found]


def mentioned(facts: Answer) -> list[str]:
    """The calls that are named anywhere in the report, what matters most first."""
    first_bad = facts["scope"]["first_bad_call"]
    found = [first_bad["id"]] if first_bad else []
    found += [facts["incident"]["first_call"], *facts["trigger"]["calls"]]
    for one in facts["decisions"]:
        found += [one["call"]["id"], one["model_call"]]
    for one in facts["undo"]:
        found += [one["id"], one["undoes"]]
    found += [row["id"] for row in facts["timeline"]]
    return [one for one in dict.fromkeys(found) if one]
