"""Every window over somebody: what it has used of each ceiling, and what is left. Reads only.

The arithmetic is policies/ceilings.py; corrections by hand are budgets.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from ledger import tokens
from ledger.batch import Batch
from ledger.sqlite import sqlite3
from policies import bounds, ceilings
from policies.call import Effect, Identity, ToolCall
from policies.ceilings import Ceiling, Per
from policies.policy import Policy, covers

_OF_CALLS = frozenset({Per.TOOL, Per.DESTINATION})
_NO_CALL = ToolCall("", Effect.READ, "", b"")


@dataclass(frozen=True, slots=True)
class Allowance:
    """One window of one ceiling: whose, and how much is used. Money is micro-dollars."""

    ceiling: Ceiling
    subject: str
    used: int
    wait_seconds: int | None
    """Until there is room for one more; 0 where there is, None where time alone brings none."""

    @property
    def left(self) -> int:
        return max(0, self.ceiling.at_most - self.used)


def over(batch: Batch, per: Per, subject: str, policy: Policy, now_us: int) -> list[Allowance]:
    """Of a run: every window that can refuse it, whatever tool it calls. Of all else: its own
    windows. Empty for a run that is not known."""
    pairs = _over_run if per is Per.RUN else _own
    return [
        _read(batch, ceiling, whose, now_us)
        for ceiling, whose in pairs(batch.conn, per, subject, policy)
    ]


def of_ceiling(
    batch: Batch, name: str, subject: str, policy: Policy, now_us: int
) -> Allowance | None:
    """The window of the ceiling of that id; None when the policy has no such ceiling."""
    for ceiling in policy.ceilings:
        if ceiling.id == name:
            return _read(batch, ceiling, subject, now_us)
    return None


def root(conn: sqlite3.Connection, run: str) -> str:
    """The root of a run's tree: itself where nobody started it, or it is not known."""
    who = _known(conn, run)
    return who.root if who else run


def _read(batch: Batch, ceiling: Ceiling, subject: str, now_us: int) -> Allowance:
    window = batch.windows.window(ceiling, subject)
    used = ceilings.used(ceiling, window, now_us)
    room = used < ceiling.at_most
    wait_seconds = 0 if room else ceilings.wait_seconds(ceiling, window, now_us)
    return Allowance(ceiling, subject, used, wait_seconds)


def _own(
    _: sqlite3.Connection, per: Per, subject: str, policy: Policy
) -> Iterator[tuple[Ceiling, str]]:
    for ceiling in policy.ceilings:
        if ceiling.per is per and (per is not Per.TOOL or covers(ceiling.tools, subject)):
            yield ceiling, subject


def _over_run(
    conn: sqlite3.Connection, _: Per, run: str, policy: Policy
) -> Iterator[tuple[Ceiling, str]]:
    who = _known(conn, run)
    if who is None:
        return
    for ceiling in policy.ceilings:
        if ceiling.per not in _OF_CALLS:
            for subject in bounds.subjects_of(ceiling.per, who, _NO_CALL):
                yield ceiling, subject
    for each in (who.run, *who.ancestors):
        at_most_microusd = tokens.budget(conn, each)
        if at_most_microusd is not None:
            yield bounds.budget(each, at_most_microusd), each


def _known(conn: sqlite3.Connection, run: str) -> Identity | None:
    """A run as its newest token has it; one without a token, as its newest call."""
    row = conn.execute(
        "SELECT r.tenant, r.ancestors, r.agent, coalesce((SELECT t.release FROM token t "
        "WHERE t.run = r.name ORDER BY t.revoked_us IS NULL DESC, t.created_us DESC LIMIT 1), "
        "r.release) FROM run r WHERE r.name = ?",
        (run,),
    ).fetchone()
    if row is not None:
        tenant, above, agent, release = row
        return Identity(run, tenant, tuple(orjson.loads(above)), agent, release)
    row = conn.execute(
        "SELECT tenant, agent, release FROM event WHERE run = ? AND decision IS NOT NULL "
        "ORDER BY seq DESC LIMIT 1",
        (run,),
    ).fetchone()
    return None if row is None else Identity(run, row[0] or "", (), row[1] or "", row[2] or "")
