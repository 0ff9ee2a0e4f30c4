"""The runs of data/dev.jsonl.gz as steps for the detectors, and what each run is known to be."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from policies.detectors.step import Kind, Step

FILE = Path(__file__).with_name("data") / "dev.jsonl.gz"
SECONDS_A_CALL = 2.0  # of traces without times
# Micro-dollars a token of Claude Code, as listed then: input, output, cache write, cache read.
PRICES = {"in": 5.0, "out": 25.0, "cw": 6.25, "cr": 0.5}
SAID_IN_A_ROW = 3


class Class(StrEnum):
    HEALTHY = "healthy"
    LOOP = "loop"
    ERRORS = "errors"
    GREY = "grey"
    SOFT_LOOP = "soft loop"
    NO_SOFT_LOOP = "no soft loop"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    known: Class
    steps: tuple[Step, ...]

    @property
    def calls(self) -> int:
        return sum(step.kind is Kind.TOOL for step in self.steps)

    @property
    def onset(self) -> int:
        """The tool call at which the longest row of one and the same call begins."""
        best, begun, length, calls, last = (0, 0), 0, 0, 0, b""
        for step in self.steps:
            if step.kind is not Kind.TOOL:
                continue
            length, begun = (length + 1, begun) if step.action == last else (1, calls)
            best, last, calls = max(best, (length, -begun)), step.action, calls + 1
        return -best[1]


def read() -> list[Trace]:
    """Every run with tool calls, in the order of the file."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            runs.setdefault((row["source"], row["run"]), []).append(row)
    traces = [Trace(name, _known(rows), tuple(_steps(rows))) for (_, name), rows in runs.items()]
    return [trace for trace in traces if trace.calls]


def _known(rows: list[dict[str, Any]]) -> Class:
    label = rows[0]["label"]
    if rows[0]["source"].startswith("who"):
        return _soft(rows)
    if label.get("termination") == "max_steps":
        return Class.LOOP
    if label.get("termination") == "too_many_errors":
        return Class.ERRORS
    done = label.get("outcome") == "committed" or label.get("reward") == 1
    return Class.HEALTHY if done else Class.GREY


def _soft(rows: list[dict[str, Any]]) -> Class:
    said = [row["label"]["is_in_loop"] for row in rows if "is_in_loop" in row["label"]]
    longest = length = 0
    for is_in_loop in said:
        length = length + 1 if is_in_loop else 0
        longest = max(longest, length)
    if not said or 0 < longest < SAID_IN_A_ROW:
        return Class.MIXED
    return Class.SOFT_LOOP if longest else Class.NO_SOFT_LOOP


def _steps(rows: list[dict[str, Any]]) -> Iterator[Step]:
    seconds, turn, before = 0.0, None, "human"
    for row in rows:
        seconds += SECONDS_A_CALL
        at_us = round((seconds if row["t"] is None else row["t"]) * 1_000_000)
        if row["kind"] == "handoff":
            continue
        is_model = row["kind"] == "llm"
        # A model's answer without a tool call goes to the simulated person, who answers.
        is_new = is_model and before != "tool" and row["source"].startswith("tau")
        if "turn" in row and is_model:
            is_new, turn = row["turn"] != turn, row["turn"]
        before = row["kind"]
        yield Step(
            at_us,
            Kind.MODEL if is_model else Kind.TOOL,
            str(row["step"]),
            row["run"],
            row["run"],
            tool=row["tool"],
            action=b"" if is_model else f"{row['tool']}:{row['args_hash']}".encode(),
            result=(row["result_digest"] or "").encode(),
            is_write=row["is_write"],
            is_ok=not row.get("error"),
            human=str(row["step"]).encode() if is_new else b"",
            spend_microusd=_spent(row),
        )


def _spent(row: dict[str, Any]) -> int:
    if row.get("cost"):
        return round(row["cost"] * 1_000_000)
    usage = row.get("usage") or {}
    return round(sum((usage.get(name) or 0) * price for name, price in PRICES.items()))
