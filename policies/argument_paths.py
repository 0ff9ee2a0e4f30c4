"""The paths by which the policy names arguments, and the spellings that servers take for one name.

A path is dotted: `metadata.kind`; `items[].price` is that of every member of a list.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self
from unicodedata import normalize

SPELLED_CHARACTERS_MAX = 512  # of a name that is compared by what it comes to
STEPS_MAX = 6  # a name and five below it: some readers of forms go no deeper

_STEP = r"[A-Za-z_$@][A-Za-z0-9_$@:-]{0,63}(?:\[\])?"
_PATH = re.compile(rf"{_STEP}(?:\.{_STEP}){{0,{STEPS_MAX - 1}}}")
_MARKS = {place: None for place in range(128) if not chr(place).isalnum()}


class UnreadError(ValueError):
    """Why nobody can tell for certain what stands at a path."""


class Step(NamedTuple):
    name: str
    listed: bool


class Place(NamedTuple):
    """A path, taken apart. `alike` has, for each of its steps, what the names beside it must not
    come to: that step, or several from it on written as one."""

    steps: tuple[Step, ...]
    alike: tuple[frozenset[str], ...]

    @classmethod
    def of(cls, path: str) -> Self:
        parts = path.split(".")
        steps = tuple(Step(part.removesuffix("[]"), part.endswith("[]")) for part in parts)
        return cls(steps, tuple(_alike(steps[begin:]) for begin in range(len(steps))))

    @property
    def whole(self) -> str:
        return "".join(squashed(step.name) for step in self.steps)


def _alike(steps: Iterable[Step]) -> frozenset[str]:
    joined, found = "", set()
    for step in steps:
        joined += squashed(step.name)
        found.add(joined)
    return frozenset(found)


def checked(path: str) -> str:
    """A path as the policy may write it. Raises ValueError with a sentence for its author."""
    if not _PATH.fullmatch(path):
        raise ValueError(
            "must be names with dots between them, such as metadata.kind or items[].price, at most "
            f"{STEPS_MAX} deep"
        )
    return path


def squashed(name: str) -> str:
    """What is left of a name when case, marks and blanks do not count.

    `unitAmount`, `unit_amount`, `Unit Amount` and full-width letters come to one: some server takes
    each for the other. Raises UnreadError for a name that would take long: one letter may stand for
    eighteen.
    """
    if not name.isascii():
        if len(name) > SPELLED_CHARACTERS_MAX:
            raise UnreadError("a name beside it is too long to be compared")
        name = normalize("NFKC", name).casefold()
        return "".join(c for c in name if c.isalnum()) or name
    return name.translate(_MARKS).lower() or name


def check_spellings(names: Mapping[str, Iterable[str]], name: str, alike: frozenset[str]) -> None:
    """`names` are those that stand in one place, by what they come to. Raises UnreadError where one
    beside `name` may be taken for it."""
    for form in alike:
        if any(other != name for other in names.get(form, ())):
            raise UnreadError("another spelling of its name stands beside it")
