"""Log lines: one when a call is decided, one when it is settled, always the same field names.

JSON for machines, aligned words for a terminal. No line carries a header, a body, a query string
or a token: what is logged is named field by field where it is logged.
"""

import os
from typing import TYPE_CHECKING, Any, TextIO

import orjson
import structlog

from ledger.records import Ask, Decision, Hold, Outcome
from ledger.redact import redact, redact_host

if TYPE_CHECKING:
    from proxy.live import Live

log = structlog.get_logger()

_MARKS = os.urandom(16)  # equal secrets get equal marks while this process lives


def configure(stream: TextIO) -> None:
    """Send structlog to this stream. Called once, by the program."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if stream.isatty():
        structlog.configure(
            processors=[*shared, structlog.dev.ConsoleRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger(20),
            logger_factory=structlog.PrintLoggerFactory(stream),
            cache_logger_on_first_use=True,
        )
        return
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=orjson.dumps)],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.BytesLoggerFactory(stream.buffer),
        cache_logger_on_first_use=True,
    )


def decided(ask: Ask, decision: Decision) -> None:
    identity = decision.identity
    log.info(
        "call.decided",
        call=ask.call_id,
        run=identity.run if identity else None,
        tenant=identity.tenant if identity else None,
        tool=ask.call.tool,
        effect=ask.call.effect,
        host=redact_host(ask.request.host, _MARKS),
        decision=decision.verdict.action,
        reason=decision.verdict.reason,
        rule=decision.verdict.rule,
    )


def held(ask: Ask, hold: Hold) -> None:
    """A call waits for a person."""
    log.warning(
        "call.held",
        call=ask.call_id,
        run=hold.run,
        tenant=hold.tenant,
        tool=hold.tool,
        rule=hold.rule,
        ticket=hold.ticket,
        next=f"pullcord hold show {hold.ticket}",
    )


def in_flight(live: "Live", now_seconds: float) -> dict[str, Any]:
    """A call in flight, as it is listed for people."""
    return {
        "id": live.call_id,
        "run": live.identity.run,
        "tenant": live.identity.tenant,
        "tool": live.call.tool,
        "effect": live.call.effect.value,
        "method": live.request.method,
        "host": live.request.host,
        "sent": live.sent,
        "seconds": round(max(0.0, now_seconds - live.asked_seconds), 1),
    }


def settled(live: "Live", outcome: Outcome) -> None:
    log.info(
        "call.settled",
        call=live.call_id,
        run=live.identity.run,
        tenant=live.identity.tenant,
        tool=live.call.tool,
        state=outcome.state,
        status=outcome.status,
        latency_ms=round(outcome.latency_us / 1e3, 1),
        tokens=outcome.used_tokens,
        microusd=outcome.used_microusd,
        error=outcome.error or None,
    )


def exhausted(live: "Live", rule: str, tokens: int, microusd: int) -> None:
    """A stream is cut: it came to more than these, and was granted no more."""
    log.warning(
        "call.exhausted",
        call=live.call_id,
        run=live.identity.run,
        tenant=live.identity.tenant,
        tool=live.call.tool,
        rule=rule,
        tokens=tokens,
        microusd=microusd,
    )


def unpriced(call_id: str, model: str, asked: str) -> None:
    """A model that nobody has a price for. Its names are the world's, so secrets are masked."""
    names = {"model": redact(model, _MARKS), "asked": redact(asked, _MARKS)}
    log.warning("model.unpriced", call=call_id, **names)
