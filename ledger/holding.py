"""The store's acts on tickets: a call that is held, and the person who decides it."""

from ledger import holds
from ledger.acts import Acts
from ledger.errors import LedgerError
from ledger.records import Arguments, Ask, Hold
from ledger.redact import check_storable, redact, redact_host
from ledger.shown import masked
from ledger.sqlite import sqlite3
from ledger.states import HoldState
from policies.verdict import Reason

LISTED_MAX = 500


class Holding(Acts):
    """Every act is a transaction of its own, or part of the one around it."""

    def hold(self, ask: Ask, shown: Arguments, rule: str, wait_seconds: int) -> Hold | None:
        """The ticket of a call that was held: the one that is open for this very request, or a
        new one. None when there is no room for it, or its caller is nobody any more."""
        if not ask.bound_to:
            raise LedgerError("a ticket must be bound to a request")
        if len(shown.body) > holds.HOLD_BODY_BYTES_MAX:
            raise LedgerError("nobody can look at so long a body")
        with self._joined() as batch:
            holds.expire(batch, ask.at_us)
            who, refused = batch.resolve(ask.claimant, ask.at_us)
            if who is None or refused is not None:
                return None
            found = holds.open_for(self._conn, self._vault, ask, who)
            if found is not None:
                return found
            if not holds.has_room(self._conn, who):
                return None
            operation = redact(ask.call.operation, self._redact_key)
            host = redact_host(ask.request.host, self._redact_key)
            made = Hold(
                ticket=holds.new_ticket(self._conn, ask.call_id),
                run=who.run,
                tenant=who.tenant,
                agent=who.agent,
                tool=ask.call.tool,
                rule=rule,
                summary=f"{operation} at {host}",
                state=HoldState.WAITING,
                at_us=ask.at_us,
                until_us=ask.at_us + wait_seconds * 1_000_000,
                bound_to=holds.bound(self._vault, ask, who),
            )
            holds.start(batch, made, masked(shown, self._redact_key), self._vault)
            batch.must_last = True
            return made

    def held(self, ticket: str, at_us: int) -> Hold | None:
        """How a ticket stands now."""
        with self._joined() as batch:
            found = holds.named(self._conn, ticket)
            if found is None or found.until_us > at_us:
                return found
            holds.expire(batch, at_us)
            return holds.named(self._conn, ticket)

    def left(self, call_id: str, at_us: int, reason: Reason, why: str) -> None:
        """A call that was held waits no longer, and nothing of it was sent."""
        with self._joined() as batch:
            if _is_held(self._conn, call_id):
                batch.journal.ended(holds.unsent(call_id, at_us, reason, why))

    def holds(self, at_us: int) -> list[Hold]:
        """The open tickets, the oldest first, then the closed ones, the newest first."""
        with self._joined() as batch:
            holds.expire(batch, at_us)
            return holds.listed(self._conn, LISTED_MAX)

    def shown(self, ticket: str, at_us: int) -> tuple[Hold, Arguments | None] | None:
        """A ticket with all that the person must see; that is None if it cannot be unsealed."""
        found = self.held(ticket, at_us)
        if found is None:
            return None
        with self._joined():
            return found, holds.arguments(self._conn, self._vault, ticket)

    def decide_hold(
        self, ticket: str, to: HoldState, *, actor: str, reason: str, at_us: int
    ) -> Hold | None:
        """A person approves or rejects; None when there is no such ticket. Raises LedgerError when
        it was decided or has expired."""
        check_storable(ticket, actor, reason)
        if to not in (HoldState.APPROVED, HoldState.REJECTED) or not actor.strip():
            raise LedgerError("a ticket is approved or rejected by a named person")
        found = self.held(ticket, at_us)
        if found is None:
            return None
        with self._joined() as batch:
            return holds.decide(batch, found, to, actor=actor, reason=reason, at_us=at_us)


def _is_held(conn: sqlite3.Connection, call_id: str) -> bool:
    """Whether it was held and nothing followed yet."""
    kinds = [
        kind
        for (kind,) in conn.execute("SELECT type FROM event WHERE call_id = ?", (call_id,))
        if kind.startswith("call.")
    ]
    return bool(kinds) and set(kinds) == {"call.held"}
