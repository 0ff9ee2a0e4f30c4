"""`pullcord demo`: starts the upstream, the proxy and the agent, and tells what happens.

The proxy is the real one, on a free port with a data directory of its own. The agent is a program
of its own that knows the proxy from its environment alone. Every wait has an end: the agent's loop
by its number of charges, the whole by `DEMO_SECONDS_MAX`.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ledger.connection import open_reader
from ledger.queries import tail
from ledger.sqlite import sqlite3
from ledger.tokens import Grant
from proxy import authority, environment, logs, operations
from proxy.clock import SystemClock
from proxy.deciding import Service
from proxy.demo import agent, figures, upstream
from proxy.demo.story import Story
from proxy.serve import running
from proxy.settings import POLICY_FILE, Settings, host_and_port

POLICY = Path(__file__).with_name("policy.yaml")

DEMO_SECONDS_MAX = 90.0  # three times what it takes with its pauses
CHARGES_MAX = 24  # where the agent ends if nobody stops it: twice what the policy lets it try
POLL_SECONDS = 0.05
ROWS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast it goes. `contain_seconds_max` is what the containment may take at that pace."""

    pause_seconds: float
    contain_seconds_max: float


SLOW = Pace(pause_seconds=0.6, contain_seconds_max=40.0)
FAST = Pace(pause_seconds=0.0, contain_seconds_max=6.0)


def run(fast: bool, policy_text: str | None = None) -> int:
    """Show the demo; 0 when every figure is as it must be, 1 when one is not, 130 after Ctrl-C.

    `policy_text` stands in for the demo's own policy. The data directory stays for the person to
    look at, unless the demo was broken off. Raises PolicyError, StartError, AuthorityError or
    LedgerError when it cannot start.
    """
    directory = Path(tempfile.mkdtemp(prefix="pullcord-demo-"))
    is_kept = False
    try:
        (directory / "config").mkdir()
        policy_text = POLICY.read_text("utf-8") if policy_text is None else policy_text
        (directory / "config" / POLICY_FILE).write_text(policy_text, "utf-8")
        with (directory / "proxy.log").open("w", encoding="utf-8") as log:
            logs.configure(log)
            code = asyncio.run(Demo(directory, FAST if fast else SLOW).play())
        is_kept = True
    except KeyboardInterrupt:
        sys.stderr.write("\npullcord: the demo was broken off; nothing of it is left\n")
        return 130
    finally:
        if not is_kept:
            shutil.rmtree(directory, ignore_errors=True)
    return code


class Demo:
    """One showing of the demo in `directory`."""

    def __init__(self, directory: Path, pace: Pace) -> None:
        self._directory = directory
        self._pace = pace
        self._clock = SystemClock()
        self._story = Story(Console(highlight=False), self._clock.now_us())
        self._rows: list[figures.Row] = []

    async def play(self) -> int:
        """From the first line to the last. Returns the exit code."""
        data = self._directory
        async with contextlib.AsyncExitStack() as closing:
            served = await closing.enter_async_context(upstream.serving(self._clock, data))
            settings = Settings(
                config=data / "config",
                data=data,
                listen=f"{upstream.LOOPBACK}:0",
                upstream_ca=served.ca_file,
                drain_seconds=1.0,
            )
            async with running(settings, self._clock, served.resolve) as service:
                reader = closing.enter_context(contextlib.closing(open_reader(data)))
                address = service.listening or ""
                self._story.begin(address, data, settings.policy_file)
                code = await self._watched(await self._started(service), reader, served)
            # The proxy has stopped, so every call that it let through is settled.
            self._follow(reader)
        found = figures.read(self._rows)
        seconds_max = self._pace.contain_seconds_max
        mistakes = list(figures.mistakes(found, served, code, seconds_max))
        self._story.end(figures.lines(found, served), mistakes)
        self._story.next_steps(data)
        return 1 if mistakes else 0

    async def _started(self, service: Service) -> asyncio.subprocess.Process:
        """The agent as a process that knows the way to the proxy, its token and the CA to trust."""
        grant = Grant(figures.RUN, tenant=figures.TENANT, agent="support-bot", release="demo-1")
        now_us = self._clock.now_us()
        minted = await service.decider.act(
            lambda store: operations.mint(store, grant, "pullcord demo", now_us)
        )
        host, port = host_and_port(service.listening or "")
        block = environment.block(
            host=host,
            port=port,
            run=figures.RUN,
            token=minted.secret,
            bundle_file=self._directory / authority.BUNDLE_FILE,
            ca_file=self._directory / authority.CA_FILE,
            trace_id=secrets.token_hex(16),
            span_id=secrets.token_hex(8),
        )
        options = ("--pause-seconds", str(self._pace.pause_seconds))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", agent.__file__, *options, "--charges-max", str(CHARGES_MAX)),
            env={"PATH": os.environ.get("PATH", os.defpath), **block},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends the agent
        )

    async def _watched(
        self,
        process: asyncio.subprocess.Process,
        reader: sqlite3.Connection,
        served: upstream.Upstream,
    ) -> int | None:
        """Tell what happens until the agent ends. Its exit code; None when it had to be ended."""
        heard, is_tagged = process.stdout, False
        try:
            async with asyncio.timeout(DEMO_SECONDS_MAX):
                while heard is not None:
                    line: bytes | None = None
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_SECONDS):
                            line = await heard.readline()
                    self._follow(reader)
                    if served.arrivals and not is_tagged:
                        self._story.arrived(served.arrivals[0])
                        is_tagged = True
                    if line == b"":
                        break
                    if line:
                        self._story.heard(line.decode("utf-8", "replace").rstrip())
                return await process.wait()
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _follow(self, reader: sqlite3.Connection) -> None:
        """Take up the rows that are new in the record."""
        after_seq = self._rows[-1]["seq"] if self._rows else 0
        rows = tail(reader, after_seq, ROWS_MAX)
        self._rows += rows
        self._story.recorded(rows)
