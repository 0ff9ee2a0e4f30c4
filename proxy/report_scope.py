"""The scope of an incident (scoping.py) as sentences and tables of its report. Pure."""

from collections.abc import Iterator
from typing import Any

from proxy.report_parts import Command, Part, Said, Table, counted

NAMES_SHOWN_MAX = 12  # the command behind them names all

_REACHED = ("runs", "tenants", "tools", "destinations", "releases", "agents")
_ALWAYS = ("done", "unknown")  # that there were none is news
_UNDO = {
    "reversible": "nothing has to be undone",
    "compensable": "a call undoes them",
    "irreversible": "nothing can undo them",
    "unknown": "the policy does not say",
}


def scope_parts(scope: dict[str, Any]) -> Iterator[Part]:
    """What it reached, wrote, spent and put at risk, and what was prevented."""
    yield Said("Which calls belong to it is one filter of the ledger.", scope["command"])
    yield _reached(scope)
    yield _written(scope)
    if scope["writes"]["by_reversibility"]:
        yield _undoable(scope)
        yield from _taken_care_of(scope)
    else:
        yield Said("No write was made that could be undone.", scope["command"])
    yield Said(f"It spent {scope['spend_usd']} USD.", scope["calls"]["command"])
    yield _risk(scope)
    yield from _passed(scope)
    yield _prevented(scope)


def _reached(scope: dict[str, Any]) -> Table:
    rows = []
    for name in _REACHED:
        found = scope[name]
        shown = found["names"][:NAMES_SHOWN_MAX]
        more = found["count"] - len(shown)
        rest = f" and {more:,} more" if more else ""
        if found["unnamed"]:
            rest += f"; {counted(found['unnamed'], 'call')} without one"
        if name == "runs" and scope["silent_root"]:
            rest += f"; its root {scope['silent_root']} made no call"
        rows.append((name, found["count"], ", ".join(shown) + rest, Command(found["command"])))
    return Table("What it reached", ("what", "how many", "which", "shown by"), tuple(rows))


def _written(scope: dict[str, Any]) -> Table:
    rows = [
        (one["state"], one["count"], Command(one["command"]))
        for one in scope["writes"]["by_state"]
        if one["count"] or one["state"] in _ALWAYS
    ]
    return Table("Writes by state", ("state", "how many", "shown by"), tuple(rows))


def _undoable(scope: dict[str, Any]) -> Table:
    rows = [
        (
            one["reversibility"],
            _UNDO.get(one["reversibility"], ""),
            one["done"],
            one["unknown"],
            one["declined"],
            one["undone"],
            one["left"],
            ", ".join(one["tools"][:NAMES_SHOWN_MAX]),
            Command(one["command"]),
        )
        for one in scope["writes"]["by_reversibility"]
    ]
    titles = (
        *("kind", "which means", "done", "may be done", "of these declined", "undone", "left"),
        *("tools", "shown by"),
    )
    return Table("Writes by whether they can be undone", titles, tuple(rows))


def _taken_care_of(scope: dict[str, Any]) -> Iterator[Said]:
    """What was undone and who was told, and what is left of both."""
    undo, told = scope["undo"], scope["told"]
    left = "how many are left nobody knows" if undo["left"] is None else f"{undo['left']:,} left"
    yield Said(f"{counted(undo['undone'], 'write')} undone, {left}.", undo["command"])
    yield Said(
        f"{counted(told['tenants'], 'tenant')} told of it, {told['left']:,} left to tell.",
        told["command"],
    )


def _passed(scope: dict[str, Any]) -> Iterator[Table]:
    """What came behind each of its cords."""
    rows = [
        (one["cord"], one["pulled_at"], "what it covers", one["admitted"], Command(one["command"]))
        for one in scope["cords"]
    ]
    whole = scope["after_all"]
    if whole is not None:
        which = "all of the incident" if whole["contained"] else "all of it: not contained"
        command = Command(whole["command"])
        rows.append((whole["cord"], whole["pulled_at"], which, whole["admitted"], command))
    if rows:
        titles = ("cord", "pulled at", "of", "writes let through after it", "shown by")
        yield Table("What passed its cords", titles, tuple(rows))


def _risk(scope: dict[str, Any]) -> Part:
    found = scope["value_at_risk"]
    if not found:
        said = (
            "What its writes moved is not known: no tool that wrote says its value in the policy."
        )
        return Said(said, scope["command"])
    rows = [
        (
            one["currency"] or "none that can be read",
            one["amount"],
            one["writes"],
            one["unreadable"],
            one["left_amount"],
            one["left_writes"],
            Command(one["command"]),
        )
        for one in found
    ]
    titles = (
        *("currency", "amount", "writes", "of them unreadable", "amount left", "writes left"),
        "shown by",
    )
    return Table("Value at risk", titles, tuple(rows))


def _prevented(scope: dict[str, Any]) -> Part:
    if not scope["prevented"]:
        return Said("No call was refused or answered from the record.", scope["command"])
    rows = [(one["reason"], one["count"], Command(one["command"])) for one in scope["prevented"]]
    return Table("What was prevented", ("reason", "how many", "shown by"), tuple(rows))
