"""One connection between two processes of ours: calls and replies in both directions, batched.

A frame is a length and a pickled list. What is read back is limited to our own frozen values, so
a frame can hold words, never code. Everything said in one turn of the loop goes as one frame, in
order; replies come in the order in which they are ready.
"""

import asyncio
import io
import pickle  # noqa: TID251 - not stored: between processes of ours, limited to `_Words`
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from decimal import Decimal
from enum import Enum
from importlib import import_module
from typing import Any

import structlog

from ledger.errors import Kind, LedgerError, LedgerUnavailable
from ledger.trace_schema import TraceUnavailable
from policies.verdict import Pulls, Reason
from proxy.judging import NotJudged, PolicyMoved

log = structlog.get_logger()

FRAME_BYTES_MAX = 256 * 1024 * 1024  # a full batch of the longest answers that are kept

_LENGTH = struct.Struct("!I")
_WORDS = frozenset({
    "policies.call", "policies.ceilings", "policies.verdict", "ledger.records", "ledger.states",
    "proxy.wire",
})  # fmt: skip
_CALL, _REPLY, _FAILURE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Standing:
    """What is in force: the policy and all cords. `text` is None when this version was told."""

    version: int
    source: str
    text: str | None
    written: Pulls
    pulls: Pulls
    canary_port: int = 0


Verb = Callable[..., Any]
"""What a call does: gives the reply, or a future of it."""


class PeerGone(Exception):
    """The connection ended before the reply came."""


class Peer:
    """One end. `serve` reads until the connection ends; `call` and `tell` work meanwhile."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        verbs: Mapping[str, Verb],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._verbs = verbs
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._said: list[tuple[int, int, Any, Any]] = []
        self._number = 0
        self._over = False

    def call(self, verb: str, *args: Any) -> "asyncio.Future[Any]":
        """The reply's future. Fails with what the other side's verb raised, or PeerGone."""
        future = self._loop.create_future()
        if self._over:
            future.set_exception(PeerGone())
            return future
        self._number += 1
        self._waiting[self._number] = future
        self._say(_CALL, self._number, verb, args)
        return future

    def tell(self, verb: str, *args: Any) -> None:
        """A call that nobody replies to."""
        if not self._over:
            self._say(_CALL, 0, verb, args)

    def close(self) -> None:
        self._over = True
        self._writer.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(PeerGone())
                future.exception()  # whoever waits is told; nobody has to

    async def serve(self) -> None:
        """Until the other side ends, or says what nobody understands."""
        try:
            while True:
                (length_bytes,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if length_bytes > FRAME_BYTES_MAX:
                    raise pickle.UnpicklingError(f"a frame of {length_bytes} bytes")
                frame = await self._reader.readexactly(length_bytes)
                for message in _Words(io.BytesIO(frame)).load():
                    self._heard(*message)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Exception:
            log.exception("wire.broken")
        finally:
            self.close()

    def _heard(self, kind: int, number: int, first: Any, second: Any) -> None:
        if kind == _CALL:
            self._do(number, first, second)
            return
        future = self._waiting.pop(number, None)
        if future is None or future.done():
            return
        if kind == _REPLY:
            future.set_result(first)
        else:
            future.set_exception(_failure(first, second))

    def _do(self, number: int, verb: str, args: tuple[Any, ...]) -> None:
        try:
            answer = self._verbs[verb](*args)
        except (LedgerError, NotJudged, PolicyMoved) as failure:  # as its caller must expect
            if not number:
                log.error("wire.verb_failed", verb=verb, error=str(failure))
            self._reply_failure(number, failure)
            return
        except Exception as failure:
            log.exception("wire.verb_failed", verb=verb)
            self._reply_failure(number, failure)
            return
        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(lambda done: self._reply(number, done))
        elif number:
            self._say(_REPLY, number, answer, None)

    def _reply(self, number: int, done: "asyncio.Future[Any]") -> None:
        failure = asyncio.CancelledError() if done.cancelled() else done.exception()
        if not number:
            return
        if failure is None:
            self._say(_REPLY, number, done.result(), None)
        else:
            self._reply_failure(number, failure)

    def _reply_failure(self, number: int, failure: BaseException) -> None:
        told: tuple[str, tuple[str, ...]]
        if isinstance(failure, LedgerUnavailable) and not isinstance(failure, TraceUnavailable):
            told = ("unavailable", (failure.kind.value, failure.cause))
        elif isinstance(failure, NotJudged):
            told = ("not_judged", (failure.reason.value, str(failure)))
        elif isinstance(failure, PolicyMoved):
            told = ("policy_moved", ())
        elif isinstance(failure, LedgerError):
            told = ("ledger", (str(failure),))
        else:
            told = ("other", (f"{type(failure).__name__}: {failure}",))
        if number:
            self._say(_FAILURE, number, *told)

    def _say(self, kind: int, number: int, first: Any, second: Any) -> None:
        if self._over:
            return
        if not self._said:
            self._loop.call_soon(self._flush)
        self._said.append((kind, number, first, second))

    def _flush(self) -> None:
        said, self._said = self._said, []
        if self._over or self._writer.transport.is_closing():  # uvloop raises where asyncio drops
            return
        frame = pickle.dumps(said, pickle.HIGHEST_PROTOCOL)
        self._writer.write(_LENGTH.pack(len(frame)) + frame)


def _failure(kind: str, args: tuple[str, ...]) -> Exception:
    if kind == "unavailable":
        return LedgerUnavailable(Kind(args[0]), args[1])
    if kind == "not_judged":
        return NotJudged(Reason(args[0]), args[1])
    if kind == "policy_moved":
        return PolicyMoved()
    return LedgerError(args[0]) if kind == "ledger" else RuntimeError(args[0])


class _Words(pickle.Unpickler):
    """Reads our own dataclasses and enumerations, decimals, and nothing else that has a name."""

    def find_class(self, module: str, name: str) -> Any:
        found: Any = getattr(import_module(module), name, None) if module in _WORDS else None
        ours = isinstance(found, type) and found.__module__ == module
        if ours and (is_dataclass(found) or issubclass(found, Enum)):
            return found
        if (module, name) == ("decimal", "Decimal"):  # numbers that conditions read, exactly
            return Decimal
        raise pickle.UnpicklingError(f"{module}.{name} is not a word of ours")
