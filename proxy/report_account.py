"""How the report of an incident begins: what happened in a paragraph, its facts, why it began.
Pure. Each sentence carries the command that shows what it stands on, and the calls it is about.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ledger.open_incidents import OPEN
from ledger.states import CallState
from proxy.report_parts import Cell, Command, Part, Ref, Said, Table, counted

Facts = dict[str, Any]


def show_command(facts: Facts) -> str:
    """What shows the incident itself."""
    return f"pullcord incident show {facts['incident']['id']}"


def summary(facts: Facts) -> Iterator[Said]:
    """The whole of it in a paragraph."""
    incident, scope, times = facts["incident"], facts["scope"], facts["times"]
    about = f"{incident['kind']} {incident['name']}"
    is_of = incident["tenant"] and incident["kind"] != "tenant"
    of = f" of tenant {incident['tenant']}" if is_of else ""
    who = incident["opened_by"] or f"the detector {incident['detector']}"
    yield Said(
        f"At {incident['opened']} {who} found that something was wrong with the {about}{of}: "
        f"\u201c{incident['why']}\u201d.",
        show_command(facts),
        _some(facts["trigger"]["calls"]),
    )
    calls = scope["calls"]
    yield Said(
        f"From {scope['from']} to {scope['until'] or facts['made_at']} it asked for "
        f"{counted(calls['count'], 'call')}: {counted(calls['reads'], 'read')}, "
        f"{counted(calls['writes'], 'write')}, {counted(calls['models'], 'call')} to models; "
        f"it spent {scope['spend_usd']} USD.",
        scope["command"],
    )
    for one in scope["writes"]["by_state"]:
        if one["count"] and one["state"] in _WRITTEN:
            yield Said(
                f"{counted(one['count'], 'write')} {_WRITTEN[one['state']]}.", one["command"]
            )
    yield from _after(facts)
    if times["recovered"]:
        yield Said(
            f"The last of its cords was released at {times['recovered']}.", show_command(facts)
        )
    if incident["state"] == OPEN:
        yield Said("It is open.", show_command(facts))
    else:
        yield Said(
            f"It was closed at {incident['closed']} by {incident['closed_by']}: "
            f"\u201c{incident['closed_because']}\u201d.",
            show_command(facts),
        )


_WRITTEN = {
    CallState.DONE: "reached the world",
    CallState.UNKNOWN: "may have reached it; nobody knows yet",
    CallState.PENDING: "on the way when this was made",
    CallState.REPLAYED: "asked for again, and answered from the record; nothing was sent",
    CallState.REFUSED: "refused",
    CallState.HELD: "held for a person",
    CallState.NOT_SENT: "not sent",
}


def _after(facts: Facts) -> Iterator[Said]:
    after, whole = facts["scope"]["after_cord"], facts["scope"]["after_all"]
    if after is None:
        yield Said("No cord was pulled for it.", show_command(facts))
        return
    yield Said(
        f"{after['cord']} was the first to be pulled, at {after['pulled_at']}; after it "
        f"{counted(after['admitted'], 'write')} that it covers were let through.",
        after["command"],
    )
    if whole is None:
        yield Said("Nothing stopped it: a throttle lets some pass.", show_command(facts))
        return
    how = "stopped all of it" if whole["contained"] else "was the last and did not stop all of it"
    yield Said(
        f"{whole['cord']}, pulled at {whole['pulled_at']}, {how}: after it "
        f"{counted(whole['admitted'], 'write')} of the whole incident were let through.",
        whole["command"],
    )


def at_a_glance(facts: Facts) -> Iterator[Part]:
    """Severity, owner, times, what stands."""
    incident, times, scope = facts["incident"], facts["times"], facts["scope"]
    cords = ", ".join(
        f"{one['level']} {one['scope']} {one['subject']}" for one in facts["standing"]
    )
    rows: list[tuple[Cell, ...]] = [
        ("incident", incident["id"], None),
        ("state", incident["state"], None),
        ("severity", incident["severity"], None),
        ("owner", incident["owner"] or "nobody", None),
        ("acknowledged", _by(incident["acked"], incident["acked_by"]), None),
        ("time to detect", _took(times["detect_seconds"]), None),
        ("time to contain", _took(times["contain_seconds"]), None),
        ("time to recover", _took(times["recover_seconds"]), None),
        ("first bad call", times["first_bad"], _first(facts)),
        ("detected", times["detected"], None),
        ("first cord pulled", times["first_cord"] or "none", None),
        ("contained", times["contained"] or "not yet", None),
        ("recovered", times["recovered"] or "not yet", None),
        _let_through("writes that passed the first cord over them", scope["after_cord"]),
        _let_through("writes of all of it after it was contained", scope["after_all"]),
        ("cords that stand", cords or "none", Command("pullcord status")),
        ("regression test", _proof(incident), None),
    ]
    yield Said(
        "The record shows it, each time counted from the first bad call.", show_command(facts)
    )
    yield Table("Facts of the incident", ("what", "value", "shown by"), tuple(rows))


def _let_through(what: str, after: Facts | None) -> tuple[Cell, ...]:
    if after is None:
        return what, "nothing was stopped", None
    kept = after.get("contained", True)
    return (
        what,
        str(after["admitted"]) if kept else f"not contained: {after['admitted']} after the last",
        Command(after["command"]),
    )


def _first(facts: Facts) -> Cell:
    found = facts["scope"]["first_bad_call"]
    return None if found is None else Ref(found["id"])


def _proof(incident: Facts) -> str:
    if incident["proof"]:
        return f"proven, {incident['proof'][:16]}"
    return f"waived: {incident['waived']}" if incident["waived"] else "none yet"


def _by(at: str | None, who: str | None) -> str:
    return f"{at} by {who}" if at else "not yet"


def _took(amount: float | None) -> str:
    if amount is None:
        return "not known yet"
    if abs(amount) < 60:
        return f"{amount:g} s"
    minutes, rest = divmod(round(amount), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"


def trigger(facts: Facts) -> Iterator[Part]:
    """Why it began."""
    told, incident = facts["trigger"], facts["incident"]
    finding = told["finding"]
    if told["opened_by"]:
        yield Said(f"{told['opened_by']} opened it by hand.", show_command(facts))
    if finding is not None:
        kind = "fired" if finding["type"].endswith("tripped") else "alerted"
        yield Said(
            f"{finding['actor']} {kind} at {finding['at']}: \u201c{finding['detail']}\u201d.",
            show_command(facts),
            _some([finding["id"]] if finding["id"] else []),
        )
    if told["first_call"]:
        yield Said(
            "The first call that convinced it:",
            f"pullcord ledger show {told['first_call']}",
            (told["first_call"],),
        )
    if told["calls"]:
        yield Said(
            f"{counted(len(told['calls']), 'call')} convinced the detectors; the newest of them:",
            show_command(facts),
            _some(told["calls"]),
        )
    release = incident["release"]
    if release:
        yield Said(
            f"The release was {release}, the tool {incident['tool'] or 'unknown'}, the agent "
            f"{incident['agent'] or 'unknown'}.",
            show_command(facts),
        )
    if told["cord"]:
        yield Said(f"What was pulled for it last: {told['cord']}.", "pullcord status")


def _some(calls: Sequence[str]) -> tuple[str, ...]:
    """What fits behind a sentence: the newest."""
    return tuple(calls[-8:])
