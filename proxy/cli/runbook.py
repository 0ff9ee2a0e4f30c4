"""`runbook`: the steps that an incident takes, decided before the night; walked in a terminal."""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act, policy_or_none
from proxy.cli.places import config_option, config_or_none, data_directory, data_option
from proxy.cli.reading import reader
from proxy.cli.terminal import escaped, loud, say, say_json, warn

if TYPE_CHECKING:
    from ledger.sqlite import sqlite3
    from ledger.store import Store
    from policies.policy import Policy
    from policies.runbook import Book, Walked
    from proxy.walking import Page, Sheet

NOT_HERE = frozenset({"runbook", "run", "up", "demo"})  # they nest, or run what is not ours
_ASKED = "[r]un it / [d]one / [s]kip / [q]uit"
_BY_HAND = "[d]one / [s]kip / [q]uit"
_TEXT_CHARACTERS = 1_000  # as proxy/operations.py bounds it


@click.command(short_help="Walk through what to do about an incident.")
@click.argument("incident_id", metavar="[INCIDENT]", required=False)
@click.option("--print", "printed", is_flag=True, help="Print the whole walk, ask nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each step.")
@config_option
@data_option
def runbook(
    incident_id: str | None, printed: bool, as_json: bool, config: str | None, data: str | None
) -> None:
    """Walk through the runbook for INCIDENT, the newest open one if left out.

    Each step shows its evidence from the ledger and the recommended command, filled in; in a
    terminal it runs that command where you say so, and records what was done. The steps are those
    of runbook.yaml beside the policy, else the shipped ones. INCIDENT may be the start of an id.
    """
    root = click.get_current_context().find_root().command
    desk = _desk(root, data_directory(data, config), config)
    whole = desk.find(incident_id)
    if whole is None:
        _say_tree(desk.book, as_json)
    elif as_json:
        from proxy.walking import as_json as told

        for row in told(desk.look(whole)):
            say_json(row)
    elif printed or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _say_sheet(desk, desk.look(whole))
    else:
        _walk(desk, whole)


@dataclass(frozen=True, slots=True)
class _Desk:
    """What a walk is done with."""

    root: click.Command
    data: Path
    config: Path | None
    book: "Book"
    policy: "Policy | None"

    def find(self, start: str | None) -> str | None:
        """The whole id of the incident; None where none is named and none is open."""
        from ledger.incident_reads import listed
        from proxy.incidents import named

        with self.reading() as connection:
            if start is not None:
                return named(connection, start).id
            return next((one.id for one in listed(connection, 1)), None)

    def look(self, whole: str) -> "Sheet":
        """The walk as it is now."""
        from proxy.incidents import named
        from proxy.walking import look

        with self.reading() as connection:
            return look(connection, named(connection, whole), self.book, self.policy)

    def reading(self) -> "contextlib.AbstractContextManager[sqlite3.Connection]":
        return reader(self.data)

    def record(self, whole: str, step: str, text: str) -> None:
        """With the name of whoever types."""

        def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
            from proxy.incident_acts import stepped

            return stepped(store, whole, step, text, actor=actor, at_us=at_us)

        body = {"incident": whole, "step": step, "text": text}
        act(self.data, "/v1/incidents/step", body, directly)

    def run(self, words: Sequence[str]) -> int:
        """A command of pullcord itself, in this process and on the same data; its exit code."""
        with self._same_place():
            try:
                ended = self.root.main(list(words), prog_name="pullcord", standalone_mode=False)
            except click.ClickException as error:
                error.show()
                return error.exit_code
            except click.Abort:
                return 1
            except SystemExit as left:
                return left.code if isinstance(left.code, int) else int(left.code is not None)
        return ended if isinstance(ended, int) else 0

    @contextlib.contextmanager
    def _same_place(self) -> Iterator[None]:
        names = {"PULLCORD_DATA": self.data, "PULLCORD_CONFIG": self.config}
        before = {name: os.environ.get(name) for name in names}
        os.environ |= {name: str(place) for name, place in names.items() if place is not None}
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _desk(root: click.Command, data: Path, config: str | None) -> _Desk:
    from proxy.runbook import usable

    named = config_or_none(config)
    place = named and named.absolute()
    book, wrong = usable(place, _checked(root))
    if wrong:
        warn(f"{wrong}\nso the shipped one counts")
    return _Desk(root, data, place, book, policy_or_none(config))


def _checked(root: click.Command) -> Callable[[Sequence[str]], str]:
    """What is wrong with the words of a command, as far as that can be told before it runs."""

    def wrong(words: Sequence[str]) -> str:
        command, rest = root, list(words)
        while isinstance(command, click.Group):
            name = rest.pop(0) if rest else ""
            found = command.get_command(click.Context(command), name)
            if found is None or (command is root and name in NOT_HERE):
                near = get_close_matches(name, list(command.commands), n=1)
                hint = f"; did you mean {near[0]!r}?" if near and found is None else ""
                return f"{' '.join(words)!r} names no command that can be run here{hint}"
            command = found
        try:
            given, left, _ = command.make_parser(click.Context(command)).parse_args(rest)
        except click.UsageError as error:
            return error.format_message()
        if left:
            return f"{left[0]!r} is too much in {shlex.join(words)!r}"
        needed = [param for param in command.params if param.required]
        lacks = [param for param in needed if not given.get(param.name or "")]
        return f"it lacks {lacks[0].opts[0]}" if lacks else ""

    return wrong


# ---------------------------------------------------------------------------------- walking


@dataclass(slots=True)
class _Walk:
    """What was said and done on this walk, by the names of steps."""

    said: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    ran: dict[str, str] = field(default_factory=dict)


def _walk(desk: _Desk, whole: str) -> None:
    walk = _Walk()
    while True:
        sheet = desk.look(whole)
        page = _turn(walk, sheet)
        if page is None:
            say("the runbook is at its end")
            say(f"look at it: pullcord incident show {whole}")
            return
        _say_page(page)
        if not _act(desk, whole, sheet, page, walk):
            say(f"go on: pullcord runbook {whole}")
            return


def _turn(walk: _Walk, sheet: "Sheet") -> "Page | None":
    """The next step of this walk; those before it are told, once."""
    for page in sheet.pages:
        name, is_open = page.walked.step.name, page.walked.state == "todo"
        ran_in_vain = walk.ran.get(name) == page.command
        if is_open and name not in walk.passed and not ran_in_vain:
            return page
        if name in walk.said:
            continue
        walk.said.add(name)
        if is_open:
            warn(f"{name}: the ledger does not show it yet; {_wanted(page.walked)}")
        else:
            say(_passed(page.walked))
    return None


def _act(desk: _Desk, whole: str, sheet: "Sheet", page: "Page", walk: _Walk) -> bool:
    """Ask, and do what is said. False to go no further."""
    name = page.walked.step.name
    can_run = bool(page.command) and not page.gaps
    answer = _ask(_ASKED if can_run else _BY_HAND)
    if answer == "r" and can_run:
        _run(desk, whole, sheet, page, walk)
    elif answer in ("d", "s"):
        word = "done" if answer == "d" else "skipped"
        text = _ask("what was done" if answer == "d" else "why not")
        desk.record(whole, name, f"{word}: {text}"[:_TEXT_CHARACTERS] if text else word)
        walk.passed.add(name)
    elif answer == "q":
        return False
    return True


def _run(desk: _Desk, whole: str, sheet: "Sheet", page: "Page", walk: _Walk) -> None:
    from policies.runbook import TEXT, words

    step = page.walked.step
    text = ""
    while f"{{{TEXT}}}" in step.run and not text:
        text = _ask("text, for the record")
    typed = words(step.run, sheet.places, text)
    code = desk.run(typed)
    if code:
        warn(f"it ended with {code}, so the step is not recorded as done")
        return
    desk.record(whole, step.name, f"ran: {shlex.join(['pullcord', *typed])}"[:_TEXT_CHARACTERS])
    walk.ran[step.name] = page.command


def _ask(text: str) -> str:
    """What is typed; may be nothing. Raises click.Abort at its end."""
    answer: str = click.prompt(text, default="", show_default=False)
    return answer.strip()


# ---------------------------------------------------------------------------------- saying


def _say_sheet(desk: _Desk, sheet: "Sheet") -> None:
    from ledger.incidents import about_words

    to_do = sheet.to_do
    say(f"incident  {sheet.incident.id}  {sheet.incident.state}")
    say(f"about     {escaped(about_words(sheet.incident))}")
    say(f"runbook   {escaped(desk.book.source)}")
    for page in sheet.pages:
        if page.walked.state == "todo":
            _say_page(page, is_next=page is to_do)
        else:
            say(_passed(page.walked))
    say()
    if to_do is None:
        say(f"the runbook is at its end; look at it: pullcord incident show {sheet.incident.id}")
    else:
        say(f"next: {escaped(to_do.command) or f'pullcord runbook {sheet.incident.id}'}")


def _say_page(page: "Page", *, is_next: bool = True) -> None:
    step = page.walked.step
    say()
    say(f"{loud('NEXT') if is_next else 'to do'}  {step.name}: {escaped(step.title)}")
    if not page.walked.is_certain:
        say(f"  not known whether it is needed: {escaped(_wanted(page.walked))}")
    say(f"  why   {escaped(step.why)}")
    for line in page.evidence:
        say(f"  {escaped(line.said)}")
        if line.command:
            say(f"        {escaped(line.command)}")
    if page.command:
        say(f"  type  {escaped(page.command)}")
    if page.gaps:
        say(f"        nothing is known to fill in for {', '.join(page.gaps)}")


def _wanted(walked: "Walked") -> str:
    step = walked.step
    return f"it is needed when {step.when}, done when {step.until or 'somebody says so'}"


def _passed(walked: "Walked") -> str:
    """A step that is behind us, on one line."""
    step, told = walked.step, walked.told
    word = {"done": "done", "skipped": loud("SKIPPED")}.get(walked.state, "not needed")
    if told is not None:
        why = f"{told.text}, by {told.actor} at {told.at}"
    elif walked.state == "done":
        why = f"{step.until}"
    else:
        why = f"only when {step.when}"
    return f"{word}  {step.name}: {escaped(why)}"


def _say_tree(book: "Book", as_json: bool) -> None:
    """No incident is open: what would be done if one were."""
    from policies.runbook import command, in_order

    if not as_json:
        say("no incident is open; these are the steps that one would take")
        say(f"runbook   {escaped(book.source)}")
    for step in in_order(book):
        run = command(step.run, {}) if step.run else ""
        following = [
            each.step + ("" if not each.when.groups else f" when {each.when}") for each in step.next
        ]
        if as_json:
            row = {"incident": None, "step": step.name, "title": step.title, "why": step.why}
            more = {"when": str(step.when), "command": run or None, "next": following}
            say_json({**row, "until": step.until and str(step.until), **more})
            continue
        say()
        say(f"{step.name}: {escaped(step.title)}")
        say(f"  why   {escaped(step.why)}")
        say(f"  when  {step.when}" + (f"; done when {step.until}" if step.until else ""))
        if run:
            say(f"  type  {escaped(run)}")
        if following:
            say(f"  then  {'; else '.join(following)}")
    if not as_json:
        say()
        say("look at closed ones: pullcord incident list --all")
