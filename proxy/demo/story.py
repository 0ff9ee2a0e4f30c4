"""What a person sees while the demo runs: a line for each row of the record, as it is written.

Nothing here decides or counts. Words carry the meaning; colours only repeat it.
"""

import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ledger.filters import moment
from ledger.states import EventType
from policies.verdict import Action
from proxy.demo.figures import RUN, TENANT, Row
from proxy.demo.upstream import Arrival

STYLES = {
    Action.ALLOW: "green",
    Action.REPLAY: "cyan",
    Action.HOLD: "yellow",
    Action.REFUSE: "red",
}
NAME_WIDTH = 20


class Story:
    """The commentary, on one console."""

    def __init__(self, console: Console, started_us: int) -> None:
        self._console = console
        self._started_us = started_us

    def begin(self, address: str, data: Path, policy: Path) -> None:
        self._say("pullcord demo  ", "bold", "no network, no keys: all of it is on this machine")
        self._say("proxy    ", "dim", f"http://{address}, ledger {data / 'ledger.db'}")
        self._say("policy   ", "dim", str(policy))
        self._say("upstream ", "dim", "payments, issues, tools and model under *.demo.test, by TLS")
        self._say("agent    ", "dim", f"run {RUN} of tenant {TENANT}; only its environment is set")

    def heard(self, sentence: str) -> None:
        """What the agent says on its own account."""
        self._print(Text())
        self._say("agent: ", "bold magenta", sentence)

    def arrived(self, arrival: Arrival) -> None:
        """How the first call looked to the upstream."""
        token = "the token" if arrival.has_credentials else "no token"
        tags = f"X-Run-Id: {arrival.run}, X-Tenant-Id: {arrival.tenant}, {token}"
        self._say("upstream: ", "bold magenta", f"a call came in, tagged {tags}")

    def recorded(self, rows: Iterable[Row]) -> None:
        """A line for each decision and each pulled cord."""
        for row in rows:
            if row["decision"]:
                self._decided(row)
            elif row["type"] == EventType.PULLED:
                why = f"  {row['rule']}, by {row['actor']}: {row['detail']}"
                self._line(row, Text("PULLED ", "bold red"), Text(why, "bold"))

    def end(self, figures: Iterable[tuple[str, str]], mistakes: Sequence[str]) -> None:
        self._print(Text())
        for name, figure in figures:
            self._say(f"{name:<{NAME_WIDTH}} ", "bold", figure)
        for mistake in mistakes:
            self._say("WRONG: ", "bold red", mistake)

    def next_steps(self, data: Path) -> None:
        """Commands, each on a line of its own, that work as they are printed."""
        command = _command()
        where = shlex.quote(str(data))
        query = f"{command} ledger query run:{RUN} --data {where}"
        self._print(Text("\nnext: where ./config/policy.yaml is, your own proxy; then a shell"))
        self._print(Text("whose calls go through it; the record of what you just saw, which stays"))
        self._print(Text("until you remove it; and how"))
        commands = (f"{command} up", f'eval "$({command} env --run NAME)"', query, f"rm -r {where}")
        for line in commands:
            self._say(f"  {line}", "bold", "")

    def _decided(self, row: Row) -> None:
        action = Action(row["decision"])
        why = str(row["rule"])
        if row["detail"]:
            why += f" ({row['detail']})"
        if action is not Action.ALLOW:
            why = f"{row['reason']}, {why}"
        verdict = Text(f"{action.upper():<7}", f"bold {STYLES[action]}")
        self._line(row, verdict, Text(f" {row['effect']:<5}  {row['tool']:<24} "), Text(why, "dim"))

    def _line(self, row: Row, *parts: Text) -> None:
        seconds = (moment(row["at"], 0) - self._started_us) / 1e6
        self._print(Text(f"{seconds:6.2f} s  ", "dim").append_text(Text().join(parts)))

    def _say(self, label: str, style: str, text: str) -> None:
        self._print(Text(label, style).append(text, "not bold not dim default"))

    def _print(self, text: Text) -> None:
        # A line that is wider than the terminal wraps there and stays one line when copied.
        self._console.print(text, soft_wrap=True)


def _command() -> str:
    """How pullcord is typed here: its name where the shell finds it, else its path."""
    beside = Path(sys.executable).with_name("pullcord")
    if shutil.which("pullcord") or not beside.exists():
        return "pullcord"
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))
