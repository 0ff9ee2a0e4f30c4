"""Steps of made-up runs, from the rows of tests/cases/detectors.yaml."""

import hashlib
from collections.abc import Iterator
from typing import Any

from policies.detectors import volatile
from policies.detectors.step import Kind, Step

START_US = 1_795_000_000_000_000
HEX = 16


def steps(row: dict[str, Any]) -> Iterator[Step]:
    """A human's word, then the calls. Each argument and answer is text, hashed as live ones are."""
    pace = row["every_seconds"]
    paces = pace if isinstance(pace, list) else [pace]
    at_us = START_US
    yield _step(at_us, Kind.MODEL, "m", human=b"%d" % at_us)
    for number in range(row["count"]):
        at_us += round(paces[number % len(paces)] * 1_000_000)
        if "model" in row:
            spent = round(row["model"] * 1_000_000)
            yield _step(at_us - 1000, Kind.MODEL, f"m{number}", spend_microusd=spent)
        between = row.get("between") == "write" and number % 2
        asked = _arguments(row.get("arguments", "same"), number)
        asked += f" edit {number}" if between else ""
        said = _result(row.get("result", "same"), number, at_us)
        yield _step(
            at_us,
            Kind.TOOL,
            f"c{number}",
            tool="tool",
            action=_hash(volatile.of_arguments(asked.encode())),
            result=_hash(volatile.of_result(said.encode())),
            is_write=bool(between) or row.get("effect") == "write",
            is_ok=row.get("ok", True),
        )


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
    noise = _hash(str(number).encode()).hex()
    return {
        "same": '{"items":[],"status":"pending"}',
        "new": f'{{"items":["line {number}"],"status":"pending"}}',
        "clock": f'{{"status":"pending","now":{at_us / 1e6},"request_id":"req_{noise[:9]}",'
        f'"trace":"{noise[:32]}"}}',
    }[kind]


def _hash(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _step(at_us: int, kind: Kind, call_id: str, **rest: Any) -> Step:
    return Step(at_us, kind, call_id, "r1", "r1", **rest)
