"""Answers of claimed writes that are too long for a row: to a file while they flow, and from it.

The outcome is durable before the first byte flows; the answer is kept when the last has come. In
between, and for good if this process ends, a repeat is told that it was done and not stored.
"""

import asyncio
from dataclasses import replace

import structlog

from ledger import claims
from ledger.answer_files import AnswerFiles, AnswerReader, AnswerWriter
from ledger.records import Answer, Ask, Decision
from proxy.judging import Judging
from proxy.live import Live
from proxy.refuse import Refusal
from proxy.replies import answer

log = structlog.get_logger()

Fields = tuple[tuple[str, str], ...]


class LongAnswers:
    """The part of the gate that writes and opens them. Without `files` none is kept."""

    files: AnswerFiles | None = None
    _decider: Judging

    def keep_long(self, live: Live) -> None:
        """Its answer is too long for a row: what has come of it, and what comes, goes to a file."""
        begun, live.answer = live.answer or b"", None
        if not live.is_write or self.files is None:
            return
        if claims.slot(live.call, live.identity, live.tool.key) is None:
            return  # nobody is given it again
        live.file = self.files.begin()
        if live.file is None:
            log.warning("answer.no_room", call=live.call_id)
        elif begun:
            live.file.add(bytes(begun))

    async def _whole(self, live: Live, status: int | None, headers: Fields) -> Answer | None:
        """The whole answer of a write, as it is kept; None where it is not."""
        if status is None or not live.is_write:
            return None
        if live.answer is not None:
            return Answer(status, headers, bytes(live.answer))
        return await self._finished(live.file, status, headers) if live.file else None

    def _release(self, live: Live, *, whole: bool = True) -> None:
        """Its file was taken over by now, or is wanted by nobody; then it is swept away."""
        file, live.file = live.file, None
        if file is not None and whole:
            file.release()
        elif file is not None:
            file.drop()

    async def _finished(self, file: AnswerWriter, status: int, headers: Fields) -> Answer | None:
        """The whole answer, brought to the disk; None where it is not kept."""
        try:
            finished = await asyncio.to_thread(file.finish)
        except Exception as failure:  # the call is done all the same
            log.warning("answer.not_finished", error=str(failure))
            return None
        return None if finished is None else Answer(status, headers, b"", finished)

    async def keep(self, live: Live, status: int, headers: Fields) -> None:
        """The last of an answer has come whose call is settled already."""
        file, live.file = live.file, None
        if file is None:
            return
        try:
            whole = await self._finished(file, status, headers)
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
