"""Steps of made-up runs, from the rows of tests/cases/detectors.yaml; and whether what is found in
them is what a row wants."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from policies.call import Dialect
from policies.detectors import answers, noticing, volatile
from policies.detectors.learning import Learned
from policies.detectors.runs import Runs
from policies.detectors.step import Kind, Severity, Step

CASES: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).parents[1].joinpath("cases", "detectors.yaml").read_text("utf-8")
)
START_US = 1_795_000_000_000_000
MINUTE_US = 60_000_000
HEX = 16

Row = dict[str, Any]
Firsts = dict[tuple[str, Severity], int]
"""By which call each detector first said what."""


def firsts(row: Row) -> Firsts:
    """Counted are the calls of tools; where there are none those of models; runs of a tree."""
    runs, calls, found = Runs(), 0, Firsts()
    counted = Kind.SPAWN if "spawns" in row else Kind.TOOL
    if row.get("tools") is False:
        counted = Kind.MODEL
    for step in steps(row):
        calls += step.kind is counted
        for finding in runs.feed(step):
            found.setdefault((finding.detector, finding.severity), calls)
    return found


def holds(row: Row, found: Firsts) -> bool:
    """Whether this is what the row wants."""
    match row["wants"]:
        case "none":
            return not found
        case "quiet":
            return all(severity is not Severity.TRIP for _, severity in found)
    by = [
        calls
        for (detector, severity), calls in found.items()
        if severity is Severity(row["wants"]) and detector in row.get("by", [detector])
    ]
    return bool(by) and min(by) <= row["within"]


def steps(row: Row) -> Iterator[Step]:
    if "spawns" in row:
        return _tree(row)
    return _fleet(row) if "runs" in row else _run(row)


def _run(row: Row) -> Iterator[Step]:
    """A human's word, then the calls. Each argument and answer is text, hashed as live ones are."""
    pace = row["every_seconds"]
    paces = pace if isinstance(pace, list) else [pace]
    at_us, learned = START_US, Learned()
    yield _step(at_us, Kind.MODEL, "m", human=b"%d" % at_us)
    for number in range(row["count"]):
        at_us += round(paces[number % len(paces)] * 1_000_000)
        if "model" in row:
            spent = round(row["model"] * 1_000_000)
            yield _step(at_us - 1000, Kind.MODEL, f"m{number}", spend_microusd=spent)
        if row.get("tools", True):
            yield _call(row, number, at_us, learned)


def _call(row: Row, number: int, at_us: int, learned: Learned) -> Step:
    between = row.get("between") if number % 2 else None
    asked = _arguments(row.get("arguments", "same"), number)
    asked += f" step {number}" if between else ""
    said = _result(row.get("result", "same"), number, at_us)
    said += f" of step {number}" if between else ""
    action = _hash(volatile.of_arguments(asked.encode(), at_us))
    left_out = learned.left_out("tool")
    result = noticing.result(200, said.encode(), Dialect.HTTP, left_out=left_out).digest
    learned.feed("tool", action, result, lambda: answers.message(said.encode(), Dialect.HTTP))
    return _step(
        at_us,
        Kind.TOOL,
        f"c{number}",
        tool="tool",
        action=action,
        result=result,
        is_write=between == "write" or row.get("effect") == "write",
        is_ok=row.get("ok", True),
    )


def _tree(row: Row) -> Iterator[Step]:
    """Runs that are started minute by minute, each of them so deep. With `live` each asks a model
    once a minute from then on; the others are never heard of again. With `each` every one of them
    makes calls (as a row of its own), one run after the other."""
    number = 0
    for minute, started in enumerate(row["spawns"]):
        begun_us = START_US + minute * MINUTE_US
        for earlier in range(number if row.get("live") else 0):
            yield _child(row, earlier, begun_us, Kind.MODEL)
        for nth in range(started):
            spawned = _child(row, number, begun_us + nth * MINUTE_US // started, Kind.SPAWN)
            yield spawned
            for step in _run(row["each"]) if "each" in row else ():
                yield replace(
                    step,
                    at_us=spawned.at_us + step.at_us - START_US,
                    run=spawned.run,
                    root=spawned.root,
                    depth=spawned.depth,
                    human=spawned.call_id.encode() if step.human else b"",
                )
            number += 1


def _child(row: Row, number: int, at_us: int, kind: Kind) -> Step:
    depth = number + 1 if row.get("nested") else 1
    return Step(at_us, kind, f"s{number}", f"r1.{number}", "r1", "acme", depth=depth)


def _fleet(row: Row) -> Iterator[Step]:
    """Runs that each make the same write to the same recipient."""
    for number in range(row["runs"]):
        at_us = START_US + round(number * row["every_seconds"] * 1_000_000)
        action, recipient = _hash(b"pay"), _hash(b"to")
        yield Step(
            at_us, Kind.TOOL, f"c{number}", f"r{number}", f"r{number}", "acme", tool="pay",
            action=action, recipient=recipient, result=_hash(b"ok"), is_write=True,
        )  # fmt: skip


def _arguments(kind: str, number: int) -> str:
    if kind.startswith("cycle"):
        return f'{{"id":"item-{number % int(kind.split()[1])}"}}'
    if kind.startswith("number"):
        return f'{{"customer":{int(kind.split()[1]) + number}}}'
    noise = _hash(str(number).encode()).hex()[:HEX]
    return {
        "same": '{"id":"item-1"}',
        "new": f'{{"id":"item-{number}"}}',
        "nonce": f'{{"id":"item-1","nonce":"{noise}","timestamp":{START_US // 10**6 + number}}}',
        "opaque": f'{{"id":"item-1","zork":"{noise}"}}',
    }[kind]


def _result(kind: str, number: int, at_us: int) -> str:
    if kind.startswith("turns "):
        return f"timed out after 100{number % int(kind.removeprefix('turns '))} ms"
    noise = _hash(str(number).encode()).hex()
    word = noise[:12].translate(str.maketrans("abcdef", "uvwxyz")) + "k7"
    return {
        "opaque": f'{{"items":[],"status":"pending","zork":"{word}"}}',
        "cursor": f'{{"items":[],"status":"pending","cursor":"{word}"}}',
        "piece": f'{{"status":"pending","chunk":"{word}"}}',
        "same": '{"items":[],"status":"pending"}',
        "new": f'{{"items":["line {number}"],"status":"pending"}}',
        "clock": f'{{"status":"pending","now":{at_us / 1e6},"request_id":"req_{noise[:9]}",'
        f'"trace":"{noise[:32]}"}}',
    }[kind]


def _hash(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _step(at_us: int, kind: Kind, call_id: str, **rest: Any) -> Step:
    return Step(at_us, kind, call_id, "r1", "r1", **rest)
