"""config/runbook.yaml -> Book. All mistakes are told at once, each by line and column."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from policies import document
from policies.document import Document, Location, Mistake, MistakenFileError
from policies.mistakes import suggestion, validated
from policies.runbook import (
    ALWAYS,
    COUNTS,
    EVIDENCE,
    FACTS,
    FLAGS,
    PLACE,
    PLACES,
    SAID,
    TEXT,
    WORDS,
    Asked,
    Book,
    Branch,
    Condition,
    Step,
    Value,
)
from policies.schema_runbook import BranchRule, RunbookFile, StepRule

PROGRAM = "pullcord"
_ENDS = ("at_least", "at_most")

Checked = Callable[[Sequence[str]], str]
"""What is wrong with the words of a command behind `pullcord`; empty for nothing."""


def load(text: str, source: str, checked: Checked = lambda _: "") -> Book:
    """Compile the text of a runbook; `source` is how its author calls it. Raises
    MistakenFileError, with one line for each mistake."""
    read = document.parse(text, source)
    file, mistakes = validated(RunbookFile, read, {"version": 1, "start": [], "steps": {}})
    mistakes += read.mistakes
    if file is None:
        raise MistakenFileError(source, mistakes)
    read = replace(read, mistakes=tuple(mistakes))
    compiler = _Compiler(file, read, checked)
    book = compiler.book(source)
    mistakes += compiler.mistakes
    if mistakes:
        raise MistakenFileError(source, mistakes)
    return book


class _Compiler:
    """Turns the checked file into a Book and collects what is wrong with it as a whole."""

    def __init__(self, file: RunbookFile, read: Document, checked: Checked) -> None:
        self.file = file
        self.read = read
        self.checked = checked
        self.names = read.keys(("steps",))
        self.mistakes: list[Mistake] = []

    def book(self, source: str) -> Book:
        start = self.branches(self.file.start, ("start",))
        steps = {name: self.step(name, rule) for name, rule in self.file.steps.items()}
        book = Book(source, start, steps)
        if not self.mistakes and not self.read.mistakes:
            self.mistakes += _circles(book, self.read)
            self.mistakes += _unreached(book, self.read)
        return book

    def step(self, name: str, rule: StepRule) -> Step:
        here: Location = ("steps", name)
        for place, shown in enumerate(rule.show):
            if shown not in EVIDENCE:
                hint = suggestion(shown, list(EVIDENCE)) or f"; there is {', '.join(EVIDENCE)}"
                self.wrong((*here, "show", place), f"{shown!r} is nothing that can be shown{hint}")
        until = None if rule.until is None else self.condition(rule.until, (*here, "until"))
        return Step(
            name=name,
            title=rule.title,
            why=rule.why,
            when=self.condition(rule.when, (*here, "when")),
            until=until,
            show=tuple(rule.show),
            run=self.command(rule.run, (*here, "run")),
            next=self.branches(rule.next, (*here, "next")),
        )

    def branches(self, rules: Sequence[BranchRule], here: Location) -> tuple[Branch, ...]:
        for place, rule in enumerate(rules):
            if rule.step not in self.names:
                hint = suggestion(rule.step, self.names)
                self.wrong((*here, place, "step"), f"there is no step {rule.step!r}{hint}")
            is_last = place == len(rules) - 1
            if is_last and rule.when is not None:
                text = "the last branch has no condition, or the walk could end here unseen"
                self.wrong((*here, place), text)
            if not is_last and rule.when is None:
                text = "what follows this branch is never taken: it has no when"
                self.wrong((*here, place), text)
        return tuple(
            Branch(rule.step, self.condition(rule.when, (*here, place, "when")))
            for place, rule in enumerate(rules)
        )

    # Conditions

    def condition(self, stated: object, here: Location) -> Condition:
        if stated is None:
            return ALWAYS
        groups = stated if isinstance(stated, list) else [stated]
        if not groups or not all(isinstance(group, dict) and group for group in groups):
            self.wrong(here, f"must be facts and what each has to be, such as {_EXAMPLE}")
            return ALWAYS
        return Condition(
            tuple(
                tuple(self.asked(group, (*here, place) if isinstance(stated, list) else here))
                for place, group in enumerate(groups)
            )
        )

    def asked(self, group: Mapping[str, object], here: Location) -> Iterator[Asked]:
        for fact, value in group.items():
            place = (*here, fact)
            if fact == SAID and here[2:3] == ("until",):
                yield self.values(fact, value, place)
            elif fact not in FACTS:
                hint = suggestion(fact, list(FACTS)) or f"; there is {', '.join(FACTS)}"
                self.wrong(place, f"there is no fact {fact!r}{hint}", of_key=True)
            elif fact in COUNTS:
                yield self.count(fact, value, place)
            else:
                yield self.values(fact, value, place)

    def values(self, fact: str, stated: object, here: Location) -> Asked:
        is_flag = fact in FLAGS or fact == SAID
        known: tuple[Value, ...] = (True, False) if is_flag else WORDS[fact]
        found: list[Any] = stated if isinstance(stated, list) else [stated]
        if is_flag:
            wanted, right = "true or false", all(isinstance(value, bool) for value in found)
        else:
            wanted, right = f"one of {', '.join(WORDS[fact])}", all(v in known for v in found)
        if not found or not right:
            near = suggestion(stated, list(WORDS.get(fact, ()))) if isinstance(stated, str) else ""
            self.wrong(here, f"{fact!r} must be {wanted}{near}")
        return Asked(fact, tuple(found))

    def count(self, fact: str, stated: object, here: Location) -> Asked:
        ends: dict[Any, Any] = stated if isinstance(stated, dict) else dict.fromkeys(_ENDS, stated)
        is_count = all(type(end) is int and end >= 0 for end in ends.values())
        if not ends or set(ends) - set(_ENDS) or not is_count:
            self.wrong(here, f"{fact!r} must be a whole number, or {{at_least: 1}}, {{at_most: 5}}")
            return Asked(fact)
        return Asked(fact, (), ends.get("at_least"), ends.get("at_most"))

    # Commands

    def command(self, stated: str, here: Location) -> tuple[str, ...]:
        try:
            words = tuple(shlex.split(stated))
        except ValueError:
            self.wrong(here, "an open quote")
            return ()
        if not words:
            return ()
        if words[0] != PROGRAM or len(words) == 1:
            self.wrong(here, f"must be a command of pullcord: {PROGRAM} COMMAND")
        unknown = [name for name in PLACE.findall(stated) if name not in PLACES]
        for name in unknown:
            hint = suggestion(name, list(PLACES)) or f"; there is {', '.join(PLACES)}"
            self.wrong(here, f"there is no place {{{name}}}{hint}")
        if "{" in (rest := PLACE.sub("", stated)) or "}" in rest:
            self.wrong(here, "a brace that is no place; places are written {incident}")
        if any(f"{{{TEXT}}}" in word and word != f"{{{TEXT}}}" for word in words):
            self.wrong(here, f"{{{TEXT}}} stands alone, between blanks")
        wrong = "" if unknown or words[0] != PROGRAM else self.checked(words[1:])
        if wrong:
            self.wrong(here, wrong)
        return words

    def wrong(self, location: Location, text: str, *, of_key: bool = False) -> None:
        self.mistakes.append(self.read.at(location, text, of_key=of_key))


_EXAMPLE = "{contained: false, unknown_writes: {at_least: 1}}"


def _circles(book: Book, read: Document) -> Iterator[Mistake]:
    """Each way back into a step that led there."""
    left: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> Iterator[Mistake]:
        if name in left:
            return
        for place, branch in enumerate(book.steps[name].next):
            if branch.step in (*path, name):
                circle = [*path, name][[*path, name].index(branch.step) :]
                text = f"the steps lead in a circle: {', '.join([*circle, branch.step])}"
                yield read.at(("steps", name, "next", place, "step"), text)
            else:
                yield from visit(branch.step, (*path, name))
        left.add(name)

    for name in book.steps:
        yield from visit(name, ())


def _unreached(book: Book, read: Document) -> Iterator[Mistake]:
    led_to = {branch.step for step in book.steps.values() for branch in step.next}
    led_to |= {branch.step for branch in book.start}
    for name in book.steps:
        if name not in led_to:
            text = f"no step leads to {name!r}, and it is no start"
            yield read.at(("steps", name), text, of_key=True)
