r"""The filter language of the ledger: `tool:stripe.* state:unknown since:2h -run:r1`.

A call passes when each field that is named has one of the values named for it: terms of one field
are OR-ed, fields are AND-ed. `-` negates a term and always narrows, as times do; `*` stands for any
text, `\*` for a star. Values become bound parameters, never SQL. Pure: the caller brings the time.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches

from ledger.errors import LedgerError
from ledger.states import CallState
from policies.call import Effect
from policies.verdict import Action, Reason

Value = str | int
SEARCHED = "text"  # the field whose words are looked for in requests and answers
RELEASE = "release:"  # how a value of `under` begins that is no run's: no run's name has a colon


class FilterError(LedgerError):
    """A filter that cannot be understood; the message names the term and what is possible."""


@dataclass(frozen=True, slots=True)
class Lead:
    """A condition that everything fulfils that a filter lets through, and that an index answers.
    `is_few`: it leads to few calls, whatever else the filter says."""

    where: str
    values: tuple[Value, ...] = ()
    is_few: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on the rows of the view `calls`, with the values bound to its marks.

    What it lets through was decided within `since_us` and `until_us` (UTC, the end is not in it),
    and fulfils each of the `leads`, as `where` says too: so a read may leave out rows that are too
    old or too new, and follow one of the leads. `where` itself follows none (`+` before a column
    keeps SQLite from its index): which one is best, the rows tell (queries.py).
    """

    where: str
    values: tuple[Value, ...]
    since_us: int | None = None
    until_us: int | None = None
    leads: tuple[Lead, ...] = ()


ALL = Filter("1", ())


def exactly(field: str, name: str) -> str:
    """The term for what has just this name, whatever signs are in it."""
    return f"{field}:{name.replace('*', _STAR)}"


_STAR = r"\*"
_ANY = re.compile(r"(?<!\\)\*")  # a star that stands for any text


def of_call(chosen: Filter, call_id: str) -> Filter:
    """Lets this call through if the filter does."""
    return Filter(f"id = ? AND {chosen.where}", (call_id, *chosen.values))


_UNITS_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO = re.compile(r"(\d{1,9})([smhdw])")

# Fields whose words are known: a misspelt one is told instead of finding nothing.
_WORDS: dict[str, tuple[str, ...]] = {
    "state": tuple(CallState),
    "decision": tuple(Action),
    "effect": tuple(Effect),
    "reason": tuple(Reason),
}
_TEXTS = (
    *_WORDS,
    *("id", "tenant", "run", "parent", "root", "agent", "release", "tool", "method", "host"),
    *("path", "rule", "key", "replay_of", "policy"),
)
_LOWER = frozenset({"host", "id"})
_INDEXED = frozenset({"id", "run", "root", "tenant", "tool", "release"})
_UPPER = frozenset({"method"})


def parse(
    terms: str | Sequence[str],
    now_us: int,
    searched: Callable[[str], Sequence[str]] | None = None,
) -> Filter:
    """The condition that the terms make together. A string is split as a shell would. `searched`
    gives the ids of the calls in which the words of a `text:` stand.

    Raises FilterError, and what `searched` does.
    """
    if isinstance(terms, str):
        try:
            terms = shlex.split(terms)
        except ValueError as error:
            raise FilterError(f"the filter {terms!r} has an open quote") from error
    named: dict[str, list[tuple[str, list[Value]]]] = {}
    times: dict[str, list[int]] = {"since": [], "until": []}
    for place, term in enumerate(terms):
        field, where, bound = _term(term, now_us, searched)
        narrows = term.startswith("-") or FIELDS[field] is _time
        if field in times and not term.startswith("-"):
            times[field] += [each for each in bound if isinstance(each, int)]
        named.setdefault(f"{place}" if narrows else field, []).append((where, bound))
    conditions = [" OR ".join(where for where, _ in same) for same in named.values()]
    values = [value for same in named.values() for _, bound in same for value in bound]
    return Filter(
        " AND ".join(f"({one})" for one in conditions) or "1",
        tuple(values),
        max(times["since"], default=None),
        min(times["until"], default=None),
        tuple(_leads(named)),
    )


def _leads(named: dict[str, list[tuple[str, list[Value]]]]) -> Iterator[Lead]:
    """Those that lead to few calls come first."""
    for field in _LEADING:
        same = named.get(field, [])
        if not same or any("GLOB" in where for where, _ in same):
            continue
        values = tuple(value for _, bound in same for value in bound)
        if any(where == _OF_RELEASE for where, _ in same):
            # To runs and a release together the other fields lead better.
            field = "release" if len(same) == 1 else ""
        if field in ("id", "run"):
            yield Lead(f"{field} IN ({', '.join('?' * len(values))})", values, is_few=True)
        elif field in _FAMILIES:
            names, family = json.dumps(list(dict.fromkeys(values))), _FAMILIES[field]
            yield Lead(f"seq IN ({family})", (names,) * family.count("?"), is_few=True)
        elif field == SEARCHED:
            lists = " UNION ".join([_LISTED] * len(values))
            yield Lead(f"id IN ({lists})", values, is_few=True)
        elif field == "state":
            states = {CallState(str(value)) for value in values}
            if states == {CallState.UNKNOWN, CallState.NOT_SENT}:
                states.remove(CallState.UNKNOWN)  # the other's lead leads to both
            lead = _STATES.get(states.pop())
            if lead is not None and not states:
                yield lead
        elif len(values) == 1 and field == "decision":
            if values != (Action.ALLOW,):
                yield _stopped(Action(str(values[0])))
        elif len(values) == 1 and field:
            yield Lead(f"{field} = ?", values)


_LISTED = "SELECT value FROM json_each(?)"
_BELOW = "SELECT r.name FROM run r, json_each(r.ancestors) a WHERE a.value = ?"
# A root's own rows are found as a run's; the index on roots has only those of the runs below.
_TREE = (
    f"SELECT seq FROM event WHERE run IN ({_LISTED}) UNION ALL SELECT seq FROM event "  # noqa: S608 - words of ours
    f"WHERE root IN ({_LISTED}) AND root IS NOT NULL AND root <> run"
)
_FAMILIES = {
    "root": _TREE,
    "under": f"{_TREE} UNION ALL SELECT seq FROM event "  # noqa: S608 - words of ours
    f"WHERE run IN ({_BELOW.replace('= ?', f'IN ({_LISTED})')})",
}
_LEADING = (*("id", "run", *_FAMILIES, SEARCHED, "state", "decision", "release", "tool", "tenant"),)


def _stopped(action: Action) -> Lead:
    return Lead("decision <> 'allow' AND decision = ?", (action.value,))


# SQLite takes an index only when the condition on its rows stands in the question word by word.
_TROUBLED = "id IN (SELECT call_id FROM event WHERE type = 'call.outcome' AND state <> 'done'"
_STATES = {
    CallState.UNKNOWN: Lead(f"{_TROUBLED} AND state = 'unknown')"),
    CallState.NOT_SENT: Lead(f"{_TROUBLED})"),  # a person may have said so of an unknown one
    CallState.PENDING: Lead("id IN (SELECT call_id FROM open_call)"),
    CallState.REFUSED: _stopped(Action.REFUSE),
    CallState.REPLAYED: _stopped(Action.REPLAY),
    CallState.HELD: _stopped(Action.HOLD),
}


def _term(
    term: str, now_us: int, searched: Callable[[str], Sequence[str]] | None
) -> tuple[str, str, list[Value]]:
    bare = term.removeprefix("-")
    field, colon, value = bare.partition(":")
    if not colon or not value:
        raise FilterError(f"{term!r} is no filter: write FIELD:VALUE, for example state:unknown")
    if field not in FIELDS:
        near = get_close_matches(field, FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(FIELDS))}"
        raise FilterError(f"no field {field!r} in {term!r}; {hint}")
    if field == SEARCHED:
        where, bound = _searched(value, searched)
    else:
        where, bound = FIELDS[field](field, value, now_us)
    # A row that lacks the value is not a row that has it: it passes a negation.
    return field, (f"coalesce({where}, 0) = 0" if bare != term else where), bound


def _text(field: str, value: str, now_us: int) -> tuple[str, list[Value]]:
    words = _WORDS.get(field)
    if words and not _ANY.search(value) and value not in words:
        near = get_close_matches(value, words, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(words)}"
        raise FilterError(f"no {field} {value!r}; {hint}")
    if field in _LOWER:
        value = value.lower()
    elif field in _UPPER:
        value = value.upper()
    if field in _INDEXED:
        field = f"+{field}"
    if _ANY.search(value):
        return f"{field} GLOB ?", [_only_stars(value)]
    value = value.replace(_STAR, "*")
    if field == "rule" and ":" not in value:  # a ceiling is known by its id, too
        return f"{field} IN (?, ?)", [value, f"ceiling:{value}"]
    return f"{field} = ?", [value]


def _no_trace(field: str, value: str, now_us: int) -> tuple[str, list[Value]]:
    raise FilterError(f"{field}: is of the trace, which is not read here; give it to query")


def _searched(
    value: str, searched: Callable[[str], Sequence[str]] | None
) -> tuple[str, list[Value]]:
    if searched is None:
        return _no_trace(SEARCHED, value, 0)
    return f"+id IN ({_LISTED})", [json.dumps(list(searched(value)))]


def _only_stars(glob: str) -> str:
    """GLOB knows `?` and `[` too; here they are plain characters, as is a star that is meant."""
    return re.sub(r"\\\*|[?\[]", lambda found: f"[{found[0][-1]}]", glob)


def _under(field: str, value: str, now_us: int) -> tuple[str, list[Value]]:
    """A run and those below it, as a cord on the run covers them; or all of a release, so that
    runs and releases can be OR-ed."""
    if _ANY.search(value):
        raise FilterError(f"{field}: takes the name of one run, or {RELEASE}NAME, not {value!r}")
    value = value.replace(_STAR, "*")
    if value.startswith(RELEASE):
        return _OF_RELEASE, [value.removeprefix(RELEASE)]
    return f"? IN (run, root) OR +run IN ({_BELOW})", [value, value]


_OF_RELEASE = "+release = ?"


def _part(field: str, value: str, now_us: int) -> tuple[str, list[Value]]:
    found = _PART.fullmatch(value)
    if not found:
        raise FilterError(f"{value!r} is no part of the record: write 120..180, or 120..")
    return "seq BETWEEN ? AND ?", [int(found[1]), int(found[2] or 2**62)]


_PART = re.compile(r"(\d{1,18})\.\.(\d{1,18})?")


def _status(field: str, value: str, now_us: int) -> tuple[str, list[Value]]:
    if re.fullmatch(r"[1-5]xx", value):
        least = int(value[0]) * 100
        return "status BETWEEN ? AND ?", [least, least + 99]
    if not re.fullmatch(r"\d{3}", value):
        raise FilterError(f"{value!r} is no status: write 404, or 5xx")
    return "status = ?", [int(value)]


def _time(field: str, value: str, now_us: int) -> tuple[str, list[Value]]:
    return f"at_us {'>=' if field == 'since' else '<'} ?", [moment(value, now_us)]


def moment(text: str, now_us: int) -> int:
    """`2h` ago, or an RFC 3339 time, as UTC microseconds. Without an offset it is UTC."""
    ago = _AGO.fullmatch(text)
    if ago:
        return max(0, now_us - int(ago[1]) * _UNITS_SECONDS[ago[2]] * 1_000_000)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise FilterError(
            f"{text!r} is no time: write 30s, 15m, 2h, 3d, or 2026-11-22T10:00:00Z"
        ) from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    since = when - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


FIELDS: dict[str, Callable[[str, str, int], tuple[str, list[Value]]]] = {
    **dict.fromkeys(_TEXTS, _text),
    "status": _status,
    "under": _under,
    "seq": _part,
    "since": _time,
    "until": _time,
    SEARCHED: _no_trace,
}
"""Every field, and what turns its value into a condition."""
