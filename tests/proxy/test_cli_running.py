"""The command line beside a real proxy, each in a process of its own. About 20 seconds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from typing import Any
from urllib.parse import urlsplit

import pytest

from proxy import environment
from proxy.control_client import Refused, Unreachable, ask

POLICY = """\
version: 1
frozen: [mail.send]
tools:
  mail.send: {match: {host: mail.example, method: POST}, effect: write}
  local: {match: {host: 127.0.0.1, port: PORT}, allow_addresses: [127.0.0.0/8]}
"""
# As in a terminal, also where what began the tests had Ctrl-C ignored.
HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
PROGRAM = (sys.executable, "-c", f"{HEARD}; from proxy.cli.main import main; main()")
START_SECONDS = 30.0

pytestmark = pytest.mark.slow

# What an agent does: fetch a page, and say what it was told.
FETCH = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1]).read().decode())
except urllib.error.HTTPError as refusal:
    print(refusal.code, refusal.read().decode())
"""


class Upstream(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello {self.headers['X-Run-Id']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet: the test says what it saw."""


class Person:
    """Someone with a shell in a directory that has a configuration."""

    def __init__(self, root: Path, upstream: str) -> None:
        self.root = root
        (root / "config").mkdir()
        policy = POLICY.replace("PORT", str(urlsplit(upstream).port))
        (root / "config" / "policy.yaml").write_text(policy, "utf-8")
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in environment.NAMES and not name.startswith("PULLCORD_")
        }
        sources = str(Path(__file__).resolve().parents[2])
        self.environ = {**kept, "PULLCORD_DATA": str(root / "data"), "PYTHONPATH": sources}

    def starts(self, *words: str, **options: Any) -> "subprocess.Popen[str]":
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            [*PROGRAM, *words], cwd=self.root, env=self.environ, text=True, **pipes
        )

    def types(self, *words: str) -> "subprocess.CompletedProcess[str]":
        process = self.starts(*words)
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def rows(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.types(*words, "--json").stdout.splitlines()]

    def fetches(self, run: str, url: str) -> "subprocess.CompletedProcess[str]":
        return self.types("run", "--run", run, "--", sys.executable, "-c", FETCH, url)

    def proxy_listens(self, process: "subprocess.Popen[str]") -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if ask(self.root / "data", "GET", "/readyz")["ready"]:
                    return
            except (Unreachable, Refused):
                time.sleep(0.05)
        raise AssertionError((self.root / "up.log").read_text())


def end(process: "subprocess.Popen[str]") -> None:
    """End a process, and with it all that it started in a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


@contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Leaves no process behind when a test fails: to wait for it would take forever."""
    try:
        yield
    finally:
        if process.poll() is None:
            end(process)


@contextmanager
def watched(process: "subprocess.Popen[str]") -> Iterator[None]:
    """A process that must not take long: one that hangs fails its test instead of holding it."""
    watchdog = Timer(START_SECONDS, end, [process])
    watchdog.start()
    try:
        with ended(process):
            yield
    finally:
        watchdog.cancel()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/page"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Person]:
    person = Person(tmp_path_factory.mktemp("person"), url)
    log = (person.root / "up.log").open("w")
    proxy = person.starts("up", "--listen", "127.0.0.1:0", stdout=log, stderr=log)
    with log, proxy, ended(proxy):
        person.proxy_listens(proxy)
        yield person
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(timeout=30) == 0


def test_a_command_runs_behind_the_proxy_and_its_calls_are_counted(
    person: Person, url: str
) -> None:
    fetched = person.fetches("counted", url)
    assert (fetched.returncode, fetched.stdout) == (0, "hello counted\n")
    start, end = fetched.stderr.splitlines()
    assert start.startswith("run counted via 127.0.0.1:")
    assert start.endswith("watch: pullcord ledger tail run:counted")
    assert end == "run counted ended: 1 call, 0 writes let through, 0 replayed, 0 refused"
    (row,) = person.rows("ledger", "query", "run:counted")
    assert (row["tool"], row["state"], row["tenant"]) == ("local", "done", "default")
    shown = person.types("ledger", "show", row["id"]).stdout
    assert "call.intent" not in shown
    assert "outcome  done  200" in shown
    assert person.types("ledger", "show", "ffff").returncode == 4


def test_a_halted_run_is_refused_and_its_command_ends_with_77(person: Person, url: str) -> None:
    halted = person.types("halt", "run", "looping", "--reason", "41 identical calls")
    assert halted.returncode == 0
    assert halted.stderr.startswith("the ledger has never seen run looping: is that its name?")
    done, proof, undo = halted.stdout.splitlines()
    assert done == "halted run looping; 0 calls cut"
    assert re.fullmatch(
        r"proof: 0 effects admitted after [0-9:.]+Z; 1 engine acknowledged in \d+ ms", proof
    )
    assert undo == 'undo: pullcord resume run looping --reason "..."'
    assert person.types("status", "--exit-code").returncode == 10
    fetched = person.fetches("looping", url)
    assert fetched.returncode == 77
    assert "403" in fetched.stdout
    assert "41 identical calls" in fetched.stdout
    assert fetched.stderr.splitlines()[-1].endswith("1 refused; HALTED by halt:run:looping")
    resumed = person.types("resume", "run", "looping", "--reason", "mended")
    assert "; 1 call refused by it" in resumed.stdout.splitlines()[0]
    assert person.fetches("looping", url).returncode == 0


def test_status_shows_the_proxy_and_the_policys_own_cords(person: Person) -> None:
    status = person.types("status")
    assert status.returncode == 0
    assert "OK)  ledger ok  prices of 20" in status.stdout
    pid = person.rows("status")[0]["pid"]
    assert f"  pid {pid}  127.0.0.1:" in status.stdout.splitlines()[0]
    assert f"FREEZE tool mail.send  by the policy, {person.root}" in status.stdout
    (state,) = person.rows("status")
    assert state["up"]
    assert state["ledger"] == {"error": None, "owed": 0}


def test_a_second_proxy_on_the_same_data_is_refused(person: Person) -> None:
    second = person.types("up", "--listen", "127.0.0.1:0")
    assert second.returncode == 2
    assert "another pullcord" in second.stderr


def test_tail_follows_the_calls_of_one_run(person: Person, url: str) -> None:
    tail = person.starts("ledger", "tail", "run:followed", "--json")
    with tail, watched(tail):
        person.fetches("another", url)
        person.fetches("followed", url)
        assert tail.stdout is not None
        calls = (row for row in map(json.loads, tail.stdout) if row["type"].startswith("call."))
        assert [(next(calls)["run"], next(calls)["type"])] == [("followed", "call.outcome")]
        tail.send_signal(signal.SIGINT)
        assert tail.communicate(timeout=30)[1] == ""
    assert tail.returncode == 0


@pytest.mark.parametrize(
    "command, code",
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-command"], 127),
        (["/"], 126),
    ],
)
def test_run_ends_as_its_command_did(person: Person, command: list[str], code: int) -> None:
    assert person.types("run", *command).returncode == code


def test_a_signal_reaches_the_command_and_its_code_comes_back(person: Person) -> None:
    script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    wrapper = person.starts("run", "--", "sh", "-c", script, start_new_session=True)
    with wrapper, watched(wrapper):
        assert wrapper.stdout is not None
        assert wrapper.stdout.readline() == "ready\n"
        wrapper.send_signal(signal.SIGTERM)
        assert wrapper.stdout.readline() == "got it\n"
        assert wrapper.wait(timeout=30) == 5


def test_tokens_go_through_the_running_proxy(person: Person, url: str) -> None:
    minted = person.types("token", "mint", "--run", "revoked", "--tenant", "acme")
    assert "tenant acme" in minted.stderr
    gone = person.types("token", "revoke", "revoked")
    assert (gone.returncode, "revoked 1 token" in gone.stdout) == (0, True)
    (token,) = [row for row in person.rows("token", "list") if row["run"] == "revoked"]
    assert token["revoked"]


def test_sql_reads_and_cannot_write(person: Person) -> None:
    assert person.rows("ledger", "query", "--sql", "select 1 as one") == [{"one": 1}]
    refused = person.types("ledger", "query", "--sql", "delete from pull")
    assert refused.returncode == 2
    assert "refused" in refused.stderr


def test_a_reader_that_leaves_is_no_failure(person: Person) -> None:
    with person.starts("policy", "schema") as command:
        assert command.stdout is not None
        command.stdout.close()
        assert command.stderr is not None
        assert command.stderr.read() == ""
