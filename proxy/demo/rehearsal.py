"""`pullcord demo --scenario NAME`: an incident from its first call to its regression test, by the
commands that a person types.

The proxy, the agents and each command are programs of their own; the proxy is killed while it
undoes what was done. At the end the books of the upstream have to agree with the ledger.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from proxy.clock import SystemClock
from proxy.demo import payments, runaway
from proxy.demo.payments import Books
from proxy.demo.scenarios import BAD, GOOD, SCENARIOS, TENANT, Scenario

START_SECONDS = 20.0
COMMAND_SECONDS = 60.0
LINES_SHOWN_MAX = 9
KILLED_AFTER = 3  # undone writes

_MAIN = "from proxy.cli.main import main; main()"
_CHECK_FAILED, _UNREACHABLE = 3, 5


class Broken(Exception):
    """A step did not do what it should have done."""


@dataclass(slots=True)
class Step:
    what: str
    seconds: float


def run(name: str) -> int:
    """Show a rehearsal; 0 when everything is as it must be, 1 when something is not, 130 after
    Ctrl-C. The directory stays for the person to look at, unless it was broken off."""
    directory = Path(tempfile.mkdtemp(prefix="pullcord-rehearsal-"))
    is_kept = False
    try:
        code = Rehearsal(directory, SCENARIOS[name]).play()
        is_kept = True
    except KeyboardInterrupt:
        sys.stderr.write("\npullcord: the rehearsal was broken off; nothing of it is left\n")
        return 130
    finally:
        if not is_kept:
            shutil.rmtree(directory, ignore_errors=True)
    return code


@dataclass(slots=True)
class Rehearsal:
    directory: Path
    scenario: Scenario
    clock: SystemClock = field(default_factory=SystemClock)
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    steps: list[Step] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    incident: str = ""
    port: int = 0
    proxy: "subprocess.Popen[str] | None" = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def config(self) -> Path:
        return self.directory / "config"

    def play(self) -> int:
        self._say(f"pullcord demo --scenario {self.scenario.name}", "bold")
        self._say(self.scenario.about)
        with payments.serving(self.directory, self.clock.now_us()) as books:
            self._write(books)
            try:
                self._steps(books)
            except Broken as broken:
                self.mistakes.append(str(broken))
            finally:
                self._end_proxy(signal.SIGKILL)
        return self._end()

    def _steps(self, books: Books) -> None:
        self._up()
        with self._timed("a healthy run"):
            self._agents(books, "works-well", ("healthy-1",), GOOD)
        healthy_cents = books.owed_cents
        with self._timed("the runaway, until it is stopped"):
            codes = self._agents(books, self.scenario.does, self.scenario.runs, BAD)
        self._check(set(codes) == {runaway.STOPPED}, f"the agents ended with {codes}")
        self._contain()
        self._command("scope", "incident", "scope", self.incident)
        self._compensate(books)
        self._tell(books)
        self._mend(books)
        self._command(
            "recover", "incident", "recover", self.incident, "--release", GOOD, "--reason", "mended"
        )
        report = self.directory / "report.html"
        self._command(
            "report", "incident", "report", self.incident, "--html", "--output", str(report)
        )
        test = self.directory / "tests" / "incidents" / self.scenario.name.replace("-", "_")
        export = ("incident", "export-test", self.incident, "--out", str(test), "--prove")
        self._command("the regression test, proven", *export)
        self._command("close", "incident", "close", self.incident, "--reason", "rehearsed")
        self._check(books.owed_cents == healthy_cents, f"the books are off: {books.owed_cents}")
        self._check(not books.cancelled_twice, f"undone twice: {books.cancelled_twice}")
        self._check(report.exists() and report.stat().st_size < 500_000, "the report is too long")

    # ------------------------------------------------------------------------------ the steps

    def _contain(self) -> None:
        scope, name = self.scenario.halt
        self._command("halt", "halt", scope, name, "--reason", "it runs away")
        listed = self._asked("incident", "list", "--json")
        found = [json.loads(line) for line in listed.splitlines()]
        self._check(len(found) == 1, f"{len(found)} incidents are open, wanted 1")
        if not found:
            raise Broken("no incident was opened")
        self.incident = found[0]["id"]
        self._command("look", "incident", "show", self.incident)
        self._command("acknowledge", "incident", "ack", self.incident)
        told = self._asked("incident", "scope", self.incident, "--json")
        after = json.loads(told)["after_cord"]
        self._check(after is not None and after["admitted"] == 0, f"after the cord: {after}")

    def _compensate(self, books: Books) -> None:
        compensate = ("incident", "compensate", self.incident)
        self._command("what can be undone", *compensate, "--plan")
        if not self.scenario.writes:
            return
        do = (*compensate, "--do", "all", "--reason", "rehearsed")
        with self._timed("undo, and kill -9 in the middle"):
            books.hold_after = KILLED_AFTER
            typing = threading.Thread(target=self._asked, args=do, kwargs={"codes": (0, 3, 5)})
            typing.start()
            arrived = books.held.wait(COMMAND_SECONDS)
            self._end_proxy(signal.SIGKILL)
            books.hold_after = None
            books.gate.set()
            typing.join()
        self._check(arrived, "nothing was undone")
        self._up()
        plan = json.loads(self._asked(*compensate, "--plan", "--json"))
        unknown = [one for one in plan["steps"] if one["state"] == "unknown"]
        self._check(len(unknown) == 1, f"{len(unknown)} undoings are unknown, wanted 1")
        for one in unknown:
            # The payments are asked by a person; the cancellation that was on its way is there.
            words = ("--as", "done", "--reason", "it is in the books of the payments")
            self._command("the one that nobody knows of", *_resolve(one), *words)
        self._command("undo the rest", *do)

    def _tell(self, books: Books) -> None:
        note = "it is stopped, and undone"
        self._command("a public note", "incident", "note", self.incident, note, "--public")
        words = ("--send", "--status", "undone", "--eta", "now", "--next", "tomorrow")
        self._command("tell the tenants", "incident", "notify", self.incident, *words)
        wanted = int(self.scenario.writes)
        self._check(len(books.told) == wanted, f"{len(books.told)} messages, wanted {wanted}")

    def _mend(self, books: Books) -> None:
        path = self.config / "policy.yaml"
        path.write_text(self.scenario.policy(books.port, mended=True), "utf-8")
        self._say(f"\n$ edit {path}", "bold")
        self._say(f"  + {self.scenario.mend}")
        self._asked("policy", "check")

    # ------------------------------------------------------------------------------ programs

    def _up(self) -> None:
        """Returns when it serves."""
        with (
            self._timed("start"),
            (self.directory / "proxy.log").open("a", encoding="utf-8") as log,
        ):
            self.proxy = subprocess.Popen(
                (sys.executable, "-c", _MAIN, "up"),
                cwd=self.directory,
                env=self._environment(),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the rehearsal, which then ends the proxy
            )
            watchdog = threading.Timer(START_SECONDS, self.proxy.kill)
            watchdog.start()
            first = self.proxy.stdout.readline() if self.proxy.stdout else ""
            watchdog.cancel()
        if not first:
            raise Broken(f"the proxy did not start: {self.directory / 'proxy.log'}")

    def _end_proxy(self, number: signal.Signals) -> None:
        if self.proxy is not None:
            self.proxy.send_signal(number)
            self.proxy.communicate()
            self.proxy = None

    def _agents(self, books: Books, does: str, runs: tuple[str, ...], release: str) -> list[int]:
        """All at once, each with an environment of its own; their exit codes."""
        words = ("env", "--tenant", TENANT, "--release", release, "--format", "json")
        blocks = {name: json.loads(self._asked(*words, "--run", name)) for name in runs}
        started = []
        for name, block in blocks.items():
            options = ("--does", does, "--name", name, "--calls-max", str(self.scenario.calls_max))
            url = f"https://{payments.HOST}:{books.port}"
            started.append(
                subprocess.Popen(
                    (sys.executable, "-I", runaway.__file__, *options, "--url", url),
                    env={"PATH": os.environ.get("PATH", os.defpath), **block},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            )
        try:
            for process in started:
                told, _ = process.communicate(timeout=COMMAND_SECONDS)
                self._shown(told)
        except subprocess.TimeoutExpired:
            raise Broken(f"an agent went on for {COMMAND_SECONDS:g} seconds") from None
        finally:
            for process in started:
                process.kill()
                process.communicate()
        return [process.returncode for process in started]

    def _command(self, what: str, *words: str) -> None:
        """What a person types, and what comes."""
        self._say(f"\n$ pullcord {shlex.join(words)}", "bold")
        with self._timed(what):
            told = self._asked(*words)
        self._shown(told)

    def _asked(self, *words: str, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            (sys.executable, "-c", _MAIN, *words),
            cwd=self.directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode not in codes:
            said = (done.stderr or done.stdout).strip()
            raise Broken(f"pullcord {shlex.join(words)} ended with {done.returncode}: {said}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        own = {"PULLCORD_DATA": str(self.data), "PULLCORD_CONFIG": str(self.config)}
        others = {name: text for name, text in os.environ.items() if "PULLCORD" not in name}
        return {**others, **own}

    def _write(self, books: Books) -> None:
        """What an operator has written before."""
        self.config.mkdir()
        self.data.mkdir(mode=0o700)
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (self.config / "policy.yaml").write_text(self.scenario.policy(books.port), "utf-8")
        (self.config / "pullcord.yaml").write_text(
            f"listen: 127.0.0.1:{self.port}\nupstream_ca: {books.ca_file}\ndrain_seconds: 1\n"
        )
        url = f"https://{payments.HOST}:{books.port}/notices"
        (self.config / "contacts.yaml").write_text(
            "version: 1\nfrom: The rehearsal\n"
            f'tenants: {{{TENANT}: [{{kind: webhook, secret: hook, url: "{url}"}}]}}\n'
        )
        entries = self.data / "credentials.yaml"
        entries.touch(mode=0o600)
        entries.write_text("hook: {secret: whsec-of-the-rehearsal}\n")

    # ------------------------------------------------------------------------------ what is seen

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = self.clock.monotonic_seconds()
        yield
        self.steps.append(Step(what, self.clock.monotonic_seconds() - began))

    def _check(self, holds: bool, mistake: str) -> None:
        if not holds:
            self.mistakes.append(mistake)

    def _shown(self, told: str) -> None:
        lines = told.rstrip().splitlines()
        for line in lines[:LINES_SHOWN_MAX]:
            self._say(f"  {line}")
        if len(lines) > LINES_SHOWN_MAX:
            self._say(f"  ... {len(lines) - LINES_SHOWN_MAX} more lines", "dim")

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style))

    def _end(self) -> int:
        self._say("\nhow long each step took", "bold")
        for step in self.steps:
            self._say(f"  {step.seconds:6.1f} s  {step.what}")
        total = sum(step.seconds for step in self.steps)
        self._say(f"  {total:6.1f} s  all of it\n")
        for mistake in self.mistakes:
            self._say(f"WRONG  {mistake}", "red")
        if self.mistakes:
            return 1
        self._say("The books balance, nothing was undone twice, nothing passed after the cord.")
        self._say(f"look at it: {self.directory / 'report.html'}")
        data, incident = shlex.quote(str(self.data)), self.incident
        self._say(f"or: pullcord incident show {incident} --data {data}")
        return 0


def _resolve(step: dict[str, Any]) -> tuple[str, ...]:
    """How the undoing of a step is resolved, of which nobody knows the end: it names its call."""
    words = shlex.split(step["next"])
    if words[:2] != ["pullcord", "ledger"] or len(words) < 4:
        raise Broken(f"of an unknown undoing it says only: {step['next']}")
    return ("ledger", "resolve", words[3])
