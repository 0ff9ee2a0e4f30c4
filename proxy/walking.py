"""A whole walk through the runbook: each step of an incident with what the ledger shows for it and
its command filled in. From the record only, whether a proxy runs or not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ledger import incident_reads, queries
from ledger.filters import parse
from ledger.incidents import about_words
from ledger.open_incidents import Incident
from ledger.sqlite import sqlite3
from ledger.states import CallState
from policies import runbook
from policies.policy import Policy
from policies.runbook import Book, Value, Walked
from policies.verdict import Pull
from proxy import operations, scoping
from proxy.runbook import facts, places, release_word, standing_over, told

NAMES_SHOWN_MAX = 5  # of runs, tools and so on; the command behind them names all

Answer = dict[str, Any]


class Shown(NamedTuple):
    """One line of evidence, and the command that tells more; empty for none."""

    shows: str
    said: str
    command: str


@dataclass(frozen=True, slots=True)
class Page:
    """A step. `command` is for a person to type, empty where there is none; `gaps` are the places
    in it for which nothing is known."""

    walked: Walked
    command: str
    gaps: tuple[str, ...]
    evidence: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A walk as it is now. `places` are the values that fill the commands."""

    incident: Incident
    facts: runbook.Facts
    places: dict[str, str]
    pages: tuple[Page, ...]

    @property
    def to_do(self) -> Page | None:
        step = runbook.to_do(page.walked for page in self.pages)
        return next((page for page in self.pages if page.walked is step), None)


def look(
    reader: sqlite3.Connection, incident: Incident, book: Book, policy: Policy | None
) -> Sheet:
    """Raises LedgerUnavailable. Without a policy nobody knows what can be undone."""
    cords = standing_over(reader, incident, policy)
    scope = scoping.scope(reader, incident, policy)
    case = _Case(incident, cords, scope, policy)
    known = {**facts(incident, cords, policy), **_counted(scope, cords, policy)}
    filled = {**places(incident), **_calls(reader, scope)}
    recorded = told(incident_reads.rows_of(reader, incident))
    pages = [
        Page(
            walked,
            runbook.command(walked.step.run, filled),
            tuple(runbook.missing(walked.step.run, filled)),
            tuple(line for shows in walked.step.show for line in _EVIDENCE[shows](case)),
        )
        for walked in runbook.walk(book, known, recorded)
    ]
    return Sheet(incident, known, filled, tuple(pages))


def as_json(sheet: Sheet) -> list[Answer]:
    """One for each step, in order."""
    to_do = sheet.to_do
    return [
        {
            "incident": sheet.incident.id,
            "step": page.walked.step.name,
            "title": page.walked.step.title,
            "why": page.walked.step.why,
            "state": page.walked.state.value,
            "certain": page.walked.is_certain,
            "next": page is to_do,
            "by": page.walked.told and page.walked.told.actor,
            "at": page.walked.told and page.walked.told.at,
            "text": page.walked.told and page.walked.told.text,
            "evidence": [line._asdict() for line in page.evidence],
            "command": page.command or None,
            "gaps": list(page.gaps),
        }
        for page in sheet.pages
    ]


# ---------------------------------------------------------------------------------- facts


def _counted(
    scope: Answer, cords: Sequence[Pull], policy: Policy | None
) -> dict[str, Value | None]:
    states = {row["state"]: row["count"] for row in scope["writes"]["by_state"]}
    kinds = {
        row["reversibility"]: row["done"] + row["unknown"]
        for row in scope["writes"]["by_reversibility"]
    }
    may_have = (CallState.DONE, CallState.UNKNOWN, CallState.PENDING)
    found: dict[str, Value | None] = {
        "effects_after_pull": _passed(scope, cords),
        "calls": scope["calls"]["count"],
        "writes": sum(states.get(state, 0) for state in may_have),
        "unknown_writes": states.get(CallState.UNKNOWN, 0),
        "runs_affected": scope["runs"]["count"],
        "tenants_affected": scope["tenants"]["count"],
        "undone_writes": scope["undo"]["undone"],
        "left_to_undo": scope["undo"]["left"],
        "told_tenants": scope["told"]["tenants"],
        "left_to_tell": scope["told"]["left"],
        "release": None if policy is None else _release(scope, policy),
    }
    words = ("reversible", "compensable", "irreversible")
    for word, kind in (*zip(words, words, strict=True), ("undeclared", "unknown")):
        found[f"{word}_writes"] = None if policy is None else kinds.get(kind, 0)
    return found


def _passed(scope: Answer, cords: Sequence[Pull]) -> int | None:
    """The writes that passed a cord over them, or came after all of its cords. A throttle lets some
    pass."""
    whole = scope["after_all"]
    if whole is not None:
        return max(int(one["admitted"]) for one in (*scope["cords"], whole))
    return None if cords else 0  # since when a cord of the policy stands is not in the record


def _release(scope: Answer, policy: Policy) -> str:
    names = scope["releases"]["names"]
    is_cut = scope["releases"]["count"] > len(names)
    return "other" if is_cut else release_word(names, policy)


def _calls(reader: sqlite3.Connection, scope: Answer) -> dict[str, str]:
    """The calls that a command may name, as far as there are any."""
    found = {}
    if scope["first_bad_call"] is not None:
        found["call"] = scope["first_bad_call"]["id"]
    filters = (*scope["filter"], "effect:write", "state:unknown")
    unknown = next(queries.calls(reader, parse(filters, 0), 1), None)
    if unknown is not None:
        found["unknown_call"] = unknown["id"]
    return found


# ---------------------------------------------------------------------------------- evidence


@dataclass(frozen=True, slots=True)
class _Case:
    incident: Incident
    cords: Sequence[Pull]
    scope: Answer
    policy: Policy | None


def _incident(case: _Case) -> Iterator[Shown]:
    one = case.incident
    found_by = f"by the detector {one.detector}" if one.detector else f"by {one.opened_by}"
    seen = f"; {one.acked_by} has seen it" if one.acked_by else "; nobody has taken it yet"
    since = operations.timestamp(one.opened_us)
    said = f"{about_words(one)}: {one.why}, {found_by}, open since {since}{seen}"
    yield Shown("incident", said, f"pullcord incident show {one.id}")


def _cords(case: _Case) -> Iterator[Shown]:
    if not case.cords:
        yield Shown("cords", "nothing stands over it", "pullcord status")
    for cord in case.cords:
        but = f", but for {', '.join(cord.but_releases)}" if cord.but_releases else ""
        said = f"{operations.described(cord)} stands, by {cord.actor}{but}"
        yield Shown("cords", said, operations.undo_command(cord))
    for after in case.scope["cords"]:
        said = f"{_many(after['admitted'], 'write')} let through after {after['cord']} was pulled"
        yield Shown("cords", f"{said}, of what it covers", after["command"])
    whole = case.scope["after_all"]
    if whole is not None:
        how = "all of it was contained by" if whole["contained"] else "it went on after"
        said = f"{how} {whole['cord']}; {_many(whole['admitted'], 'write')} let through after that"
        yield Shown("cords", said, whole["command"])


def _made(case: _Case) -> Iterator[Shown]:
    calls, spend = case.scope["calls"], case.scope["spend_usd"]
    said = (
        f"{_many(calls['count'], 'call')}: {_many(calls['reads'], 'read')}, "
        f"{_many(calls['writes'], 'write')}, {_many(calls['models'], 'model call')}; {spend} USD"
    )
    yield Shown("calls", said, calls["command"])


def _affected(case: _Case) -> Iterator[Shown]:
    for what in ("tenants", "runs", "tools", "destinations"):
        yield _named("affected", what, case.scope[what])


def _named(shows: str, what: str, told: Answer) -> Shown:
    names = ", ".join(told["names"][:NAMES_SHOWN_MAX])
    more = ", ..." if told["count"] > NAMES_SHOWN_MAX else ""
    said = _many(told["count"], what.removesuffix("s")) + (f": {names}{more}" if names else "")
    return Shown(shows, said, told["command"])


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _first_bad_call(case: _Case) -> Iterator[Shown]:
    call = case.scope["first_bad_call"]
    if call is None:
        yield Shown("first_bad_call", "the first bad call is not in the ledger", "")
        return
    where = f"{call['method']} {call['host']}{call['path'] or ''}"
    said = f"first bad call: {call['at']} run {call['run']}, {call['tool']}, {where}"
    yield Shown("first_bad_call", said, f"pullcord ledger show {call['id']}")


def _writes(case: _Case) -> Iterator[Shown]:
    rows = [row for row in case.scope["writes"]["by_state"] if row["count"]]
    for row in rows:
        yield Shown("writes", f"{_many(row['count'], 'write')} {row['state']}", row["command"])
    if not rows:
        yield Shown("writes", "no write", "")


def _reversibility(case: _Case) -> Iterator[Shown]:
    if case.policy is None:
        yield Shown("reversibility", "the policy cannot be read, so nobody knows", "")
        return
    rows = case.scope["writes"]["by_reversibility"]
    for row in rows:
        kind = _KINDS.get(row["reversibility"], row["reversibility"])
        tools = ", ".join(row["tools"][:NAMES_SHOWN_MAX])
        done, unknown = _many(row["done"], "write"), row["unknown"]
        said = f"{kind}: {done} done, {unknown} of unknown outcome ({tools})"
        yield Shown("reversibility", said, row["command"])
    if not rows:
        yield Shown("reversibility", "no write was made", "")


def _value_at_risk(case: _Case) -> Iterator[Shown]:
    for row in case.scope["value_at_risk"]:
        unread = f", {row['unreadable']} without an amount" if row["unreadable"] else ""
        currency = row["currency"] or "(no currency told)"
        said = f"at risk: {row['amount']} {currency} in {_many(row['writes'], 'write')}{unread}"
        said += f"; left: {row['left_amount']} in {_many(row['left_writes'], 'write')}"
        yield Shown("value_at_risk", said, row.get("command", ""))


def _prevented(case: _Case) -> Iterator[Shown]:
    for row in case.scope["prevented"]:
        said = f"prevented: {_many(row['count'], 'call')}, {row['reason']}"
        yield Shown("prevented", said, row["command"])


def _undone(case: _Case) -> Iterator[Shown]:
    undo = case.scope["undo"]
    left = "nobody knows how many are left" if undo["left"] is None else f"{undo['left']} left"
    declined = f"; {undo['declined']} did nothing: the tool declined" if undo["declined"] else ""
    said = f"undone: {_many(undo['undone'], 'write')}, {left}{declined}"
    yield Shown("undone", said, undo["command"])


def _messages(case: _Case) -> Iterator[Shown]:
    sent = case.scope["told"]
    names = ", ".join(sent["names_left"][:NAMES_SHOWN_MAX])
    more = ", ..." if sent["left"] > NAMES_SHOWN_MAX else ""
    left = f"{sent['left']} left" + (f": {names}{more}" if names else "")
    yield Shown("told", f"told: {_many(sent['tenants'], 'tenant')}, {left}", sent["command"])


def _releases(case: _Case) -> Iterator[Shown]:
    yield _named("releases", "releases", case.scope["releases"])
    if case.policy is None:
        said = "the policy cannot be read, so no release is known to be good"
    else:
        good = ", ".join(sorted(case.policy.known_good)) or "none yet"
        said = f"known to be good: {good}"
    yield Shown("releases", said, "")


def _test(case: _Case) -> Iterator[Shown]:
    one = case.incident
    if one.proof:
        said = f"its regression test is proven: {one.proof}"
    elif one.waived:
        said = f"it goes without a regression test: {one.waived}"
    else:
        said = "no regression test is proven yet"
    yield Shown("test", said, "")


_KINDS = {"unknown": "the policy does not say"}
_EVIDENCE: dict[str, Callable[[_Case], Iterator[Shown]]] = {
    "incident": _incident,
    "cords": _cords,
    "calls": _made,
    "affected": _affected,
    "first_bad_call": _first_bad_call,
    "writes": _writes,
    "reversibility": _reversibility,
    "value_at_risk": _value_at_risk,
    "prevented": _prevented,
    "undone": _undone,
    "told": _messages,
    "releases": _releases,
    "test": _test,
}
