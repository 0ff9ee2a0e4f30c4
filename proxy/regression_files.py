"""A directory that holds the regression test of an incident: how it is written, and read again.

What was recorded must be as it was exported: each line carries a sum over itself and those before
it, so that a changed one is found. policy.yaml and expect.yaml are a person's to edit.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from ledger import exported_rows
from ledger.replaying import COLUMNS, Row
from policies import document
from policies.document import Document, Mistake, MistakenFileError
from policies.mistakes import suggestion
from proxy import regression_folder as folders
from proxy.regression_folder import AGAIN, RegressionError

INCIDENT, CALLS, HEALTHY = "incident.json", "calls.jsonl", "healthy.jsonl"
RESPONSES, POLICY, BEFORE, EXPECT = "responses.jsonl", "policy.yaml", "before.yaml", "expect.yaml"
EXPECTED = "expected"  # in incident.json: the digest of expect.yaml as an export wrote it
FORMAT = 1

_SEQ = COLUMNS.index("seq")
_SUM_CHARACTERS = 16
_NAMES = (INCIDENT, CALLS, HEALTHY, RESPONSES, POLICY, BEFORE, EXPECT)


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be so: each that is not None. Money in micro-dollars, time in microseconds."""

    calls: int | None = None
    microusd: int | None = None
    us: int | None = None
    false_trips: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """An incident as it was exported. `first` is the number of the row with which it begins,
    calls of `tools` by runs of `releases` (empty: any) went wrong, `places` tell a row's file and
    line by its number.
    `policies` are texts by digest."""

    folder: Path
    incident: Mapping[str, Any]
    rows: tuple[Row, ...]
    healthy: tuple[Row, ...]
    first: int
    tools: frozenset[str]
    releases: frozenset[str]
    policies: Mapping[str, str]
    expected: Expected
    places: Mapping[int, str] = field(repr=False, default_factory=dict)

    @property
    def name(self) -> str:
        told = self.incident
        return f"incident {told['id']}, {told['kind']} {told['name']}"

    def went_wrong(self, tool: str, release: str) -> bool:
        """Whether calls of this tool by runs of this release are what is to be contained."""
        return tool in self.tools and (not self.releases or release in self.releases)


# ---------------------------------------------------------------------------------- writing


def lines(found: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line, each with its sum."""
    told, before = [], ""
    for line in found:
        text = _canonical(line)
        before = _sum(before, text)
        told.append(f'{text[:-1]},"sum":"{before}"}}\n')
    return "".join(told).encode()


def expectation(expected: Expected) -> bytes:
    """expect.yaml."""
    told = [
        f"call: {expected.calls}" if expected.calls is not None else "",
        f'dollar: "{_usd(expected.microusd)}"' if expected.microusd is not None else "",
        f"second: {_plain(Decimal(expected.us) / 1_000_000)}" if expected.us is not None else "",
    ]
    by = ", ".join(one for one in told if one)
    return (
        "# At the latest, counted from the first bad call: what is named here must hold.\n"
        f"contained_by: {{{by}}}\nfalse_trips: {expected.false_trips}\n"
    ).encode()


def name_of_test(incident_id: str) -> str:
    """By the whole id, as Python can call it."""
    return f"test_incident_{incident_id.replace('-', '_')}"


def python_file(incident: Mapping[str, Any]) -> bytes:
    said = f"Incident {incident['id']}: contained as expect.yaml says."
    name = name_of_test(str(incident["id"]))
    return f'def {name}(replay):\n    """{said}"""\n    replay.check()\n'.encode()


def summary(told: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """incident.json, with the sums of what was recorded."""
    sums = {
        name: _last_sum(content) if name.endswith(".jsonl") else sum_of(content)
        for name, content in files.items()
    }
    whole = {**told, "files": sums, "format": FORMAT}
    text = json.dumps(whole, sort_keys=True, indent=2)
    return f"{text}\n".encode()


def write(folder: Path, files: Mapping[str, bytes], incident_id: str) -> None:
    """Into a new directory, an empty one, or one that holds this incident's test: what is not among
    these files stays as it is. incident.json comes last. Raises RegressionError."""
    check_place(folder, incident_id)
    folders.put(folder, files, (RESPONSES,), INCIDENT)


def check_place(folder: Path, incident_id: str) -> None:
    """Raises RegressionError unless the test of this incident may be written there: what stands
    there goes, so it must be that test and nothing else."""
    if folders.is_empty(folder):
        return
    if not folders.is_there(folder / INCIDENT):
        raise RegressionError(f"{folder} is not empty; name a new directory: --out DIR")
    if _incident(folder)["id"] != incident_id:
        raise RegressionError(f"{folder} holds another incident's test; name a new one")
    folders.check_strangers(folder, {*_NAMES, f"{name_of_test(incident_id)}.py"})


def is_edited(folder: Path) -> bool:
    """Whether a person has written its expect.yaml: then it stays as it is. What an export wrote
    there follows from its policy, and from another one something else would. Raises
    RegressionError."""
    if not folders.is_there(folder / EXPECT):
        return False
    return _incident(folder).get(EXPECTED) != sum_of(folders.content(folder / EXPECT))


def digest_of(folder: Path) -> str:
    """Of the whole test as it stands: which of its files hold what."""
    there = (name for name in _NAMES if folders.is_there(folder / name))
    told = {name: sum_of(folders.content(folder / name)) for name in there}
    return sum_of(_canonical(told).encode())


# ---------------------------------------------------------------------------------- reading


def read(folder: Path) -> Case:
    """Raises RegressionError, and MistakenFileError for expect.yaml."""
    told = _incident(folder)
    sums, policies = told["files"], dict(told["policies"])
    before = folders.text_of(folder / BEFORE)
    if sum_of(before.encode()) != sums.get(BEFORE):
        raise RegressionError(f"{folder / BEFORE}: it is not as it was exported; {AGAIN}")
    policies[told["before"]] = before
    for digest, text in policies.items():
        if sum_of(text.encode()) != digest:
            where = folder / (BEFORE if digest == told["before"] else INCIDENT)
            raise RegressionError(f"{where}: policy {digest[:12]} is not the one; {AGAIN}")
    places: dict[int, str] = {}
    rows = _rows(folder / CALLS, sums, places)
    healthy = _rows(folder / HEALTHY, sums, places)
    if all(row[_SEQ] != told["first"] for row in rows):
        raise RegressionError(f"{folder / CALLS}: it has no row {told['first']!r:.20}; {AGAIN}")
    return Case(
        folder,
        told,
        rows,
        healthy,
        told["first"],
        frozenset(told["tools"]),
        frozenset(told["releases"]),
        policies,
        _expected(folder / EXPECT),
        places,
    )


def responses(folder: Path) -> list[dict[str, Any]]:
    """The recorded answers, oldest first. Raises RegressionError."""
    path, told = folder / RESPONSES, _incident(folder)
    if not folders.is_there(path) and RESPONSES not in told["files"]:
        raise RegressionError(
            f"{folder} has no {RESPONSES}: the trace held no answer of this incident"
        )
    found = []
    for number, line in _lines(path, told["files"]):
        wrong = [name for name in _ANSWER if type(line.get(name)) is not _ANSWER[name]]
        if not wrong:
            wrong = ["status"] * (not 100 <= line["status"] <= 999)
            wrong += ["headers"] * (not all(map(_is_header, line["headers"])))
        if wrong:
            raise RegressionError(f"{path}:{number}: {wrong[0]!r} is not as it should be")
        found.append(line)
    return found


_ANSWER = {"method": str, "host": str, "path": str, "body": str, "status": int, "text": str,
           "headers": list}  # fmt: skip
_OF_INCIDENT = {"id": str, "kind": str, "name": str, "files": dict, "policies": dict,
                "before": str, "first": int, "tools": list, "releases": list}  # fmt: skip


def _incident(folder: Path) -> dict[str, Any]:
    path = folder / INCIDENT
    if not folder.is_dir():
        raise RegressionError(f"there is no directory {folder}")
    if not folders.is_there(path):
        if any(folder.glob(f"*/{INCIDENT}")):
            raise RegressionError(
                f"{folder} holds several tests: name one, or run: pytest {folder}"
            )
        raise RegressionError(
            f"{path}: there is none, so this is no test of an incident; make one: "
            "pullcord incident export-test ID --out DIR"
        )
    text = folders.text_of(path)
    told = _object(text, str(path))

    def wrong(name: str, why: str) -> RegressionError:
        found = enumerate(text.splitlines(), 1)
        line = next((line for line, said in found if said.lstrip().startswith(f'"{name}"')), 1)
        return RegressionError(f"{path}:{line}: {why}; {AGAIN}")

    found = told.get("format")
    if found != FORMAT or type(found) is not int:
        known = found if isinstance(found, int | str) else type(found).__name__
        raise wrong("format", f"its format is {known!r:.20}, this pullcord reads {FORMAT}")
    for name, kind in _OF_INCIDENT.items():
        value = told.get(name)
        held = value if isinstance(value, list) else value.values() if type(value) is dict else ()
        if type(value) is not kind or not all(isinstance(one, str) for one in held):
            raise wrong(name, f"{name!r} is not as it was exported")
    return told


def _rows(path: Path, sums: Mapping[str, str], places: dict[int, str]) -> tuple[Row, ...]:
    found: list[Row] = []
    for number, line in _lines(path, sums):
        try:
            row = exported_rows.row_of(line)
        except ValueError as error:
            raise RegressionError(f"{path}:{number}: {error}") from None
        if found and row[_SEQ] <= found[-1][_SEQ]:
            raise RegressionError(f"{path}:{number}: row {row[_SEQ]} is not where it belongs")
        places.setdefault(row[_SEQ], f"{path}:{number}")
        found.append(row)
    return tuple(found)


def _lines(path: Path, sums: Mapping[str, str]) -> Iterable[tuple[int, dict[str, Any]]]:
    before, number = "", 0
    for number, text in enumerate(folders.content(path).splitlines(), 1):
        line = _object(text, str(path), number)
        told = line.pop("sum", None)
        before = _sum(before, _canonical(line))
        if told != before:
            raise RegressionError(f"{path}:{number}: it is not as it was exported; {AGAIN}")
        yield number, line
    if sums.get(path.name) != before:
        raise RegressionError(f"{path}:{number}: lines are missing behind this one; {AGAIN}")


def _expected(path: Path) -> Expected:
    """Raises MistakenFileError with each mistake at its line."""
    read = document.read(folders.text_of(path), str(path))
    mistakes: list[Mistake] = []
    top = _mapping(read, (), ("contained_by", "false_trips"), mistakes)
    by = _mapping(read, ("contained_by",), ("call", "dollar", "second"), mistakes)
    if not mistakes and not by:
        mistakes.append(read.at(("contained_by",), "name at least one of call, dollar, second"))

    def number(*location: str) -> Decimal | None:
        value = (top if len(location) == 1 else by).get(location[-1])
        if value is None:
            return None
        try:
            found = Decimal(str(value))
        except InvalidOperation:
            found = Decimal(-1)
        if isinstance(value, bool) or not found.is_finite() or not 0 <= found < 10**12:
            mistakes.append(read.at(location, f"{str(value)[:40]!r} is no number, from 0 on"))
            return None
        return found

    calls, trips = number("contained_by", "call"), number("false_trips")
    dollars, seconds = number("contained_by", "dollar"), number("contained_by", "second")
    if mistakes:
        raise MistakenFileError(str(path), mistakes)
    return Expected(
        None if calls is None else int(calls),
        None if dollars is None else int(dollars * 1_000_000),
        None if seconds is None else int(seconds * 1_000_000),
        int(trips or 0),
    )


def _mapping(
    read: Document, location: tuple[str, ...], names: tuple[str, ...], mistakes: list[Mistake]
) -> dict[str, Any]:
    found: Any = read.data
    for part in location:
        found = found.get(part) if isinstance(found, dict) else None
    if found is None and location:
        return {}
    if not isinstance(found, dict):
        mistakes.append(read.at(location, f"write it as a mapping of {', '.join(names)}"))
        return {}
    for key in found.keys() - set(names):
        near = suggestion(key, list(names)) or f"; there are {', '.join(names)}"
        mistakes.append(read.at((*location, key), f"there is no {key!r}{near}", of_key=True))
    return found


# ---------------------------------------------------------------------------------- words


def _object(text: str | bytes, path: str, line: int | None = None) -> dict[str, Any]:
    """One that can be written again, and holds nothing but text where it holds text."""
    try:
        told = json.loads(text)
        json.dumps(told, ensure_ascii=False).encode()
    except RecursionError:
        raise RegressionError(f"{path}:{line or 1}: it is nested too deep; {AGAIN}") from None
    except ValueError as error:
        where = line or getattr(error, "lineno", 1)
        raise RegressionError(f"{path}:{where}: it is no JSON ({error})") from None
    if not isinstance(told, dict):
        raise RegressionError(f"{path}:{line or 1}: it is no JSON object")
    return told


def _is_header(one: object) -> bool:
    """A name and its value."""
    return isinstance(one, list) and len(one) == 2 and all(isinstance(each, str) for each in one)


def _canonical(told: Mapping[str, Any]) -> str:
    return json.dumps(told, sort_keys=True, separators=(",", ":"))


def _sum(before: str, text: str) -> str:
    found = hashlib.sha256(f"{before}{text}".encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:_SUM_CHARACTERS]


def _last_sum(content: bytes) -> str:
    return str(json.loads(content.splitlines()[-1])["sum"]) if content else ""


def sum_of(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _usd(microusd: int) -> str:
    return _plain(Decimal(microusd) / 1_000_000)


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
