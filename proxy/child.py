"""A process of `up --workers N`: the one that decides, or one of its engines.

It says `ready` on its output when it serves, or why it cannot, `busy` while it takes longer, and
ends when its input does: then its supervisor is gone, and so must be whatever it left.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import structlog

from ledger.errors import LedgerError
from policies.load import PolicyError, load
from policies.verdict import Level, Pull, Scope
from proxy import logs, process
from proxy.clock import SystemClock, new_id
from proxy.control_socket import ControlError
from proxy.judging import NotJudged
from proxy.letterbox import post
from proxy.settings import Settings
from proxy.supervisor import BUSY, READY

if TYPE_CHECKING:
    from proxy.remote import RemoteDecider

UNUSABLE = 2  # the exit code for a store, a policy or a socket that cannot be used

BUSY_SECONDS = 5.0  # how often an engine says that it waits for the decider

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main(arguments: list[str]) -> int:
    kind, where, told = arguments
    _die_with_parent()
    logs.configure(sys.stderr)
    settings = Settings.model_validate_json(told)
    try:
        if kind == "decider":
            process.serve(_decide(settings, where))
        else:
            process.serve(_engine(settings, int(where)), fast=settings.engine != "mitmproxy")
    except (ControlError, LedgerError, PolicyError, OSError) as error:
        _say(f"{kind}: {error}")
        return UNUSABLE
    return os.EX_OK


async def _decide(settings: Settings, listening: str) -> None:
    from proxy.deciding import PolicyFile, deciding
    from proxy.tracing import SOCKET, Tracing
    from proxy.upgrading import Upgrading

    clock = SystemClock()
    upgrading = Upgrading(clock, lambda: _say(BUSY))
    stopping = _minded(upgrading.stop)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, _halt_all, settings.data)  # for when it serves
    policy = PolicyFile(settings.policy_file, settings.invalid_policy)
    async with deciding(settings, clock, policy, supervised=True, upgrading=upgrading) as service:
        service.listening = listening
        told = (settings.trace, settings.data / SOCKET, settings.trace_body_bytes_max)
        tracing = Tracing(clock, *told, service.decider.trace_lost)
        loop.add_signal_handler(signal.SIGUSR1, service.halt_all, "signal:SIGUSR1")
        async with tracing.going() as service.tracing:
            process.settle_heap()
            _say(READY)
            await stopping.wait()


async def _engine(settings: Settings, handle: int) -> None:
    from ledger.records import Worker
    from policies.prices import shipped_prices
    from proxy.deciding import prepared
    from proxy.gate import Gate
    from proxy.links import SOCKET
    from proxy.remote import RemoteDecider
    from proxy.serve import engine_running, tracing_running

    stopping = _minded()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _halt_all, settings.data)
    clock = SystemClock()
    pid = os.getpid()
    worker = Worker(new_id(clock.now_us()), pid, process.started(pid), clock.now_us())
    nothing = load("version: 1", "no policy yet")  # the decider tells the one in force
    remote = RemoteDecider(settings.data / SOCKET, worker, clock, nothing)
    gate = remote.gate = Gate(
        remote, clock, settings.identity, worker.id, logs_passing=settings.log_calls == "all"
    )
    shipped_prices()  # loaded here, not while a call waits
    listener = socket.socket(fileno=handle)
    listener.setblocking(False)
    connection = asyncio.create_task(remote.run())
    try:
        while not (remote.ready.is_set() or stopping.is_set()):
            await _either(remote.ready, stopping)
            _say(BUSY)
        if stopping.is_set():
            return
        certificates = prepared(settings, clock)
        async with (
            tracing_running(settings, clock, remote.trace_lost) as gate.tracing,
            engine_running(gate, settings, listener, certificates),
        ):
            process.settle_heap()
            _say(READY)
            await stopping.wait()
        await _left(remote)
    finally:
        connection.cancel()


async def _left(remote: "RemoteDecider") -> None:
    """Say goodbye. Who stops us may have stopped the decider, too: then nobody needs to be told,
    and what was not taken is settled as `unknown` at the next start."""
    try:
        await remote.leave()
    except (RuntimeError, NotJudged, LedgerError, asyncio.CancelledError) as error:
        structlog.get_logger().info("worker.left_unheard", error=str(error))


def _halt_all(data: Path) -> None:
    """SIGUSR1 meant the proxy, whichever of its processes got it: the decider reads the file."""
    cord = Pull(Level.HALT, Scope.GLOBAL, "", "", "signal:SIGUSR1", 0)
    try:
        post(data, cord)
    except OSError as error:
        structlog.get_logger().error("cord.not_posted", error=str(error))


async def _either(*events: asyncio.Event) -> None:
    """Until one is set, or BUSY_SECONDS."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=BUSY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _minded(stop: Callable[[], None] | None = None) -> asyncio.Event:
    """Set when the supervisor asks for the end. When it has died this process does, at once.
    `stop` ends what has to end before anything serves."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def ask() -> None:
        stopping.set()
        if stop is not None:
            stop()

    loop.add_signal_handler(signal.SIGTERM, ask)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal's: the supervisor's too
    loop.add_reader(sys.stdin.fileno(), _orphaned)
    return stopping


def _orphaned() -> NoReturn:
    os._exit(os.EX_UNAVAILABLE)


def _die_with_parent() -> None:
    """A stopped process cannot notice: where the kernel can (Linux), it sees to it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _say(words: str) -> None:
    """One line to the supervisor: that this process serves, or why it cannot."""
    os.write(sys.stdout.fileno(), " ".join(words.split()).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
