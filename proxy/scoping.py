"""The scope of an incident: what it reached, what it did, what was prevented. From the record only,
whether a proxy runs or not; each figure with the command that tells it.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

from ledger import incident_figures, seen
from ledger.containment import snapshot
from ledger.filters import exactly, parse
from ledger.incident_figures import Figures, FirstCord
from ledger.incident_scope import from_us, terms
from ledger.open_incidents import Incident
from ledger.sqlite import sqlite3
from ledger.states import CallState
from policies.amounts import ToolValue
from policies.call import Effect
from policies.ceilings import MICRO
from policies.policy import Policy, Reversibility
from policies.verdict import Scope
from proxy.incidents import as_json
from proxy.operations import timestamp

NAMES_MAX = 50  # of runs, tools and so on that are named; the command behind them names all

_EXACT = Context(prec=100)  # more digits than sums of amounts have

Answer = dict[str, Any]

# The figures that count names, by the columns of the ledger.
_NAMED = {
    "runs": "run",
    "tenants": "tenant",
    "tools": "tool",
    "destinations": "host",
    "releases": "release",
    "agents": "agent",
}
_STATES = (
    *(CallState.DONE, CallState.UNKNOWN, CallState.PENDING, CallState.NOT_SENT),
    *(CallState.REPLAYED, CallState.REFUSED, CallState.HELD),
)
_STOPPED = ("decision:refuse", "decision:replay")
_COVERS = {
    Scope.TENANT: "tenant",
    Scope.RELEASE: "release",
    Scope.RUN: "under",
    Scope.TOOL: "tool",
}


def scope(reader: sqlite3.Connection, incident: Incident, policy: Policy | None) -> Answer:
    """Everything about the calls of an incident. `policy` says which writes can be undone and how
    much they move; without one nobody knows. Raises LedgerUnavailable."""
    with snapshot(reader):
        return _scope(reader, incident, policy)


def _scope(reader: sqlite3.Connection, incident: Incident, policy: Policy | None) -> Answer:
    own = terms(incident)
    values = _values(policy)
    found = incident_figures.figures(reader, parse(own, 0), values)
    return {
        "incident": as_json(incident),
        "filter": list(own),
        "command": query(own),
        "from": timestamp(from_us(incident)),
        "until": None if incident.closed_us is None else timestamp(incident.closed_us),
        **{name: _named(found, column, own) for name, column in _NAMED.items()},
        "calls": {
            "count": found.effects.total(),
            "reads": found.effects[Effect.READ],
            "writes": found.effects[Effect.WRITE],
            "models": found.effects[Effect.MODEL],
            "command": query(own, by="effect"),
        },
        "writes": {
            "by_state": _by_state(found, own),
            "by_reversibility": _by_reversibility(found, own, policy),
        },
        "spend_usd": f"{Decimal(found.microusd) / MICRO:.6f}",
        "value_at_risk": _value_at_risk(found, own, values),
        "first_bad_call": incident_figures.first_bad_call(reader, incident),
        "prevented": [
            {
                "reason": reason,
                "count": count,
                "command": query((*own, *_STOPPED, f"reason:{reason}")),
            }
            for reason, count in sorted(found.prevented.items(), key=lambda one: (-one[1], one[0]))
        ],
        "after_cord": _after_cord(reader, incident, own),
    }


def query(filters: Sequence[str], by: str = "", lines: int = 0) -> str:
    """The command that lists the calls of a filter, or sums them up by a column. `lines` is how
    many it has to print, where it would print fewer."""
    words = ["ledger", "query", *(("--by", by) if by else ())]
    words += ["--limit", str(lines)] if lines > NAMES_MAX else []
    return f"pullcord {shlex.join([*words, *filters])}"


def _named(found: Figures, column: str, own: Sequence[str]) -> Answer:
    names = found.names(column)
    told = query(own, by=column, lines=len(names) + 1)  # and one line for calls without a name
    return {"count": len(names), "names": names[:NAMES_MAX], "command": told}


def _by_state(found: Figures, own: Sequence[str]) -> list[Answer]:
    counts = Counter[str]()
    for (_, state), count in found.writes.items():
        counts[state] += count
    return [
        {
            "state": state.value,
            "count": counts[state],
            "command": query((*own, "effect:write", f"state:{state}")),
        }
        for state in _STATES
    ]


def _by_reversibility(found: Figures, own: Sequence[str], policy: Policy | None) -> list[Answer]:
    """Of the writes that were done or may have been."""
    tools: dict[Reversibility, Counter[str]] = {kind: Counter() for kind in Reversibility}
    states: dict[Reversibility, Counter[str]] = {kind: Counter() for kind in Reversibility}
    for (tool, state), count in found.writes.items():
        if state in incident_figures.MAY_HAVE_HAPPENED:
            kind = policy.tool(tool).reversibility if policy else Reversibility.UNKNOWN
            tools[kind][tool] += count
            states[kind][state] += count
    return [
        {
            "reversibility": kind.value,
            "done": states[kind][CallState.DONE],
            "unknown": states[kind][CallState.UNKNOWN],
            "tools": sorted(tools[kind], key=lambda tool: (-tools[kind][tool], tool)),
            "command": query(_made(own, sorted(tools[kind]))),
        }
        for kind in Reversibility
        if tools[kind]
    ]


def _made(own: Sequence[str], tools: Iterable[str]) -> tuple[str, ...]:
    states = (f"state:{state}" for state in incident_figures.MAY_HAVE_HAPPENED)
    named = (f"tool:{tool}" for tool in tools if f"tool:{tool}" not in own)
    return (*own, "effect:write", *states, *named)


def _values(policy: Policy | None) -> dict[str, ToolValue]:
    tools = policy.tools.items() if policy else ()
    return {name: tool.value for name, tool in tools if tool.value}


def _value_at_risk(
    found: Figures, own: Sequence[str], values: Mapping[str, ToolValue]
) -> list[Answer]:
    """What writes moved that were done or may have been, by currency. Those that tell no amount are
    counted under the currency of their tool where that is always the same, else under none."""
    sums: dict[str, Fraction] = {}
    writes, unreadable = Counter[str](), Counter[str]()
    tools: dict[str, set[str]] = {}
    for (tool, arguments), count in found.moved.items():
        currency, amount = values[tool].of(seen.arguments(arguments))
        sums[currency] = sums.get(currency, Fraction(0)) + (amount or 0) * count
        tools.setdefault(currency, set()).add(tool)
        writes[currency] += count
        unreadable[currency] += count if amount is None else 0
    return [
        {
            "currency": currency or None,
            "amount": _plain(sums[currency]),
            "writes": writes[currency],
            "unreadable": unreadable[currency],
            "command": query(_made(own, sorted(tools[currency]))),
        }
        for currency in sorted(sums, key=lambda name: (not name, -writes[name], name))
    ]


def _plain(amount: Fraction) -> str:
    """Exactly, as a plain decimal number: all that are added have few decimals."""
    exact = _EXACT.divide(Decimal(amount.numerator), Decimal(amount.denominator))
    return f"{_EXACT.normalize(exact):f}"


def _after_cord(
    reader: sqlite3.Connection, incident: Incident, own: Sequence[str]
) -> Answer | None:
    """The writes that were let through after the first cord of the incident had been pulled, of
    those that it stands over, until a person changed it. None where nothing was pulled for it."""
    cord = incident_figures.first_cord(reader, incident)
    if cord is None:
        return None
    if Scope.RUN in cord.pull.names:  # it is over one of the incident's runs, not over all of them
        own = [term for term in own if not term.startswith(f"{_COVERS[Scope.RUN]}:")]
    filters = (*own, *_covered(cord, own), *_standing(cord), "effect:write", "decision:allow")
    found = incident_figures.figures(reader, parse(filters, 0))
    return {
        "cord": cord.pull.rule,
        "pulled_at": timestamp(cord.pull.at_us),
        "admitted": found.effects.total(),
        "command": query(filters),
    }


def _covered(cord: FirstCord, own: Sequence[str]) -> list[str]:
    """What the cord is over, where the incident is over more."""
    fields = {term.partition(":")[0] for term in own}
    named = ((_COVERS[kind], name) for kind, name in cord.pull.names.items())
    return [
        exactly(field, name)
        for field, name in named
        if field not in fields and f"root:{name}" not in own
    ]


def _standing(cord: FirstCord) -> tuple[str]:
    last = "" if cord.until_seq is None else str(cord.until_seq - 1)
    return (f"seq:{cord.seq + 1}..{last}",)
