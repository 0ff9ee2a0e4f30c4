"""What the tests hold in their hands: the upstreams, and the real program as a process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.end_to_end.upstreams.journal import Journal, Seen
from tests.engine import SETTING
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = Path(__file__).with_name("launch.py")
AGENTS = Path(__file__).with_name("agents")

PULLCORD = "from proxy.cli.main import main; main()"

START_SECONDS = 40.0
SETTLE_SECONDS = 5.0
AGENT_SECONDS = 60.0

OPEN = ("pending", "held")

# What the log may hold only when something in pullcord is broken.
BROKEN = (
    *("engine.", "decider.", "call.not_judged", "tunnel.not_judged", "message.not_judged"),
    *("call.not_noticed", "answer.not_noticed"),
)


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Where they listen, whom to trust, and what they were asked."""

    folder: Path
    ca: Path
    routes: Mapping[str, int]
    journal: Journal

    def seen(self, start: int = 0) -> list[Seen]:
        return list(self.journal.read(start))

    def gate(self, name: str) -> Path:
        """The file that an upstream waits for, or waits on."""
        return self.folder / "gates" / name


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an agent, with the environment that `pullcord env` printed for it."""

    name: str
    tenant: str
    environment: Mapping[str, str]
    home: Path

    @property
    def proxy_url(self) -> str:
        return self.environment["HTTPS_PROXY"]

    def session(self) -> requests.Session:
        """A client in the tests' own process, for when its timing matters."""
        session = requests.Session()
        session.trust_env = False
        session.proxies = {"http": self.proxy_url, "https": self.proxy_url}
        session.verify = self.environment["SSL_CERT_FILE"]
        return session

    def start(self, *command: str | Path, **more: str) -> "subprocess.Popen[str]":
        """A command of the agent's. What its environment holds is told in full here."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), **more}
        return subprocess.Popen(
            [str(word) for word in command],
            env=environment | dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def execute(self, *command: str | Path, **more: str) -> str:
        """What a command of the agent's prints. Fails with all it said when it fails."""
        with self.start(*command, **more) as process:
            try:
                out, err = process.communicate(timeout=AGENT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == 0, f"{command} ended with {process.returncode}: {err}{out}"
        return out


@dataclass(eq=False, slots=True)
class Proxy:
    """A data directory and a policy of its own, on one port through all restarts."""

    folder: Path
    policy: str
    upstream_ca: Path
    routes: Mapping[str, int]
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[str] | None" = None
    runs: int = 0
    workers: int = int(os.environ.get("WORKERS", "1"))

    def __post_init__(self) -> None:
        (self.folder / "config").mkdir()
        (self.folder / "config" / "pullcord.yaml").write_text(
            f"listen: 127.0.0.1:{self.port}\n"
            f"data: ../data\n"
            f"upstream_ca: {self.upstream_ca}\n"
            f"drain_seconds: 5\n"
            f"log_calls: all\n"
            f"workers: {self.workers}\n"
            + "".join(f"{name}: {value}\n" for name, value in SETTING.items())
        )
        self.edit_policy(self.policy)

    # The process

    def start(self) -> None:
        """Returns when it has printed its address; by then it serves."""
        with (self.folder / "proxy.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(LAUNCH), "up"],
                cwd=self.folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        watchdog = threading.Timer(START_SECONDS, self.process.kill)
        watchdog.start()
        first = self._out.readline()
        watchdog.cancel()
        if f"http://127.0.0.1:{self.port}" not in first:
            self.end(signal.SIGKILL)
            pytest.fail(f"it said {first!r} at its start: {self.log()[-2000:]}")

    def stop(self) -> None:
        """SIGTERM: it must end by itself, with code 0."""
        assert self.end(signal.SIGTERM) == 0, self.log()[-2000:]

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end. Returns the exit code."""
        process, self.process = self.process, None
        assert process is not None, "it does not run"
        process.send_signal(number)
        try:
            process.communicate(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return process.returncode

    @property
    def _out(self) -> Any:
        assert self.process is not None
        return self.process.stdout

    @property
    def _environment(self) -> dict[str, str]:
        kept = {
            name: os.environ[name]
            for name in ("PATH", "COVERAGE_PROCESS_START", "LANG", "ENGINE")
            if name in os.environ
        }
        return kept | {
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "TEST_ROUTES": json.dumps(dict(self.routes)),
        }

    def log(self) -> str:
        return (self.folder / "proxy.log").read_text()

    def broken(self) -> list[str]:
        """The lines of the log that tell of a failure inside pullcord."""
        events = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        plain = [line for line in self.log().splitlines() if not line.startswith("{")]
        return plain + [str(event) for event in events if event["event"].startswith(BROKEN)]

    # The operator

    def cli(self, *words: str, code: int = 0) -> str:
        """What a command prints; its exit code must be the one given."""
        command = [sys.executable, "-c", PULLCORD, *words]
        ended = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True,
            timeout=START_SECONDS, check=False,
        )  # fmt: skip
        assert ended.returncode == code, f"{words} ended with {ended.returncode}: {ended.stderr}"
        return ended.stdout

    def edit_policy(self, text: str) -> None:
        """As an editor saves: a new file in the place of the old."""
        path = self.folder / "config" / "policy.yaml"
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    def mint(self, tenant: str = "acme") -> Run:
        """A new run, by `pullcord env`."""
        self.runs += 1
        name = f"run-{self.runs}"
        block = self.cli("env", "--run", name, "--tenant", tenant, "--format", "json")
        return Run(name, tenant, json.loads(block), self.folder)

    def calls(self, run: Run, *filters: str, at_least: int = 1) -> list[dict[str, Any]]:
        """The ledger's rows of a run, oldest first, once none of them is open.

        A read's outcome is recorded behind its answer, so this waits, for a few seconds.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            rows = self.ledger(f"run:{run.name}", *filters)
            is_open = len(rows) < at_least or any(row["state"] in OPEN for row in rows)
            if not is_open or time.monotonic() > deadline:
                return rows
            time.sleep(0.05)

    def ledger(self, *filters: str) -> list[dict[str, Any]]:
        """Rows of the ledger as they stand, oldest first."""
        lines = self.cli("ledger", "query", *filters, "--json", "--limit", "10000").splitlines()
        return sorted((json.loads(line) for line in lines), key=lambda row: row["id"])


StartProxy = Callable[[str], Proxy]
"""Starts a proxy on the text of a policy."""
