"""The process that keeps the trace: `python -m proxy.tracer`, started beside whoever decides.

Redacting and compressing bodies holds Python's one lock, so it is done here, behind the engines and
not so nicely that it takes their processor. It judges nothing: without it every call still passes,
and what is missing from the trace is told (tracing.py).

It says `ready` on its output, and ends when its input does; what engines had sent by then it keeps.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from ledger.errors import LedgerError
from ledger.redact import redact_key
from ledger.trace import TraceStore
from ledger.trace_schema import DATABASE
from ledger.traced import Caught, Side
from policies.policy import Redaction
from proxy import logs, process
from proxy.catching import Fields
from proxy.clock import SystemClock
from proxy.control_socket import ControlError, bound, peer_uid
from proxy.secret_keys import vault_key
from proxy.tracing import KEEP_SECONDS, SOCKET, Message
from proxy.wire import Peer

log = structlog.get_logger()

NICE = 10
RETAIN_SECONDS = 60.0  # how often what is too old, or too much, is given up,
RETAIN_PAUSE_SECONDS = 0.02  # in small steps: what engines send is taken between them
REOPEN_SECONDS = 1.0  # a trace that cannot be written is tried this often
STOP_SECONDS = 2.0  # what engines had sent before the end is kept within it
READY = "ready"


class Tracer:
    """Keeps what engines caught. What cannot be kept is told to the engine that sent it."""

    def __init__(self, data: Path, keep_days: float, keep_bytes: int) -> None:
        self._data = data
        self._keep_us = round(keep_days * 86_400e6)
        self._keep_bytes = keep_bytes
        self._clock = SystemClock()
        self._store: TraceStore | None = None
        self._failure: LedgerError | None = None
        self._tried_seconds = -REOPEN_SECONDS
        self._links: set[asyncio.Task[None]] = set()
        self._redactions: dict[Any, Redaction] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One engine, until its connection ends."""
        if peer_uid(writer.get_extra_info("socket")) != os.geteuid():
            log.error("trace.stranger")
            writer.close()
            return
        link = asyncio.current_task()
        if link is not None:
            self._links.add(link)
            link.add_done_callback(self._links.discard)
        await Peer(reader, writer, {"keep": self.keep}).serve()

    async def over(self) -> None:
        """Until every engine's connection ended, or not much longer."""
        if self._links:
            await asyncio.wait(self._links, timeout=STOP_SECONDS)
        if self._store is not None:
            self._store.close()

    def keep(self, messages: Sequence[Message]) -> int:
        """Raises LedgerError. A pattern of the policy that does not come to an end on some text
        ends this process: its parent starts the next one."""
        signal.alarm(round(KEEP_SECONDS))
        try:
            return self._kept([self._caught(message) for message in messages])
        finally:
            signal.alarm(0)

    def _kept(self, caught: list[Caught]) -> int:
        store = self._opened()
        try:
            store.keep(caught)
        except LedgerError as failure:
            self._close(failure)
            raise
        if self._failure is not None:
            log.info("trace.kept_again")
            self._failure = None
        return len(caught)

    def _opened(self) -> TraceStore:
        if self._store is not None:
            return self._store
        now_seconds = self._clock.monotonic_seconds()
        if self._failure is not None and now_seconds - self._tried_seconds < REOPEN_SECONDS:
            raise self._failure
        self._tried_seconds = now_seconds
        try:
            key = redact_key(vault_key(self._data))
            self._store = TraceStore.open(self._data, key, self._clock.now_us)
        except LedgerError as failure:
            self._close(failure)
            raise
        return self._store

    def _close(self, failure: LedgerError) -> None:
        """The next batch opens it again. The same failure is told once."""
        if self._failure is None or str(self._failure) != str(failure):
            log.error("trace.unavailable", error=str(failure))
        self._failure = failure
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _caught(self, message: Message) -> Caught:
        call_id, side, at_us, run, tenant, tool, release, level, *rest = message
        start, fields, body, body_bytes, redacted = rest
        redaction = self._redactions.get(redacted)
        if redaction is None:
            self._redactions = {redacted: Redaction(*redacted)}
            redaction = self._redactions[redacted]
        return Caught(
            *(call_id, Side(side), at_us, run, tenant, tool, release, level, start),
            headers=_text(fields),
            body=body,
            body_bytes=body_bytes,
            redaction=redaction,
        )

    async def retain(self) -> None:
        """Give up what is too old or too much, again and again."""
        while True:
            try:
                if (self._data / DATABASE).exists():
                    await self._retained(self._opened())
            except LedgerError as failure:
                self._close(failure)
            except Exception:
                log.exception("trace.not_retained")
            await asyncio.sleep(RETAIN_SECONDS)

    async def _retained(self, store: TraceStore) -> None:
        before_us = self._clock.now_us() - self._keep_us
        for _ in store.retaining(before_us, self._keep_bytes):
            await asyncio.sleep(RETAIN_PAUSE_SECONDS)
            if self._store is not store:  # a batch could not be kept meanwhile
                return


def _text(fields: Fields) -> tuple[tuple[str, str], ...]:
    return tuple((_plain(name), _plain(value)) for name, value in fields)


def _plain(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


async def _serve(tracer: Tracer, data: Path) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal's: the parent's too
    loop.add_reader(sys.stdin.fileno(), stopping.set)  # it ends with the parent
    try:
        os.write(sys.stdout.fileno(), READY.encode() + b"\n")
    except BrokenPipeError:
        return  # the parent is gone
    server = await _listening(tracer, data, stopping)
    if server is None:
        return
    retaining = loop.create_task(tracer.retain())
    await stopping.wait()
    loop.remove_reader(sys.stdin.fileno())
    retaining.cancel()
    server.close()
    await tracer.over()


async def _listening(tracer: Tracer, data: Path, stopping: asyncio.Event) -> asyncio.Server | None:
    """The last one of a proxy that was killed may still be at its end."""
    while not stopping.is_set():
        try:
            listener = bound(data / SOCKET)
        except ControlError as error:
            log.error("trace.not_listening", error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), REOPEN_SECONDS)
            continue
        return await asyncio.start_unix_server(tracer.serve, sock=listener)
    return None


def main(arguments: list[str]) -> int:
    os.nice(NICE)
    logs.configure(sys.stderr)
    (told,) = arguments
    settings = json.loads(told)
    data = Path(settings["data"])
    tracer = Tracer(data, settings["keep_days"], settings["keep_bytes"])
    process.serve(_serve(tracer, data))
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
