"""The runbook as a decision tree: facts about an incident in, the steps that it takes out.

Pure: nothing is looked up here. The file is read by load_runbook.py; where facts, evidence and the
values of places come from is proxy/runbook.py.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from policies.verdict import Scope

FLAGS = ("contained", "acked", "closed", "proven", "waived")
"""Facts that are true or false. `contained`: a halt or a freeze stands over what it is about."""
WORDS: Mapping[str, tuple[str, ...]] = {
    "kind": tuple(Scope),
    "severity": ("alert", "trip"),
    "release": ("none", "known_good", "other"),  # those of the calls, one that is not good first
}
COUNTS = (
    *("cords_standing", "effects_after_pull", "calls", "writes", "unknown_writes"),
    *("reversible_writes", "compensable_writes", "irreversible_writes", "undeclared_writes"),
    *("undone_writes", "left_to_undo", "runs_affected", "tenants_affected"),
    *("told_tenants", "left_to_tell"),
)
"""Facts that are numbers. `left_to_undo` are compensable writes that are done and that nobody has
undone, `left_to_tell` tenants that its writes reached and to which no message went."""
FACTS = (*FLAGS, *WORDS, *COUNTS)
EVIDENCE = (
    *("incident", "cords", "calls", "affected", "first_bad_call", "writes", "reversibility"),
    *("value_at_risk", "prevented", "undone", "told", "releases", "test"),
)
"""What a step can show of the ledger."""
TEXT = "text"
PLACES = ("incident", "run", "tool", "tenant", "release", "call", "unknown_call", TEXT)
"""What can be filled into a command. `run` is the root of the tree; `call` the first bad call,
`unknown_call` the oldest write of unknown outcome; `text` is asked for when it is run."""
SKIPPED = "skipped"
SAID = "said"
"""Not of the incident, but of the step itself, in `until`: somebody says that it is done."""

PLACE = re.compile(r"\{([^{}]*)\}")

Value = bool | int | str
Facts = Mapping[str, Value | None]
"""By name; one that is missing or None is not known."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of one fact: to be one of `values`, or a number within both ends."""

    fact: str
    values: tuple[Value, ...] = ()
    at_least: int | None = None
    at_most: int | None = None

    def holds(self, facts: Facts) -> bool | None:
        """None where the fact is not known."""
        value = facts.get(self.fact)
        if value is None:
            return None
        if self.values:
            return value in self.values
        number = int(value)
        return (self.at_least is None or number >= self.at_least) and (
            self.at_most is None or number <= self.at_most
        )

    def __str__(self) -> str:
        """For people: `kind is run or tool`, `unknown_writes is at least 1`."""
        if self.values:
            words = [str(value).lower() for value in self.values]
            return f"{self.fact} is {' or '.join(words)}"
        if self.at_least == self.at_most:
            return f"{self.fact} is {self.at_least}"
        ends = (("at least", self.at_least), ("at most", self.at_most))
        told = [f"{word} {end}" for word, end in ends if end is not None]
        return f"{self.fact} is {' and '.join(told)}"


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds when all of one of the groups does; without any, always."""

    groups: tuple[tuple[Asked, ...], ...] = ()

    def holds(self, facts: Facts) -> bool | None:
        """None where it hangs on a fact that is not known."""
        found = [_all(each.holds(facts) for each in group) for group in self.groups]
        return not found or (True if True in found else None if None in found else False)

    def unknown(self, facts: Facts) -> list[str]:
        """The facts that it hangs on and that are not known."""
        asked = [each.fact for group in self.groups for each in group]
        return [fact for fact in dict.fromkeys(asked) if facts.get(fact) is None]

    def __str__(self) -> str:
        return ", or ".join(" and ".join(map(str, group)) for group in self.groups) or "always"


ALWAYS = Condition()


@dataclass(frozen=True, slots=True)
class Branch:
    """Goes to that step where the condition holds."""

    step: str
    when: Condition = ALWAYS


@dataclass(frozen=True, slots=True)
class Step:
    """`run` are the words of the recommended command, with places; none where a person acts without
    pullcord. It is to be done where `when` holds; done when `until` does, whatever is recorded, and
    without an `until` when somebody says so. After it the first of `next` whose condition holds is
    taken, after none it ends."""

    name: str
    title: str
    why: str
    when: Condition = ALWAYS
    until: Condition | None = None
    show: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    next: tuple[Branch, ...] = ()


@dataclass(frozen=True, slots=True)
class Book:
    """`source` is the file, as its author calls it. No step leads back to itself."""

    source: str
    start: tuple[Branch, ...]
    steps: Mapping[str, Step]


class State(StrEnum):
    DONE = "done"
    SKIPPED = "skipped"
    NOT_NEEDED = "not_needed"
    TODO = "todo"


@dataclass(frozen=True, slots=True)
class Told:
    """What somebody recorded of a step. `at` is RFC 3339."""

    text: str
    actor: str
    at: str

    @property
    def is_skip(self) -> bool:
        return self.text.startswith(SKIPPED)


@dataclass(frozen=True, slots=True)
class Walked:
    """One step on the way. It is not certain that it is to be done where a fact is not known."""

    step: Step
    state: State
    told: Told | None
    is_certain: bool


def walk(book: Book, facts: Facts, told: Mapping[str, Told]) -> tuple[Walked, ...]:
    """The steps that an incident takes, in order; `told` is what is recorded of each by name.

    What is not known may be so: it leads on, and makes a step one to be done.
    """
    found = []
    branches = book.start
    while (step := _taken(book, branches, facts)) is not None:
        found.append(_walked(step, facts, told.get(step.name)))
        branches = step.next
    return tuple(found)


def to_do(steps: Iterable[Walked]) -> Walked | None:
    """The next safest action: the first step that is not done."""
    return next((each for each in steps if each.state is State.TODO), None)


def in_order(book: Book) -> Iterator[Step]:
    """All of its steps, each behind every one that leads to it."""
    seen: dict[str, None] = {}

    def visit(branches: tuple[Branch, ...]) -> None:
        for branch in reversed(branches):
            if branch.step not in seen:
                visit(book.steps[branch.step].next)
                seen[branch.step] = None

    visit(book.start)
    return (book.steps[name] for name in reversed(seen))


def _taken(book: Book, branches: tuple[Branch, ...], facts: Facts) -> Step | None:
    found = (each for each in branches if each.when.holds(facts) is not False)
    branch = next(found, None)
    return None if branch is None else book.steps[branch.step]


def _walked(step: Step, facts: Facts, told: Told | None) -> Walked:
    wanted = step.when.holds(facts)
    skipped = told is not None and told.is_skip
    facts = {**facts, SAID: told is not None and not skipped}
    reached = None if step.until is None else step.until.holds(facts)
    if reached or (told is not None and not skipped and (step.until is None or wanted is False)):
        state = State.DONE if told is not None or wanted is not False else State.NOT_NEEDED
        return Walked(step, state, told, is_certain=True)
    if skipped:
        return Walked(step, State.SKIPPED, told, is_certain=True)
    if wanted is False:
        return Walked(step, State.NOT_NEEDED, told, is_certain=True)
    is_certain = wanted is True and (step.until is None or reached is False)
    return Walked(step, State.TODO, told, is_certain)


def _all(found: Iterable[bool | None]) -> bool | None:
    values = list(found)
    return False if False in values else None if None in values else True


# ---------------------------------------------------------------------------------- commands


def missing(run: tuple[str, ...], places: Mapping[str, str]) -> list[str]:
    """The places of a command for which there is no value, `text` left out."""
    named = [place for word in run for place in PLACE.findall(word) if place != TEXT]
    return [place for place in dict.fromkeys(named) if not _is_usable(places, place)]


def command(run: tuple[str, ...], places: Mapping[str, str]) -> str:
    """What a person types. A place without a value stands in capitals, `text` as three dots."""

    def word(template: str) -> str:
        if template == f"{{{TEXT}}}":
            return '"..."'
        return shlex.quote(PLACE.sub(value, template))

    def value(place: re.Match[str]) -> str:
        name = place[1]
        return places[name] if _is_usable(places, name) else name.upper()

    return " ".join(map(word, run))


def words(run: tuple[str, ...], places: Mapping[str, str], text: str) -> list[str]:
    """What is run: the words behind `pullcord`. Raises ValueError for a command with a gap."""
    gaps = missing(run, places)
    if gaps:
        raise ValueError(f"nothing is known to fill in for {', '.join(gaps)}")
    filled = {**places, TEXT: text}
    return [PLACE.sub(lambda place: filled[place[1]], word) for word in run[1:]]


def _is_usable(places: Mapping[str, str], place: str) -> bool:
    """A name that looks like an option would be taken for one."""
    value = places.get(place, "")
    return bool(value) and not value.startswith("-")
