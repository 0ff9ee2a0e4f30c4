"""Alerts over incidents, to each channel of the setting `notify`: at least once, and never in the
way of a call.

What is due is read from the ledger, so that whoever starts next goes on. A channel that fails is
tried again later and later, by one message at a time, the least tried first; no other channel
waits for it. What is sent stands in notices.py, how in sending.py.
"""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from ledger import deliveries
from ledger.connection import open_reader
from ledger.deliveries import GIVE_UP_SECONDS, Delivery, Due, Incident
from ledger.errors import LedgerError
from ledger.sqlite import sqlite3
from ledger.store import Store
from proxy import credentials, notices
from proxy.channels import Alertmanager, AnyChannel, Target, Unready, in_the_clear, shown, target
from proxy.clock import Clock
from proxy.credentials import Credentials, CredentialsError
from proxy.operations import timestamp
from proxy.sending import Heard, Message, Sender

log = structlog.get_logger()

LOOK_SECONDS = 0.25
LOOK_ALL_SECONDS = 60.0  # at all that is open; a look between is at what is new
IN_FLIGHT_MAX = 4  # of one channel
BACKOFF_SECONDS = 1.0  # after the first failure; twice that after the next, up to
BACKOFF_SECONDS_MAX = 300.0
STANDING_SECONDS = 120.0  # Alertmanager is told so often of what is open
STANDING_EACH_MAX = 100  # in one message
END_SECONDS = 0.5  # the end waits for what is under way; the next start sends what is left

Key = tuple[str, str, int]
_STANDING: Key = ("", "standing", 0)


class Act(Protocol):
    """`Decider.act`."""

    def __call__(
        self, act: Callable[[Store], None], /, *, durable: bool
    ) -> "asyncio.Future[None]": ...


@dataclass(slots=True)
class _State:
    """Of one channel. Seconds are monotonic."""

    channel: AnyChannel
    target: Target | None = None
    error: str = ""
    since_us: int = 0
    failures: int = 0
    free_seconds: float = 0.0  # nothing is sent before
    standing_seconds: float = 0.0  # when it is told next of all that is open
    from_us: int = 0  # what is older was told, or waits for the next look at all
    all_seconds: float = 0.0  # when that is
    waiting: int = 0
    going: dict[Key, "asyncio.Task[None]"] = field(default_factory=dict)
    later: dict[Key, tuple[int, float]] = field(default_factory=dict)  # tries, not before
    written: set[Key] = field(default_factory=set)  # a look that began before may not know
    unwritten: dict[Key, Delivery] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.channel.title

    @property
    def room(self) -> int:
        """How many messages may leave now: one that tries whether the channel works again."""
        return (1 if self.failures else IN_FLIGHT_MAX) - len(self.going)


class Notifying:
    """Of the deciding process; every method is for its loop."""

    def __init__(
        self,
        channels: Sequence[AnyChannel],
        data: Path,
        trust: Path | None,
        clock: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter` gives numbers from 0 to 1."""
        self._data = data
        self._clock = clock
        self._jitter = jitter
        self._sender = Sender(trust, clock.now_us)
        self._states = [_State(channel) for channel in channels]
        self._known = Credentials()
        self._stamp: tuple[int, int, int] | None = (0, 0, 0)
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._look_again()

    @property
    def warnings(self) -> list[str]:
        """What somebody should know at the start."""
        found = [f"alerts do not go to {each.name}: {each.error}" for each in self._failing]
        for each in self._states:
            if each.target is not None and in_the_clear(each.target):
                found.append(
                    f"alerts to {each.name} cross the network in the clear; let its URL be https"
                )
        return found

    @property
    def _failing(self) -> list[_State]:
        return [each for each in self._states if each.error]

    def as_json(self) -> list[dict[str, Any]]:
        """For `status`; it holds no secret."""
        return [
            {
                "channel": each.name,
                "kind": each.channel.kind,
                "to": shown(each.channel, self._known),
                "waiting": each.waiting,
                "error": each.error or None,
                "since": timestamp(each.since_us) if each.error else None,
            }
            for each in self._states
        ]

    async def run(self, act: Act) -> None:
        """Until cancelled."""
        for text in self.warnings:
            log.warning("notify.unready", told=text)
        while self._states:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look(act)
            except Exception:  # a bug of ours must not end all alerts for good
                log.exception("notify.failed")

    async def close(self) -> None:
        """When `run` was cancelled. What is under way may end; what cannot in time is sent again
        after the next start."""
        going = [task for each in self._states for task in each.going.values()]
        if going:
            _, late = await asyncio.wait(going, timeout=END_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.wait(going)
        await self._sender.close()
        await asyncio.to_thread(self._shut)

    async def look(self, act: Act) -> None:
        """Start to send what is due, as far as the channels have room."""
        self._look_again()
        now_seconds = self._clock.monotonic_seconds()
        free = []
        for each in self._states:
            self._write_again(each, act)
            if each.target is not None and each.free_seconds <= now_seconds and each.room > 0:
                free.append(each)
        before = {each.name: set(each.written) for each in free}
        try:
            found = await asyncio.to_thread(self._read, free, now_seconds)
        except (LedgerError, sqlite3.Error):  # `status` tells it, in other words
            await asyncio.to_thread(self._shut)
            return
        for each in free:
            due, standing = found[each.name]
            self._begin(each, due, now_seconds, act)
            each.written -= before[each.name]
            if standing is None or _STANDING in each.going:
                continue
            each.standing_seconds = now_seconds + STANDING_SECONDS
            if standing:
                self._go(each, _STANDING, self._tell_standing(each, standing))

    def _begin(self, each: _State, due: list[Due], now_seconds: float, act: Act) -> None:
        handled = each.going.keys() | each.written | each.unwritten.keys()
        open_ = {one.key: one for one in due if one.key not in handled}
        each.waiting = len(open_)
        each.later = {
            key: late for key, late in each.later.items() if key in open_ or key in handled
        }
        ready = [key for key in open_ if each.later.get(key, (0, 0.0))[1] <= now_seconds]
        ready.sort(key=lambda key: each.later.get(key, (0, 0.0))[0])  # the least tried first
        going = {incident for incident, *_ in each.going}
        for key in ready:
            if each.room <= 0:
                return
            if key[0] not in going:  # an incident's messages stay in order
                self._go(each, key, self._tell(each, open_[key], act))

    def _go(self, each: _State, key: Key, telling: Any) -> None:
        task = asyncio.get_running_loop().create_task(telling)
        each.going[key] = task
        task.add_done_callback(lambda _: each.going.pop(key, None))

    # ------------------------------------------------------------------------------ one message

    async def _tell(self, each: _State, due: Due, act: Act) -> None:
        if each.target is None:
            return
        due = replace(due, writes=await self._writes(due))
        heard = await self._posted(partial(notices.messages, each.target, due))
        tries = each.later.get(due.key, (0, 0.0))[0] + 1
        at_us = self._clock.now_us()
        error = "" if heard.is_sent else heard.said
        incident, event = due.incident.id, due.event
        log.info(
            "notify.sent" if heard.is_sent else "notify.not_sent",
            channel=each.name,
            incident=incident,
            what=event,
            tries=tries,
            error=error or None,
        )
        self._heard(each, heard)
        over = at_us - due.since_us >= GIVE_UP_SECONDS * 1_000_000
        if not (heard.is_sent or heard.is_final or over):
            each.later[due.key] = (tries, self._clock.monotonic_seconds() + self._pause(tries))
            return
        row = Delivery(incident, each.name, event, due.since_us, heard.is_sent, at_us, tries, error)
        each.unwritten[due.key] = row
        await self._write(each, due.key, row, act)

    async def _tell_standing(self, each: _State, incidents: list[Incident]) -> None:
        for first in range(0, len(incidents), STANDING_EACH_MAX):
            if each.target is None:
                return
            some = incidents[first : first + STANDING_EACH_MAX]
            heard = await self._posted(partial(notices.standing, each.target, some))
            self._heard(each, heard)
            if not heard.is_sent:
                each.standing_seconds = 0.0  # again, as soon as the channel is free
                return

    async def _posted(self, made: Callable[[int], Sequence[Message]]) -> Heard:
        """Each of these in turn; the first that is not taken ends it."""
        heard = Heard(None, "there was nothing to send")
        try:
            for message in made(self._clock.now_us()):
                heard = await self._sender.post(message)
                if not heard.is_sent:
                    break
            return heard
        except Exception as failure:  # a bug of ours; the message waits like one that met a failure
            log.exception("notify.failed")
            return Heard(None, f"pullcord failed at it: {type(failure).__name__}")

    def _heard(self, each: _State, heard: Heard) -> None:
        """What the answer says of the channel."""
        if heard.is_sent:
            each.error, each.failures, each.free_seconds = "", 0, 0.0
            return
        now_seconds = self._clock.monotonic_seconds()
        if not each.error:
            each.since_us = self._clock.now_us()
        each.error = heard.said
        if each.free_seconds <= now_seconds:  # else it left together with one that failed before
            each.failures += 1
        pause_seconds = self._pause(each.failures)
        if heard.retry_after_seconds is not None:
            pause_seconds = max(pause_seconds, heard.retry_after_seconds)
        elif heard.is_final:  # it is this message that is not taken; the next one may be
            pause_seconds = BACKOFF_SECONDS
        each.free_seconds = max(each.free_seconds, now_seconds + pause_seconds)

    def _pause(self, failures: int) -> float:
        seconds = min(BACKOFF_SECONDS * 2.0 ** min(failures - 1, 30), BACKOFF_SECONDS_MAX)
        return seconds * (0.5 + self._jitter() / 2)

    # ------------------------------------------------------------------------------ the ledger

    def _read(
        self, states: list[_State], now_seconds: float
    ) -> dict[str, tuple[list[Due], list[Incident] | None]]:
        with self._reading:
            if self._reader is None:
                self._reader = open_reader(self._data, busy_seconds=0)
            found = {}
            for each in states:
                now_us = self._clock.now_us()
                looks_at_all = each.all_seconds <= now_seconds
                from_us = 0 if looks_at_all else each.from_us
                hears = each.channel.hears_acks
                due = deliveries.due(self._reader, each.name, now_us, from_us, acks=hears)
                each.from_us = deliveries.look_from(due, now_us)
                if looks_at_all:
                    each.all_seconds = now_seconds + LOOK_ALL_SECONDS
                standing = None
                if isinstance(each.channel, Alertmanager) and each.standing_seconds <= now_seconds:
                    standing = deliveries.standing(self._reader, each.name)
                found[each.name] = (due, standing)
            return found

    async def _writes(self, due: Due) -> int | None:
        """What has happened so far; None where it is not known."""

        def read() -> int | None:
            with self._reading:
                if self._reader is None or not due.incident.run:
                    return None
                return deliveries.writes(self._reader, due.incident.run, self._clock.now_us())

        with contextlib.suppress(sqlite3.Error):
            return await asyncio.to_thread(read)
        return None

    def _shut(self) -> None:
        with self._reading:  # a look may be under way still
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    async def _write(self, each: _State, key: Key, row: Delivery, act: Act) -> None:
        """What the ledger does not take now is offered again; nothing is sent again for that."""
        with contextlib.suppress(LedgerError):
            await act(lambda store: store.delivered(row), durable=False)
            each.written.add(key)
            each.unwritten.pop(key, None)
            each.later.pop(key, None)

    def _write_again(self, each: _State, act: Act) -> None:
        for key, row in list(each.unwritten.items()):
            if key not in each.going:
                self._go(each, key, self._write(each, key, row, act))

    # ------------------------------------------------------------------------------ credentials

    def _look_again(self) -> None:
        """The secrets, when their file is another one than before."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        failure = ""
        try:
            self._known = credentials.load_all(self._data)
        except CredentialsError as error:
            self._known, failure = Credentials(), str(error)
        for each in self._states:
            self._ready(each, failure)

    def _ready(self, each: _State, failure: str) -> None:
        why = ""
        try:
            each.target = target(each.channel, self._known)
        except Unready as unready:
            each.target, why = None, failure or str(unready)
        each.error, each.failures, each.free_seconds = why, 0, 0.0
        each.since_us = self._clock.now_us()

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            found = (self._data / credentials.FILE).stat()
        except OSError:
            return None
        return found.st_ctime_ns, found.st_ino, found.st_size  # chmod moves this time alone
