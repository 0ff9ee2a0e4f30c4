"""What is known of a call's secrets, to be found by value as well. Pure, and bounded in steps.

Which texts are secrets is said in masking.py.
"""

import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from urllib.parse import quote, quote_plus

VALUES_MAX = 100  # spellings of secrets of one call that are looked for everywhere in it
CALLS_MAX = 2_000  # whose secrets are remembered, to be found again in the answer

# Shorter ones stand everywhere by chance: a PIN of six digits is also an amount.
_VALUE_CHARS_MIN, _DIGITS_MIN, _VALUE_CHARS_MAX = 6, 9, 4_096
_COMMON = frozenset({"bearer", "default", "disabled", "enabled", "private", "public", "required",
                     "string", "unknown"})  # fmt: skip
_NEEDLE_CHARS = 16  # a value is looked for by its beginning: no text makes looking for that slow
_LOOKED_A_STEP = 1_024  # characters of text, each for one beginning

Step = Callable[[int], None]


class Known:
    """The secrets of one call that were found under their names."""

    __slots__ = ("_marks", "_needles")

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}
        self._needles: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, value: str, shown: str) -> bool:
        """Whether it is new, and worth to be looked for."""
        least = _DIGITS_MIN if value.isdigit() else _VALUE_CHARS_MIN
        is_worth = least <= len(value) <= _VALUE_CHARS_MAX
        if not is_worth or value.lower() in _COMMON or value in self._marks:
            return False
        if len(self._marks) >= VALUES_MAX:
            return False
        for spelled in _spellings(value):
            if spelled not in self._marks:
                self._marks[spelled] = shown
                self._needles.setdefault(spelled[:_NEEDLE_CHARS], []).append(spelled)
        return True

    def since(self, count: int) -> list[str]:
        """What was added after there were so many."""
        return list(islice(self._marks, count, None))

    def masked(self, text: str, step: Step) -> str:
        """The text without any of them. `step` is told how many steps it took."""
        if not self._needles:
            return text
        step(len(text) * len(self._needles) // _LOOKED_A_STEP)
        spans: list[tuple[int, int, str]] = []
        for needle, values in self._needles.items():
            if needle in text:
                spans += _spans(text, needle, values, step)
        if not spans:
            return text
        out, end = [], 0
        for start, stop, value in sorted(spans, key=lambda span: (span[0], -span[1])):
            if start >= end:
                out += [text[end:start], self._marks[value]]
            end = max(end, stop)
        return "".join((*out, text[end:]))


def times(text: str, values: Sequence[str], step: Step) -> int:
    """How often any of these stands in the text."""
    step(len(text) * len(values) // _LOOKED_A_STEP)
    return sum(len(_spans(text, value[:_NEEDLE_CHARS], [value], step)) for value in values)


def _spans(text: str, needle: str, values: list[str], step: Step) -> list[tuple[int, int, str]]:
    """Where the longest of the values that begin so stands, each with its end."""
    found = []
    at = text.find(needle)
    while at >= 0:
        step(len(values))
        here = [value for value in values if text.startswith(value, at)]
        here = [value for value in here if _is_whole(text, at, value)]
        if here:
            longest = max(here, key=len)
            found.append((at, at + len(longest), longest))
        at = text.find(needle, found[-1][1] if here else at + 1)
    return found


def _is_whole(text: str, at: int, value: str) -> bool:
    """A number is no part of a longer one."""
    if not value.isdigit():
        return True
    end = at + len(value)
    return not (text[at - 1 : at].isdecimal() or text[end : end + 1].isdecimal())


def _spellings(value: str) -> Iterable[str]:
    """The value, and as JSON, forms and URLs write it, and Basic credentials hide it."""
    once = json.dumps(value, ensure_ascii=False)[1:-1]
    ascii_only = json.dumps(value)[1:-1]
    raw = value.encode("utf-8", "surrogatepass")
    found = {value, once, ascii_only, json.dumps(once, ensure_ascii=False)[1:-1]}
    found |= {quote(raw, safe=""), quote_plus(raw), quote(raw)}
    coded = base64.b64encode(raw).decode().rstrip("=")[:-1]
    if len(coded) >= 8:
        found.add(coded)
    return found


class Remembered:
    """The calls whose secrets are known. Where there are too many, the run that has most of them
    forgets its oldest, so that no run makes another forget."""

    def __init__(self) -> None:
        self._runs: dict[str, OrderedDict[str, Known]] = {}
        self._count = 0

    def of(self, run: str, call_id: str) -> Known:
        """What is known of the call; nothing yet, of a new one."""
        calls = self._runs.get(run)
        return (calls and calls.get(call_id)) or Known()

    def keep(self, run: str, call_id: str, known: Known) -> None:
        calls = self._runs.setdefault(run, OrderedDict())
        self._count += call_id not in calls
        calls[call_id] = known
        if self._count > CALLS_MAX:
            most = max(self._runs, key=lambda each: len(self._runs[each]))
            self._runs[most].popitem(last=False)
            self._count -= 1
            if not self._runs[most]:
                del self._runs[most]
