"""Cords pulled and released on the store alone, when no proxy runs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.errors import LedgerBusy
from ledger.records import Ask, Worker
from ledger.store import Store
from ledger.tokens import Grant
from policies.call import Effect, Identity, Request, ToolCall
from policies.decide import decide
from policies.load import load
from policies.verdict import Action, Level, Pull, Scope
from proxy import operations, process, pulling, secret_keys
from proxy.letterbox import post
from proxy.operations import OperationError
from tests.proxy.controlled import NOW_US, POLICY, FakeClock

GOOD = "2026-11-20.3"  # the one release that the policy knows as good
RUN = (Level.HALT, Scope.RUN, "r1")
HALT_RUN = Pull(*RUN, "loops", "ada", NOW_US)


@pytest.fixture
def engine() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that nobody decides for."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as running:
        yield running
        running.kill()


def left_behind(data: Path, pid: int) -> None:
    """A store as a decider left it that died: an engine holds a write."""
    store = Store.open(data, secret_keys.vault_key(data), lambda: NOW_US)
    store.register(Worker("w1", pid, process.started(pid), NOW_US))
    call = ToolCall("mail.send", Effect.WRITE, "POST /", b"f" * 32)
    request = Request("POST", "https", "mail.example", 443, "/")
    ask = Ask("c1", NOW_US, Identity("r1", "acme"), request, call, worker="w1")
    policy = load(POLICY.replace("frozen: [mail.send]\n", ""))
    with store.transaction(durable=True):
        assert store.admit(ask, policy, decide).verdict.action is Action.ALLOW
    store.close()


def test_engines_that_nobody_decides_for_are_ended_and_what_they_held_is_unknown(
    tmp_path: Path, engine: "subprocess.Popen[bytes]"
) -> None:
    left_behind(tmp_path, engine.pid)
    answer = pulling.pull_on_store(tmp_path, HALT_RUN, None, FakeClock())
    assert engine.wait(timeout=10) == -9
    assert answer["killed"] == [engine.pid]
    assert answer["proof"]["unknown_writes"] == ["c1"]
    assert (answer["proof"]["admitted_after"], answer["proof"]["still_open"]) == (0, [])
    with operations.opened(tmp_path, lambda: NOW_US) as store:
        assert store.workers() == []
        assert RUN in store.pulls


def test_other_acts_leave_engines_and_what_they_hold_alone(
    tmp_path: Path, engine: "subprocess.Popen[bytes]"
) -> None:
    left_behind(tmp_path, engine.pid)
    with operations.opened(tmp_path, lambda: NOW_US) as store:
        operations.mint(store, Grant("r1"), "ada", NOW_US)
        assert [worker.pid for worker in store.workers()] == [engine.pid]
        assert store.recovered.calls == 0
    assert engine.poll() is None


def test_whatever_opens_the_store_latches_the_file_halt_first(tmp_path: Path) -> None:
    with operations.opened(tmp_path, lambda: NOW_US):
        pass
    post(tmp_path, HALT_RUN)
    with operations.opened(tmp_path, lambda: NOW_US) as store:
        operations.mint(store, Grant("r2"), "ada", NOW_US)
    (tmp_path / "HALT").unlink()
    with operations.opened(tmp_path, lambda: NOW_US) as store:
        assert list(store.pulls) == [RUN]


def test_a_release_on_the_store_strikes_the_cord_too(tmp_path: Path) -> None:
    with operations.opened(tmp_path, lambda: NOW_US):
        pass
    (tmp_path / "HALT").touch()
    name = (Level.HALT, Scope.GLOBAL, "")
    pulling.release_on_store(tmp_path, name, None, FakeClock(), reason="mended", actor="ada")
    assert not (tmp_path / "HALT").exists()
    with operations.opened(tmp_path, lambda: NOW_US) as store:
        assert store.pulls == {}


def test_without_a_policy_no_release_is_known_to_be_good(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="no policy can be read"):
        pulling.release_on_store(
            tmp_path, RUN, None, FakeClock(), reason="x", actor="ada", releases=[GOOD]
        )


def test_a_store_that_a_proxy_owns_is_left_to_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path, secret_keys.vault_key(tmp_path), lambda: NOW_US)
    try:
        with pytest.raises(LedgerBusy):
            pulling.pull_on_store(tmp_path, HALT_RUN, None, FakeClock())
    finally:
        store.close()
