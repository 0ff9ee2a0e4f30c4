"""Which members of a tool's answers change at every repeat of one and the same call while all else
stays: request ids under names that nobody knows. From then on they do not count.

It is learned only of what can hardly be news: a short word of letters and digits, as long each time
and never the same, in an object that has other members, under a name that tells nothing of content.
Numbers, texts and what is in lists are never learned away: a progress bar moves, too. What is
learned is of this process and of one tool; each process learns for itself, which delays a finding.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import orjson

from policies.detectors import volatile
from policies.detectors.answers import Path, without

TOOLS_MAX = 128
ACTIONS_MAX = 16  # of one tool, the newest
MEMBERS_MAX = 16  # that may be such words in one answer
LEARNED_MAX = 8  # of one tool
DIFFERENT = 5  # answers in a row, each with another word, before a member is learned
ANSWER_BYTES_MAX = 16 * 1024  # of a longer answer nothing is learned
DEPTH_MAX = 3

_WORD = re.compile(r"(?=[A-Za-z_:.+/=-]*[0-9])(?=[0-9_:.+/=-]*[A-Za-z])[A-Za-z0-9_:.+/=-]{6,64}")
# Names that may tell of something new: where in a list, which version, what came.
_TELLING = re.compile(
    r"cursor|next|page|offset|position|version|revision|commit|sha|hash|etag|digest|head|last|newest"
    r"|latest|chunk|data|content|output|text|body|value|status|state|stage|step|phase|progress|line"
    r"|name|message|event|order|item|job|task|run|record|object|build|deploy|file|key|result|code"
    r"|total|count|amount|balance|price|^_?id$",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Repeats:
    """Of one call: what came last, and which words were different each time since when."""

    digest: bytes
    rest: bytes = b""
    words: dict[Path, str] = field(default_factory=dict)
    earlier: dict[Path, set[str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Tool:
    learned: frozenset[Path] = frozenset()
    actions: OrderedDict[bytes, _Repeats] = field(default_factory=OrderedDict)


class Learned:
    """Fed with every answer. What was not used for longest is forgotten."""

    def __init__(self) -> None:
        self._tools: OrderedDict[str, _Tool] = OrderedDict()

    def left_out(self, tool: str) -> frozenset[Path]:
        """The members of this tool's answers that do not count."""
        known = self._tools.get(tool)
        return known.learned if known is not None else frozenset()

    def feed(
        self, tool: str, action: bytes, digest: bytes, read: Callable[[], dict[str, object] | None]
    ) -> None:
        """An answer's digest. `read` gives the answer; it is asked only where a call was repeated
        and brought something else than last time."""
        known = _newest(self._tools, tool, _Tool, TOOLS_MAX)
        repeats = known.actions.get(action)
        if repeats is None:
            _newest(known.actions, action, lambda: _Repeats(digest), ACTIONS_MAX)
            return
        known.actions.move_to_end(action)
        if repeats.digest == digest:
            repeats.earlier.clear()
            return
        repeats.digest = digest
        message = read() if len(known.learned) < LEARNED_MAX else None
        if message is not None:
            changed = _changed(repeats, message, known.learned)
            known.learned |= frozenset(changed[: LEARNED_MAX - len(known.learned)])


def _newest[Key, Value](
    known: OrderedDict[Key, Value], key: Key, make: Callable[[], Value], most: int
) -> Value:
    value = known.get(key)
    if value is None:
        value = known[key] = make()
        if len(known) > most:
            known.popitem(last=False)
    else:
        known.move_to_end(key)
    return value


def _changed(repeats: _Repeats, message: dict[str, object], learned: frozenset[Path]) -> list[Path]:
    """The members that have changed often enough now."""
    before, words = repeats.words, dict(islice(_words(message, ()), MEMBERS_MAX))
    kept = without(message, {*words, *learned})
    try:
        rest = hashlib.sha256(volatile.of_result(orjson.dumps(kept))).digest()
    except orjson.JSONEncodeError:  # nested too deeply to be written
        return []
    alike = kept and rest == repeats.rest and words.keys() == before.keys()
    repeats.words, repeats.rest = words, rest
    if not alike:  # something else moved: this is no mere repeat
        repeats.earlier.clear()
        return []
    often: list[Path] = []
    for path, word in words.items():
        earlier = repeats.earlier.setdefault(path, {before[path]})
        if word in earlier or len(word) != len(before[path]):
            del repeats.earlier[path]
            continue
        earlier.add(word)
        if len(earlier) >= DIFFERENT:
            often.append(path)
            del repeats.earlier[path]
    return often


def _words(message: dict[str, object], above: Path) -> Iterator[tuple[Path, str]]:
    """Members that may be such words."""
    for name, member in message.items():
        if isinstance(member, str):
            if _WORD.fullmatch(member) and not _TELLING.search(name):
                yield (*above, name), member
        elif isinstance(member, dict) and len(above) + 1 < DEPTH_MAX:
            yield from _words(member, (*above, name))
