"""Answers of claimed writes that are too long for a row: to a file while they flow, and from it.

The outcome is durable before the first byte flows; the answer is kept when the last has come. In
between, and for good if this process ends, a repeat is told that it was done and not stored.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from ledger import claims
from ledger.answer_files import AnswerFiles, AnswerReader
from ledger.answer_writer import AnswerWriter
from ledger.records import Answer, Ask, Decision
from proxy.clock import Clock
from proxy.judging import Judging
from proxy.live import Live
from proxy.refuse import Refusal
from proxy.replies import answer

log = structlog.get_logger()

FINISH_SECONDS = 10.0  # a disk that takes longer for what is left of it is not waited for

Fields = tuple[tuple[str, str], ...]


class LongAnswers:
    """The part of the gate that writes and opens them. Without `files` none is kept."""

    files: AnswerFiles | None = None
    _decider: Judging
    _clock: Clock

    def keep_long(self, live: Live) -> None:
        """Its answer is too long for a row: what has come of it, and what comes, goes to a file."""
        begun, live.answer = live.answer or b"", None
        if live.beginning is not None:
            live.beginning.add(begun)
        if not live.is_write or self.files is None:
            return
        if claims.slot(live.call, live.identity, live.tool.key) is None:
            return  # nobody is given it again
        live.file = self.files.begin(self._clock.monotonic_seconds())
        if begun:
            live.file.add(bytes(begun))

    @asynccontextmanager
    async def _whole(
        self, live: Live, status: int | None, headers: Fields
    ) -> AsyncIterator[Answer | None]:
        """The whole answer of a write, as it is kept; None where it is not. Until the end of the
        block its file is held for whoever takes it over; then it is swept away if nobody did.

        The file is this block's alone: what cuts the call meanwhile does not find it.
        """
        file, live.file = live.file, None
        try:
            if status is None or not live.is_write:
                yield None
            elif live.answer is not None:
                yield Answer(status, headers, bytes(live.answer))
            else:
                yield await _finished(live, file, status, headers) if file else None
        finally:
            if file is not None:
                file.release()

    def _drop(self, live: Live) -> None:
        """Its answer broke off."""
        file, live.file = live.file, None
        if file is not None:
            file.drop()

    async def keep(self, live: Live, status: int, headers: Fields) -> None:
        """The last of an answer has come whose call is settled already."""
        file, live.file = live.file, None
        if file is None:
            return
        try:
            whole = await _finished(live, file, status, headers)
            if whole is None or not await self._decider.keep(live.call_id, whole):
                file.drop()
        except Exception as failure:  # the call is done all the same
            log.warning("answer.not_kept", call=live.call_id, error=str(failure))
            file.drop()
        finally:
            file.release()

    async def _answered(self, ask: Ask, decision: Decision, detail: str) -> Refusal:
        """What a call that is not let through is told; a long answer as a file to be read."""
        stored = decision.answer
        if stored is None or stored.file is None:
            return answer(ask, decision, detail)
        reader: AnswerReader | None = None
        if self.files is not None:
            reader = await asyncio.to_thread(self.files.open, stored.file)
        if reader is None:
            log.error("answer.unreadable", call=decision.verdict.earlier_call)
            return answer(ask, replace(decision, answer=None), "its file is damaged")
        return replace(answer(ask, decision, detail), file=reader)


async def _finished(live: Live, file: AnswerWriter, status: int, headers: Fields) -> Answer | None:
    """The whole answer, brought to the disk; None where it is not kept."""
    try:
        async with asyncio.timeout(FINISH_SECONDS):
            finished = await asyncio.to_thread(file.finish)
    except Exception as failure:  # the call is done all the same
        log.warning("answer.not_finished", call=live.call_id, error=repr(failure))
        return None
    if finished is None:
        log.warning("answer.not_stored", call=live.call_id, error=file.why)
        return None
    return Answer(status, headers, b"", finished)
