"""The scope of an incident: what it reached, what it did, what was prevented. From the record only,
whether a proxy runs or not; each figure with the command that tells it.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

from ledger import incident_calls, incident_cords, incident_figures, incident_notices, seen
from ledger.compensation import undone_calls
from ledger.containment import snapshot
from ledger.filters import exactly, parse
from ledger.incident_cords import Stood
from ledger.incident_figures import DECLINING, UNDONE, Figures
from ledger.incident_reads import pulled_over
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
CORDS_MAX = 10  # that are told with what passed them: the first ones

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
    undone = undone_calls(reader, from_us(incident))
    found = incident_figures.figures(reader, parse(own, 0), values, undone)
    by_reversibility = _by_reversibility(found, own, policy)
    return {
        "incident": as_json(incident),
        "filter": list(own),
        "command": query(own),
        "from": timestamp(from_us(incident)),
        "until": None if incident.closed_us is None else timestamp(incident.closed_us),
        **{name: _named(found, column, own) for name, column in _NAMED.items()},
        "silent_root": _silent_root(incident, found),
        "calls": {
            "count": found.effects.total(),
            "reads": found.effects[Effect.READ],
            "writes": found.effects[Effect.WRITE],
            "models": found.effects[Effect.MODEL],
            "command": query(own, by="effect"),
        },
        "writes": {
            "by_state": _by_state(found, own),
            "by_reversibility": by_reversibility,
        },
        "undo": _undo(incident, by_reversibility, policy),
        "told": _told(reader, incident, found),
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
        **_after(reader, incident, own),
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
    return {
        "count": len(names),
        "names": names[:NAMES_MAX],
        "unnamed": found.unnamed[column],
        "command": told,
    }


def _silent_root(incident: Incident, found: Figures) -> str | None:
    """The root of its runs, where that made no call itself."""
    runs = found.named["run"]
    is_silent = incident.kind == Scope.RUN and runs and incident.name not in runs
    return incident.name if is_silent else None


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
    """Of the writes that were done or may have been. `left` are those done that nobody has undone,
    and that the tool did not decline."""
    kinds: dict[Reversibility, Counter[str]] = {kind: Counter() for kind in Reversibility}
    tools: dict[Reversibility, Counter[str]] = {kind: Counter() for kind in Reversibility}
    for (tool, state), count in found.writes.items():
        if state in incident_figures.MAY_HAVE_HAPPENED:
            kind = policy.tool(tool).reversibility if policy else Reversibility.UNKNOWN
            tools[kind][tool] += count
            kinds[kind][state] += count
    for kind, named in tools.items():
        for fate in (UNDONE, DECLINING):
            kinds[kind][fate] = sum(found.fates[tool, fate] for tool in named)
    return [
        {
            "reversibility": kind.value,
            "done": count[CallState.DONE],
            "unknown": count[CallState.UNKNOWN],
            "undone": count[UNDONE],
            "declined": count[DECLINING],
            "left": count[CallState.DONE] - count[UNDONE] - count[DECLINING],
            "tools": sorted(tools[kind], key=lambda tool: (-tools[kind][tool], tool)),
            "command": query(_made(own, sorted(tools[kind]))),
        }
        for kind, count in kinds.items()
        if tools[kind]
    ]


def _undo(incident: Incident, kinds: Sequence[Answer], policy: Policy | None) -> Answer:
    """How far the undoing is. What is left to undo are the writes that the policy says how to undo;
    without a policy nobody knows."""
    can = [one for one in kinds if one["reversibility"] == Reversibility.COMPENSABLE]
    return {
        "undone": sum(one["undone"] for one in kinds),
        "declined": sum(one["declined"] for one in kinds),
        "left": sum(one["left"] for one in can) if policy else None,
        "command": f"pullcord incident compensate {incident.id} --plan",
    }


def _told(reader: sqlite3.Connection, incident: Incident, found: Figures) -> Answer:
    """To which of the tenants that its writes reached a message went."""
    sent = {row["tenant"] for row in incident_notices.sent(reader, incident.id)}
    left = sorted(found.reached.keys() - sent)
    return {
        "tenants": len(found.reached.keys() & sent),
        "left": len(left),
        "names_left": left[:NAMES_MAX],
        "command": f"pullcord incident notify {incident.id} --plan",
    }


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
    """What writes moved that were done or may have been, by currency; and what of it is left, which
    nobody has undone and the tool did not decline. Those that tell no amount are counted under the
    currency of their tool where that is always the same, else under none."""
    sums, left = dict[str, Fraction](), dict[str, Fraction]()
    writes, unreadable, writes_left = Counter[str](), Counter[str](), Counter[str]()
    tools: dict[str, set[str]] = {}
    for moved, count in found.moved.items():
        currency, amount = values[moved.tool].of(seen.arguments(moved.arguments))
        tools.setdefault(currency, set()).add(moved.tool)
        sums[currency] = sums.get(currency, Fraction(0)) + (amount or 0) * count
        writes[currency] += count
        unreadable[currency] += count if amount is None else 0
        if moved.is_left:
            left[currency] = left.get(currency, Fraction(0)) + (amount or 0) * count
            writes_left[currency] += count
    return [
        {
            "currency": currency or None,
            "amount": _plain(sums[currency]),
            "writes": writes[currency],
            "unreadable": unreadable[currency],
            "left_amount": _plain(left.get(currency, Fraction(0))),
            "left_writes": writes_left[currency],
            "command": query(_made(own, sorted(tools[currency]))),
        }
        for currency in sorted(sums, key=lambda name: (not name, -writes[name], name))
    ]


def _plain(amount: Fraction) -> str:
    """Exactly, as a plain decimal number: all that are added have few decimals."""
    exact = _EXACT.divide(Decimal(amount.numerator), Decimal(amount.denominator))
    return f"{_EXACT.normalize(exact):f}"


def _after(reader: sqlite3.Connection, incident: Incident, own: Sequence[str]) -> Answer:
    """The writes that were let through after cords had been pulled. `after_cord` is the first cord,
    `cords` the first ones, each with those that it stands over, until a person changed it;
    `after_all` those of the whole incident after the cord that contained it, or where none did,
    after the last one. None where nothing was pulled for it."""
    cords = incident_cords.stood(pulled_over(reader, incident))
    each = [_passed(reader, cord, _covering(cord, own)) for cord in cords[:CORDS_MAX]]
    found = incident_cords.containment(reader, incident, cords)
    whole = None
    if found is not None:
        own_until = found.cord._replace(until_seq=found.until_seq)
        whole = {"contained": found.is_whole, **_passed(reader, own_until, own)}
    return {"after_cord": next(iter(each), None), "cords": each, "after_all": whole}


def _passed(reader: sqlite3.Connection, cord: Stood, over: Sequence[str]) -> Answer:
    filters = (*over, *_standing(cord), "effect:write", "decision:allow")
    return {
        "cord": cord.pull.rule,
        "pulled_at": timestamp(cord.pull.at_us),
        "admitted": incident_calls.count(reader, parse(filters, 0)),
        "command": query(filters),
    }


def _covering(cord: Stood, own: Sequence[str]) -> list[str]:
    """Those calls of the incident that a cord is over."""
    if Scope.RUN in cord.pull.names:  # it is over one of the incident's runs, not over all of them
        own = [term for term in own if not term.startswith(f"{_COVERS[Scope.RUN]}:")]
    return [*own, *_covered(cord, own)]


def _covered(cord: Stood, own: Sequence[str]) -> list[str]:
    """What the cord is over, where the incident is over more."""
    fields = {term.partition(":")[0] for term in own}
    named = ((_COVERS[kind], name) for kind, name in cord.pull.names.items())
    return [
        exactly(field, name)
        for field, name in named
        if field not in fields and f"root:{name}" not in own
    ]


def _standing(cord: Stood) -> tuple[str]:
    last = "" if cord.until_seq is None else str(cord.until_seq - 1)
    return (f"seq:{cord.seq + 1}..{last}",)
