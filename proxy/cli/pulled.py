"""What is said about cords: pulled with its proof, released, what would stop, what will flow."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxy.cli.reading import Cord, preview, told_cord
from proxy.cli.terminal import Failure, counted, escaped, loud, say, warn
from proxy.control_client import Refused

DONE = {"halt": "halted", "freeze": "froze writes of", "throttle": "throttled"}
STOPS = {"halt": "halt", "freeze": "freeze writes of", "throttle": "throttle"}
FLOWS = {"halt": "calls", "freeze": "writes", "throttle": "calls"}
UNDONE = {"halt": "resumed", "freeze": "thawed", "throttle": "lifted the throttle of"}
IDS_SHOWN_MAX = 5

Answer = dict[str, Any]
"""As proxy/pulling.py gives it."""


@contextlib.contextmanager
def done(what: str) -> Iterator[None]:
    """Around words about an act: that nobody can read them does not make it fail."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            warn(f"{what}, but that cannot be written to stdout: {error.strerror}")
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for what it still wants to write


def say_pulled(answer: Answer) -> None:
    """What was done, what was cut, which of it may have happened all the same. First of all that no
    proxy runs, for then nothing is stopped by it yet."""
    cord = answer["pulled"]
    until = f" until {cord['until']}" if cord["until"] else ""
    if not answer.get("up", True):
        here = escaped(answer["data"])
        say(loud(f"NO PROXY RUNS HERE ({here}): recorded; it counts when one starts"))
    if answer["changed"]:
        said = f"{loud(DONE[cord['level']])} {_what(cord)}{until}"
    else:
        said = f"stood already: {told_cord(cord)}"
    if "file" in answer:
        place = f"by the file {escaped(answer['file'])}" if answer["file"] else "in memory alone"
        say(f"{said} {place}, because {escaped(answer['why'])}")
        if answer["next"]:
            say(f"next: {escaped(answer['next'])}")
        return
    if _contained(answer):
        said += _cut(answer)
    elif answer["changed"]:
        said = f"pulled: {told_cord(cord)}"
    say(said)
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
    if proof is not None and _contained(answer):
        at = proof["at"].partition("T")[2] if answer["changed"] else proof["at"]
        engines = ""
        if answer["acknowledged"]:
            engines = f"; {counted(answer['acknowledged'], 'engine')} acknowledged"
            engines += f" in {answer['acknowledged_ms']} ms"
        say(f"proof: {proof['admitted_after']} effects admitted after {at}{engines}")
    if proof is not None:
        if not proof["known"]:
            run = escaped(answer["pulled"]["subject"].partition("/")[0])
            warn(f"the ledger has never seen run {run}: is that its name? pullcord status")
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


def longer(cord: Cord) -> str:
    """How long a cord stands that somebody wanted for a shorter time."""
    until = f"until {cord['until']}" if cord["until"] else "until it is released"
    what = f"{cord['scope']} {cord['subject']}" if cord["subject"] else "everything"
    return f"the {cord['level']} of {what} stands {until} anyway"


def what_flows(
    data: Path, cords: list[Cord], name: tuple[str, str, str], releases: tuple[str, ...]
) -> list[str]:
    """What will flow again, line by line."""
    level, scope, subject = name
    mine = [cord for cord in cords if not cord["actor"].startswith("policy:")]
    levels = (level, "throttle") if level == "freeze" else (level,)  # a thaw lifts both
    this = [
        cord
        for cord in mine
        if cord["level"] in levels and (cord["scope"], cord["subject"]) == (scope, subject)
    ]
    if not this:
        return []  # there is nothing to lift, and the answer will say so
    lifts = "narrowing" if releases else "lifting"
    refused = this[0]["blocked"]
    by_it = "" if refused is None else f"; {counted(refused, 'call')} refused by it"
    what = escaped(f"of {scope} {subject}" if subject else "of everything")
    if releases:
        what += f" by {_releases(releases)}"
    others = [cord for cord in cords if cord not in this]
    still = ", but these still stand:" if others else ""
    return [
        f"{lifts} {told_cord(this[0])}{by_it}",
        f"{FLOWS[this[-1]['level']]} {what} will flow again{_active(data, name)}{still}",
        *(f"  {told_cord(cord)}" for cord in others),
    ]


def _active(data: Path, name: tuple[str, str, str]) -> str:
    """The runs that wait for it. What cannot be counted must not keep anybody from releasing."""
    from ledger.errors import LedgerError

    try:
        return f" ({counted(len(preview(data, *name)['runs']), 'active run')})"
    except (Failure, LedgerError, Refused):
        return ""


def say_released(answer: Answer) -> None:
    cord = answer["released"]
    said = f"{UNDONE[cord['level']]} {_what(cord)}"
    if answer["narrowed_to"]:
        said += f" for {_releases(answer['narrowed_to'])} only; for all else it stands"
    say(said)
    if answer["still"] is not None:
        say(f"still stands: {told_cord(answer['still'])}")
    if "full" in answer:
        say(loud(escaped(answer["full"])))
    if "warning" in answer:
        warn(answer["warning"])


def _contained(answer: Answer) -> bool:
    """Whether anything ran that could be stopped; without a proxy only engines left behind."""
    return bool(answer.get("up", True) or answer["killed"])


def _cut(answer: Answer) -> str:
    cord, proof = answer["pulled"], answer["proof"]
    if cord["level"] != "halt":
        going = len(proof["still_open"]) if proof else 0
        return f"; {counted(going, 'write')} in flight ends by itself" if going else ""
    cut, told = f"; {counted(answer['cut'], 'call')} cut", []
    if not proof or not (answer["changed"] or answer["cut"] or answer["killed"]):
        return cut
    if proof["unknown_writes"]:
        writes = counted(len(proof["unknown_writes"]), "write")
        told.append(f"{writes}: outcome unknown: {_ids(proof['unknown_writes'], cord)}")
    if proof["not_sent"]:
        told.append(f"{proof['not_sent']} not sent")
    cut += f" ({'; '.join(told)})" if told else ""
    done_ids = proof["already_done"]
    if done_ids:
        cut += f"; {counted(len(done_ids), 'call')} already done ({_ids(done_ids, cord)}): only "
        cut += "the rest of the answer was cut"
    return cut


def _ids(calls: list[str], cord: Cord) -> str:
    shown = ", ".join(calls[:IDS_SHOWN_MAX])
    more = len(calls) - IDS_SHOWN_MAX
    return f"{shown} and {more} more: {_query(cord)}" if more > 0 else shown


def _query(cord: Cord) -> str:
    from ledger.filters import exactly

    run, slash, tool = cord["subject"].rpartition("/")
    is_both = slash and cord["scope"] == "tool"
    words = [exactly(cord["scope"], cord["subject"])]
    if is_both:
        words = [f"run:{run}", f"tool:{tool}"]
    named = f"{shlex.join(words)} " if cord["subject"] else ""
    return f"pullcord ledger query {escaped(named)}state:unknown since:1h"


def _what(cord: Cord) -> str:
    return escaped(f"{cord['scope']} {cord['subject']}" if cord["subject"] else "everything")


def _releases(releases: tuple[str, ...] | list[str]) -> str:
    return escaped(f"release{'s' if len(releases) > 1 else ''} {', '.join(releases)}")
