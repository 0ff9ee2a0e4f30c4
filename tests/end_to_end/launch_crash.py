"""The program, whose processes die at one step when a test has armed it (crash_points.py).

It waits outside of all that is killed, with all imported, and starts the program once for each line
that it is told. Only names lead elsewhere, as in `launch.py`.

`TEST_CRASH` names a folder. A file `armed` in it tells the point, the victim, and at which pass;
who takes that file away dies there by SIGKILL, and leaves `fired` with its pid and the calls that
were at the point. `promises` holds what engines were told and go on from.
"""

import asyncio
import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from proxy import child
from proxy.cli.main import main
from tests.end_to_end import crash_points
from tests.end_to_end.crash_points import Point
from tests.end_to_end.forked import fork, forking
from tests.end_to_end.launch import RoutedDialer
from tests.engine import ENGINE

FOLDER = Path(os.environ["TEST_CRASH"])
ARMED, FIRED, PROMISES = FOLDER / "armed", FOLDER / "fired", FOLDER / "promises"
CHECKPOINT_WORKS = 10  # far less than the program's, so that every round has one
CHECKPOINT_SECONDS = 0.002  # at any moment of these it dies, most often inside SQLite

ENDED = "ended"

Patch = tuple[Any, str, Any]

_passed: Counter[str] = Counter()


def at(point: Point, calls: Iterable[str] = (), within_seconds: float = 0.0) -> None:
    """Here is the point: whoever is armed for it dies."""
    try:
        armed = json.loads(ARMED.read_text())
    except FileNotFoundError:
        return
    if armed["point"] != point.name:
        return
    _passed[armed["id"]] += 1
    if _passed[armed["id"]] < armed["passes"]:
        return
    try:
        ARMED.rename(FOLDER / "taken")
    except FileNotFoundError:
        return  # another process was here first
    told = FOLDER / f"told-{os.getpid()}"
    told.write_text(json.dumps({"pid": os.getpid(), "calls": list(calls)}))
    told.rename(FIRED)
    kill = _everything if armed["victim"] == crash_points.EVERYTHING else _this
    if within_seconds:
        threading.Timer(random.uniform(0, within_seconds), kill).start()
    else:
        kill()


def _this() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _everything() -> None:
    os.killpg(0, signal.SIGKILL)


def promised(what: str, call_id: str) -> None:
    """Told to an engine, which acts on it from here; what the kernel has outlives a SIGKILL."""
    handle = os.open(PROMISES, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{what} {call_id}\n".encode())
    os.close(handle)


def decider_patches() -> Iterator[Patch]:
    yield from _admitting_and_settling()
    yield from _keeping()


def _admitting_and_settling() -> Iterator[Patch]:
    from ledger.connection import Writer
    from ledger.states import ClaimAfter
    from ledger.store import Store
    from policies.call import Effect
    from policies.verdict import Action
    from proxy import decider

    writes: dict[Point, list[str]] = {}
    """Those that the open transaction has let through, and those that it has settled."""
    after = {
        crash_points.IN_ADMISSION: crash_points.ADMITTED,
        crash_points.IN_SETTLEMENT: crash_points.SETTLED,
    }
    ask, admit, settle = decider.Decider.admit, Store.admit, Store.settle
    begin, commit = Writer.begin, Writer.commit

    def asked(self: Any, each: Any, *rest: Any, **more: Any) -> Any:
        if each.call.effect is Effect.WRITE:
            at(crash_points.ASKED, [each.call_id])
        return ask(self, each, *rest, **more)

    def admitted(self: Any, each: Any, *rest: Any) -> Any:
        decision = admit(self, each, *rest)
        if decision.verdict.action is Action.ALLOW and each.call.effect is Effect.WRITE:
            writes.setdefault(crash_points.IN_ADMISSION, []).append(each.call_id)
        return decision

    def settled(self: Any, outcome: Any, *rest: Any) -> Any:
        known = settle(self, outcome, *rest)
        if known and outcome.claim_after is ClaimAfter.DONE:
            writes.setdefault(crash_points.IN_SETTLEMENT, []).append(outcome.call_id)
        return known

    def begun(self: Any, **how: Any) -> None:
        writes.clear()
        begin(self, **how)

    def committed(self: Any) -> None:
        for point, calls in writes.items():
            at(point, calls)
        commit(self)
        for point, calls in writes.items():
            at(after[point], calls)

    yield decider.Decider, "admit", asked
    yield Store, "admit", admitted
    yield Store, "settle", settled
    yield Writer, "begin", begun
    yield Writer, "commit", committed


def _keeping() -> Iterator[Patch]:
    from ledger import recovery, transactions, workers
    from ledger.connection import Writer
    from proxy import decider

    checkpoint, recover, forsake = Writer.checkpoint, recovery.recover, workers.forsake

    def checkpointed(self: Any) -> None:
        at(crash_points.IN_CHECKPOINT, within_seconds=CHECKPOINT_SECONDS)
        checkpoint(self)

    def recovered(*args: Any) -> Any:
        found = recover(*args)
        at(crash_points.IN_RECOVERY)
        return found

    def forsaken(*args: Any) -> Any:
        count = forsake(*args)
        at(crash_points.IN_LOSS)
        return count

    yield decider, "CHECKPOINT_WORKS", CHECKPOINT_WORKS
    yield Writer, "checkpoint", checkpointed
    yield transactions, "recover", recovered
    yield workers, "forsake", forsaken


def engine_patches() -> Iterator[Patch]:
    from proxy import serve
    from proxy.gate import Gate
    from proxy.live import Live

    ask, sent, settle, record = Gate.ask, Gate.sent, Gate.settle, Gate._record

    async def asked(self: Any, *args: Any, **more: Any) -> Any:
        answer = await ask(self, *args, **more)
        if isinstance(answer, Live) and answer.is_write:
            promised("admitted", answer.call_id)
            at(crash_points.ALLOWED, [answer.call_id])
        return answer

    def going(self: Any, live: Any) -> Any:
        at(crash_points.CONNECTED, [live.call_id])
        return sent(self, live)

    async def settling(self: Any, live: Any, **how: Any) -> Any:
        if how["complete"]:
            at(crash_points.ANSWERED, [live.call_id])
        return await settle(self, live, **how)

    async def recorded(self: Any, live: Any, outcome: Any) -> Any:
        known = await record(self, live, outcome)
        if known and live.is_write:
            promised(str(outcome.state), live.call_id)
            if outcome.state == "done":
                at(crash_points.RECORDED, [live.call_id])
        return known

    yield serve, "Dialer", RoutedDialer
    yield Gate, "ask", asked
    yield Gate, "sent", going
    yield Gate, "settle", settling
    yield Gate, "_record", recorded
    yield from _sending_by_mitmproxy() if ENGINE == "mitmproxy" else _sending_by_http1()


def _sending_by_mitmproxy() -> Iterator[Patch]:
    from mitmproxy.proxy.layers.http import RequestEndOfMessage, RequestHeaders

    from proxy.engines import mitm_hooks
    from proxy.engines.mitm_http1 import Http1Client

    send, forward = Http1Client.send, mitm_hooks._forward
    call_of: dict[int, str] = {}  # by the request object, which is its call's alone

    def forwarding(handler: Any, flow: Any, live: Any) -> None:
        forward(handler, flow, live)
        call_of[id(flow.request)] = live.call_id

    def sending(self: Any, event: Any) -> Any:
        yield from send(self, event)  # each command was carried out before it goes on
        if isinstance(event, RequestHeaders):
            at(crash_points.HEAD_SENT, [call_of[id(self.request)]])
        elif isinstance(event, RequestEndOfMessage):
            at(crash_points.SENT, [call_of[id(self.request)]])

    yield mitm_hooks, "_forward", forwarding
    yield Http1Client, "send", sending


def _sending_by_http1() -> Iterator[Patch]:
    """It sends a short request in one piece; here the head goes alone, so that there is a point
    between it and the body. uvloop sends at the end of its turn."""
    from proxy.engines.http1_exchange import Exchange

    send = Exchange._send_request

    def sending(self: Any, live: Any, upstream: Any, request: bytes, rest: bytes = b"") -> None:
        head, end, body = request.partition(b"\r\n\r\n")
        send(self, live, upstream, head + end)
        loop = asyncio.get_running_loop()

        def head_sent() -> None:
            at(crash_points.HEAD_SENT, [live.call_id])
            for part in filter(None, (body, rest)):
                upstream.write(part)
            loop.call_soon(at, crash_points.SENT, [live.call_id])

        loop.call_soon(head_sent)

    yield Exchange, "_send_request", sending


def supervisor_patches() -> Iterator[Patch]:
    from proxy import supervisor, tracer

    lived = supervisor.Child._lived

    async def ended(self: Any) -> Any:
        code = await lived(self)
        if self.name.startswith(crash_points.ENGINE):
            at(crash_points.SUPERVISING)
        return code

    mains = {supervisor.CHILD: as_child, supervisor.TRACER: tracer.main}
    yield asyncio, "create_subprocess_exec", forking(mains)
    yield supervisor.Child, "_lived", ended


PATCHES: dict[str, Callable[[], Iterator[Patch]]] = {
    crash_points.DECIDER: decider_patches,
    crash_points.ENGINE: engine_patches,
    crash_points.SUPERVISOR: supervisor_patches,
}


@contextmanager
def patched(kind: str) -> Iterator[None]:
    with ExitStack() as patches:
        for owner, name, instead in PATCHES[kind]() if kind in PATCHES else ():
            patches.enter_context(patch.object(owner, name, instead))
        yield


_EXEC = asyncio.create_subprocess_exec


def as_child(arguments: list[str]) -> int:
    with patched(arguments[0]), patch.object(asyncio, "create_subprocess_exec", _EXEC):
        return child.main(arguments)


def supervised(words: list[str]) -> int:
    os.setpgid(0, 0)  # a group of its own, which its children are in
    sys.argv = ["pullcord", *words]
    with patched(crash_points.SUPERVISOR):
        main()
    return os.EX_OK


def launched(words: list[str]) -> None:
    """For each line that it is told one life of the program: says its number and how it ended."""
    import proxy.deciding
    import proxy.serve  # noqa: F401 - all children have it from here

    nothing = os.open(os.devnull, os.O_RDONLY)
    for _ in sys.stdin:
        pid = fork(supervised, words, nothing, 1)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(ENDED, os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    launched(sys.argv[1:])
