"""What led to a call: what the model was asked and answered before it, and what came of that.

Read from the trace, where secrets are masked already. A model's words are found in whatever form
its API has; where none are found, the text stands as it was kept.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ledger import incident_calls
from ledger.queries import Row
from ledger.sqlite import sqlite3
from ledger.traced import Kept, Side
from policies.call import Effect
from policies.meter.picker import TEXT_KEYS
from proxy.traces import Traces, remark

DECISIONS_MAX = 8  # what a person reads; the others are a command away
READ_MAX = 4_000_000  # characters of one message that are looked through for its words
KEPT_MAX = 6_000  # characters of one text of a report

_TEXTS = TEXT_KEYS | {"output_text", "response", "generated_text"}
_LISTS = ("messages", "input", "contents")
_GIVEN = ("arguments", "input", "args")

Answer = dict[str, Any]


def chosen(first_bad: str, evidence: Sequence[str], others: Sequence[str]) -> list[str]:
    """The calls that are looked at: the first bad one, those that convinced, with the first and
    the last of these in any case, then others."""
    convincing = list(evidence)
    if len(convincing) >= DECISIONS_MAX:
        half = DECISIONS_MAX // 2
        convincing = convincing[: half - 1] + convincing[-half:]
    wanted = dict.fromkeys(one for one in (first_bad, *convincing, *others) if one)
    return list(wanted)[:DECISIONS_MAX]


def decisions(reader: sqlite3.Connection, traces: Traces, ids: Sequence[str]) -> list[Answer]:
    """Each of these calls with what led to it, the oldest first. Raises LedgerUnavailable."""
    calls = incident_calls.by_id(reader, ids)
    found = []
    for row in calls.values():
        is_model = row["effect"] == Effect.MODEL
        model = row["id"] if is_model else incident_calls.model_before(reader, row)
        found.append({
            "call": row,
            "model_call": model,
            "asked": "",
            "answered": "",
            "model_note": "",
            **({} if is_model else _exchange(traces, row)),
        })  # fmt: skip
    told = incident_calls.by_id(reader, [one["model_call"] for one in found if one["model_call"]])
    for model in told:
        words = _words(traces, told[model])
        for one in found:
            if one["model_call"] == model:
                one.update(words)
    return found


def _exchange(traces: Traces, row: Row) -> Answer:
    """What the call itself said and was answered."""
    shown = traces.of(row)
    request, response = shown.of(Side.REQUEST), shown.of(Side.RESPONSE)
    return {
        "request": request.start if request else "",
        "arguments": _body(request),
        "response": response.start if response else "",
        "answer": _body(response),
        "note": shown.note,
    }


def _body(kept: Kept | None) -> str:
    if kept is None:
        return ""
    said = remark(kept)
    return _short(kept.text or "") + (f"\n[{said}]" if said else "")


def _words(traces: Traces, row: Row) -> Answer:
    """The last thing that a model was asked, and all that it answered."""
    shown = traces.of(row)
    request, response = shown.of(Side.REQUEST), shown.of(Side.RESPONSE)
    return {
        "asked": "" if request is None else _short(asked(request.text or "")),
        "answered": "" if response is None else _short(answered(response.text or "")),
        "model_note": shown.note,
    }


def asked(text: str) -> str:
    """The last message of a request to a model, and how many there were."""
    body = _read(text)
    if not isinstance(body, dict):
        return text
    for name in _LISTS:
        messages = body.get(name)
        if isinstance(messages, list) and messages:
            last = messages[-1]
            role = last.get("role") if isinstance(last, dict) else None
            said = _joined(last)
            who = f"{role}: " if isinstance(role, str) else ""
            count = len(messages)
            return f"[message {count} of {count}] {who}{said}" if said else text
    prompt = body.get("prompt") or body.get("input")
    return prompt if isinstance(prompt, str) else _joined(body) or text


def answered(text: str) -> str:
    """What a model said, in words and in calls of tools."""
    body = _read(text)
    return (_joined(body) or text) if isinstance(body, dict | list) else text


def _read(text: str) -> Any:
    if len(text) > READ_MAX:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _joined(value: Any) -> str:
    try:
        return "\n".join(dict.fromkeys(_said(value)))  # a stream may tell a text twice
    except RecursionError:
        return ""


def _said(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            if not isinstance(each, str):
                yield from _said(each)
    elif isinstance(value, dict):
        given = next((value[name] for name in _GIVEN if value.get(name) is not None), None)
        if isinstance(value.get("name"), str) and given is not None:
            told = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
            yield f"calls {value['name']} with {told}"
            return
        for name, inner in value.items():
            if isinstance(inner, str):
                if name in _TEXTS and inner:
                    yield inner
            else:
                yield from _said(inner)


def _short(text: str) -> str:
    if len(text) <= KEPT_MAX:
        return text
    return f"{text[:KEPT_MAX]}\n[{len(text) - KEPT_MAX:,} more characters]"
