"""Which entry of a price list a model's name means: the list's own rules, looked up by index.

Rules: `equals`, `starts_with`, `ends_with`, `contains`, `regex`, any of which is enough, and `all`,
a list of rules that must hold together. The first entry that matches counts. A look-up takes as
long as the name is long; only the entries that share a piece with the name are looked at.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

NAME_CHARACTERS_MAX = 256  # a longer name of a model is nobody's

_LITERAL = re.compile(r"\^((?:[a-z0-9:/_@ -]|\\[.\-/])+)")
_HEAD_CHARACTERS = 3  # of what a name contains, by which it is looked for
_REPEATED = frozenset("?*{|")


@dataclass(frozen=True, slots=True)
class Rule:
    """What a name must be like. All texts are lower case, as the names that are compared."""

    equals: frozenset[str] = frozenset()
    starts_with: tuple[str, ...] = ()
    ends_with: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    regex: tuple[re.Pattern[str], ...] = ()
    together: tuple["Rule", ...] = ()

    @staticmethod
    def read(raw: Mapping[str, object]) -> "Rule":
        """Raises ValueError for a rule that is none, `re.error` for a broken expression."""
        if unknown := raw.keys() - {
            "equals", "starts_with", "ends_with", "contains", "regex", "all",
        }:  # fmt: skip
            raise ValueError(f"unknown rules for a model's name: {', '.join(sorted(unknown))}")
        together = raw.get("all", [])
        if not isinstance(together, list):
            raise ValueError("`all` is a list of rules")
        return Rule(
            equals=frozenset(_texts(raw, "equals")),
            starts_with=_texts(raw, "starts_with"),
            ends_with=_texts(raw, "ends_with"),
            contains=_texts(raw, "contains"),
            regex=tuple(re.compile(text) for text in _texts(raw, "regex", is_lower=False)),
            together=tuple(Rule.read(rule) for rule in together),
        )

    def matches(self, name: str) -> bool:
        return (
            name in self.equals
            or name.startswith(self.starts_with)
            or name.endswith(self.ends_with)
            or any(text in name for text in self.contains)
            or any(pattern.search(name) for pattern in self.regex)
            or (bool(self.together) and all(rule.matches(name) for rule in self.together))
        )


def _texts(raw: Mapping[str, object], kind: str, is_lower: bool = True) -> tuple[str, ...]:
    texts = raw.get(kind, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{kind}` is a list of texts")
    return tuple(text.lower() if is_lower else text for text in texts)


Table = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class NameIndex:
    """The rules of a price list's entries, in their order."""

    rules: tuple[Rule, ...]
    equal: Table = field(default_factory=dict)
    prefixes: Table = field(default_factory=dict)
    suffixes: Table = field(default_factory=dict)
    pieces: Table = field(default_factory=dict)
    lengths: dict[str, set[int]] = field(default_factory=dict)  # of the pieces that begin so
    always: list[int] = field(default_factory=list)  # no piece of a name leads to these

    @staticmethod
    def of(rules: Sequence[Rule]) -> "NameIndex":
        index = NameIndex(tuple(rules))
        for number, rule in enumerate(rules):
            index._enter(number, rule)
        return index

    def find(self, name: str) -> int | None:
        """The number of the first entry that matches; None if none does."""
        name = name.lower()
        if len(name) > NAME_CHARACTERS_MAX:
            return None
        candidates = sorted(set(self._candidates(name)))
        return next((number for number in candidates if self.rules[number].matches(name)), None)

    def _candidates(self, name: str) -> Iterator[int]:
        yield from self.always
        yield from self.equal.get(name, ())
        for end in range(len(name) + 1):
            yield from self.prefixes.get(name[:end], ())
            yield from self.suffixes.get(name[end:], ())
        for begin in range(len(name)):
            for length in self.lengths.get(name[begin : begin + _HEAD_CHARACTERS], ()):
                yield from self.pieces.get(name[begin : begin + length], ())

    def _enter(self, number: int, rule: Rule) -> None:
        tables: Iterable[tuple[Table, Iterable[str]]] = (
            (self.equal, rule.equals),
            (self.prefixes, rule.starts_with),
            (self.suffixes, rule.ends_with),
            (self.pieces, rule.contains),
        )
        for table, texts in tables:
            for text in texts:
                table.setdefault(text, []).append(number)
        if any(len(text) < _HEAD_CHARACTERS for text in rule.contains):
            self.always.append(number)
        for text in rule.contains:
            self.lengths.setdefault(text[:_HEAD_CHARACTERS], set()).add(len(text))
        for pattern in rule.regex:
            if literal := _beginning(pattern.pattern):
                self.prefixes.setdefault(literal, []).append(number)
            else:
                self.always.append(number)
        if rule.together:
            # What matches all of them matches the first.
            self._enter(number, rule.together[0])


def _beginning(pattern: str) -> str:
    """The text that all matches begin with, as far as it is plain; empty if there is none."""
    found = _LITERAL.match(pattern)
    if not found or "|" in pattern:
        return ""
    text = found[1].replace("\\", "")
    following = pattern[found.end() : found.end() + 1]
    return text[:-1] if following in _REPEATED and following else text
