"""What is said about cords: pulled with its proof, released, what would stop, what will flow."""

import shlex
from pathlib import Path
from typing import Any

from proxy.cli.reading import Cord, preview, told_cord
from proxy.cli.terminal import Failure, counted, escaped, loud, say, warn
from proxy.control_client import Refused

DONE = {"halt": "halted", "freeze": "froze writes of"}
STOPS = {"halt": "halt", "freeze": "freeze writes of"}
FLOWS = {"halt": "calls", "freeze": "writes"}
UNDONE = {"halt": "resumed", "freeze": "thawed"}
IDS_SHOWN_MAX = 5

Answer = dict[str, Any]
"""As proxy/pulling.py gives it."""


def say_pulled(answer: Answer) -> None:
    """One line: what was done, what was cut, which of it may have happened all the same."""
    cord = answer["pulled"]
    until = f" until {cord['until']}" if cord["until"] else ""
    if answer["changed"]:
        done = f"{loud(DONE[cord['level']])} {_what(cord)}{until}"
    else:
        done = f"stood already: {told_cord(cord)}"
    if "file" in answer:
        say(f"{done} by the file {escaped(answer['file'])}, because {escaped(answer['why'])}")
        if answer["next"]:
            say(f"next: {escaped(answer['next'])}")
        return
    say(f"{done}{_cut(answer)}")
    if answer["killed"]:
        pids = ", ".join(map(str, answer["killed"]))
        why = "that nobody decides for" if "recovered" in answer else "that did not acknowledge"
        say(loud(f"killed {counted(len(answer['killed']), 'engine')} {why} (pid {pids})"))
    if answer.get("recovered"):
        open_calls = counted(answer["recovered"], "call")
        say(f"{open_calls} of the proxy that ended: outcome unknown; {_query(cord)}")


def say_proof(answer: Answer) -> None:
    """The proof from the record, and how to undo it."""
    proof = answer["proof"]
    if proof is not None:
        at = proof["at"].partition("T")[2] if answer["changed"] else proof["at"]
        engines = ""
        if answer["acknowledged"]:
            engines = f"; {counted(answer['acknowledged'], 'engine')} acknowledged"
            engines += f" in {answer['acknowledged_ms']} ms"
        say(f"proof: {proof['admitted_after']} effects admitted after {at}{engines}")
        if proof["still_open"] and answer["pulled"]["level"] == "halt":
            say(loud(f"still open: {_ids(proof['still_open'], answer['pulled'])}"))
    elif "file" not in answer:
        warn("the proof cannot be read from the ledger now; look again: pullcord status")
    say(f"undo: {escaped(answer['undo'])}")


def would_stop(blast: Answer) -> str:
    """The blast radius on one line."""
    runs = counted(len(blast["runs"]), "active run")
    if blast["level"] == "halt":
        flying = f"{counted(blast['calls'], 'call')} in flight cut"
        flying += f" ({counted(blast['writes'], 'write')})"
    else:
        flying = f"{counted(blast['writes'], 'write')} in flight would still end by itself"
    return f"would {STOPS[blast['level']]} {_what(blast)}: {runs}, {flying}"


def say_what_flows(
    data: Path, cords: list[Cord], name: tuple[str, str, str], releases: tuple[str, ...]
) -> None:
    """What will flow again, shown before it does."""
    level, scope, subject = name
    mine = [cord for cord in cords if not cord["actor"].startswith("policy:")]
    this = [cord for cord in mine if (cord["level"], cord["scope"], cord["subject"]) == name]
    if not this:
        return  # there is nothing to lift, and the answer will say so
    lifts = "narrowing" if releases else "lifting"
    refused = this[0]["blocked"]
    by_it = "" if refused is None else f"; {counted(refused, 'call')} refused by it"
    say(f"{lifts} {told_cord(this[0])}{by_it}")
    what = escaped(f"of {scope} {subject}" if subject else "of everything")
    if releases:
        what += f" by {_releases(releases)}"
    others = [cord for cord in cords if cord not in this]
    still = ", but these still stand:" if others else ""
    say(f"{FLOWS[level]} {what} will flow again{_active(data, name)}{still}")
    for cord in others:
        say(f"  {told_cord(cord)}")


def _active(data: Path, name: tuple[str, str, str]) -> str:
    """The runs that wait for it. What cannot be counted must not keep anybody from releasing."""
    from ledger.errors import LedgerError

    try:
        return f" ({counted(len(preview(data, *name)['runs']), 'active run')})"
    except (Failure, LedgerError, Refused):
        return ""


def say_released(answer: Answer) -> None:
    cord = answer["released"]
    done = f"{UNDONE[cord['level']]} {_what(cord)}"
    if answer["narrowed_to"]:
        done += f" for {_releases(answer['narrowed_to'])} only; for all else it stands"
    say(done)
    if answer["still"] is not None:
        say(f"still stands: {told_cord(answer['still'])}")
    if "warning" in answer:
        warn(answer["warning"])


def _cut(answer: Answer) -> str:
    cord, proof = answer["pulled"], answer["proof"]
    if cord["level"] != "halt":
        going = len(proof["still_open"]) if proof else 0
        return f"; {counted(going, 'write')} in flight ends by itself" if going else ""
    cut = f"; {counted(answer['cut'], 'call')} cut"
    if answer["cut"] or answer["killed"]:
        unknown = proof["unknown_writes"] if proof else []
        if unknown:
            writes = counted(len(unknown), "write")
            cut += f" ({writes}: outcome unknown: {_ids(unknown, cord)})"
    return cut


def _ids(calls: list[str], cord: Cord) -> str:
    shown = ", ".join(calls[:IDS_SHOWN_MAX])
    more = len(calls) - IDS_SHOWN_MAX
    return f"{shown} and {more} more: {_query(cord)}" if more > 0 else shown


def _query(cord: Cord) -> str:
    named = f"{shlex.quote(f'{cord["scope"]}:{cord["subject"]}')} " if cord["subject"] else ""
    return f"pullcord ledger query {escaped(named)}state:unknown since:1h"


def _what(cord: Cord) -> str:
    return escaped(f"{cord['scope']} {cord['subject']}" if cord["subject"] else "everything")


def _releases(releases: tuple[str, ...] | list[str]) -> str:
    return escaped(f"release{'s' if len(releases) > 1 else ''} {', '.join(releases)}")
