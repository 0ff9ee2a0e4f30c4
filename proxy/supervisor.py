"""`up --workers N`: one process that decides, N engines on one port, and this one that minds them.

It owns the port and nothing else, so that it has little to fail at. What dies is started again;
a decider that dies leaves the engines refusing until the next one has recovered. They end when it
ends, however that comes.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass, field

import structlog

from policies.load import load_file
from proxy import logs, process
from proxy.listening import StartError, address_of, bind, greeting
from proxy.settings import Settings

log = structlog.get_logger()

CHILD: tuple[str, ...] = (sys.executable, "-m", "proxy.child")
TRACER: tuple[str, ...] = (sys.executable, "-m", "proxy.tracer")
START_SECONDS = 30.0  # a child that is not ready by then is started again
RESTART_SECONDS = 0.1  # before a dead child is started again; doubled while it cannot start
RESTART_SECONDS_MAX = 5.0
STOP_SECONDS = 5.0  # beside the drain time, for a child to end by itself
READY = "ready"
BUSY = "busy"  # a child that is not ready yet and says so is not started again


@dataclass(eq=False)
class Child:
    """One process that is kept running. `arguments` are those of proxy/child.py, unless it is
    another `program`."""

    name: str
    arguments: tuple[str, ...]
    handles: tuple[int, ...] = ()
    program: tuple[str, ...] | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None
    said: str = ""

    async def kept(self) -> None:
        """Start it, wait for its end, and again, until cancelled.

        Raises StartError when it never served and says why.
        """
        served = False
        pause_seconds = RESTART_SECONDS
        while True:
            code = await self._lived()
            was_ready = self.ready.is_set()
            served = served or was_ready
            self.ready.clear()
            if not served and self.said:
                raise StartError(self.said)
            log.error("child.died", child=self.name, code=code, said=self.said or None)
            if was_ready:
                pause_seconds = RESTART_SECONDS
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, RESTART_SECONDS_MAX)

    async def _lived(self) -> int:
        # Its input stays open for as long as this process lives: that is how it knows.
        process = self.process = await asyncio.create_subprocess_exec(
            *(self.program or CHILD),
            *self.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self.handles,
        )
        if process.stdout is None:
            raise RuntimeError("a child without an output")
        try:
            said = await _last_word(process.stdout)
            self.said = "" if said == READY else said
            if said == READY:
                self.ready.set()
        except TimeoutError:
            process.kill()
        return await process.wait()

    async def stop(self, wait_seconds: float) -> None:
        """SIGTERM, and SIGKILL when that takes too long."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(wait_seconds):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


async def _last_word(output: asyncio.StreamReader) -> str:
    """What a child says when it is no longer busy. Raises TimeoutError for one that is silent."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(START_SECONDS) as limit:
        while True:
            said = (await output.readline()).decode("utf-8", "replace").strip()
            if said != BUSY:
                return said
            limit.reschedule(loop.time() + START_SECONDS)


def tracer(settings: Settings) -> Child:
    """The process that keeps the trace. Nothing waits for it but its own end."""
    told = {
        "data": str(settings.data),
        "keep_days": settings.trace_keep_days,
        "keep_bytes": settings.trace_keep_bytes,
    }
    return Child("tracer", (json.dumps(told),), program=TRACER)


def run(settings: Settings) -> int:
    """Until SIGTERM or SIGINT; SIGUSR1 halts everything. Returns the exit code.

    Raises StartError, PolicyError and AuthorityError before anything is started.
    """
    logs.configure(sys.stderr)
    policy = load_file(settings.policy_file)
    with bind(settings.listen) as listener:
        told = f"{policy.source} ({policy.digest[:12]})"
        return process.serve(_supervised(settings, listener, told))


async def _supervised(settings: Settings, listener: socket.socket, policy: str) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    listening, handle = address_of(listener), listener.fileno()
    told = settings.model_dump_json()
    decider = Child("decider", ("decider", listening, told))
    engines = [
        Child(f"engine {number}", ("engine", str(handle), told), (handle,))
        for number in range(settings.workers)
    ]
    traced = tracer(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGUSR1, decider.signal, signal.SIGUSR1)

    kept = [loop.create_task(child.kept()) for child in (decider, *engines)]
    try:
        for child in (decider, *engines):
            await _first(stopping, child.ready, kept)
        if not stopping.is_set():
            sys.stdout.write(greeting(listening, settings, policy))
            sys.stdout.flush()
            kept.append(loop.create_task(traced.kept()))
        await stopping.wait()
        log.info("proxy.stopping")
    finally:
        for task in kept:
            task.cancel()
        wait_seconds = settings.drain_seconds + STOP_SECONDS
        await asyncio.gather(*(engine.stop(wait_seconds) for engine in engines))
        await asyncio.gather(traced.stop(STOP_SECONDS), decider.stop(STOP_SECONDS))
    return os.EX_OK


async def _first(
    stopping: asyncio.Event, ready: asyncio.Event, kept: "list[asyncio.Task[None]]"
) -> None:
    """Until a child is ready, or everything is to stop. Raises what a child cannot start for."""
    waits = [asyncio.ensure_future(event.wait()) for event in (stopping, ready)]
    try:
        done, _ = await asyncio.wait([*waits, *kept], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    for task in done.intersection(kept):
        task.result()
