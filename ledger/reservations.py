"""What a running call reserves beyond its first estimate. Called in transactions."""

from ledger import holds
from ledger.batch import Batch
from ledger.records import Drawn
from ledger.states import EventType
from ledger.windows import Lease, Leases
from policies import bounds, ceilings
from policies.bounds import BUDGET
from policies.call import Draw, Identity
from policies.ceilings import RESERVED, Ceiling, Count, Then
from policies.policy import Policy
from policies.verdict import Verdict


def draw(
    batch: Batch, call_id: str, tokens: int, microusd: int, policy: Policy, at_us: int
) -> Drawn:
    """Grant what every ceiling has left for it, tokens and money each by their own ceilings.

    Where there is nothing left of what it asks for, it gets nothing at all and is to be cut.
    """
    leases = batch.held(call_id).leases
    quiet = under(batch, leases, policy, at_us)
    granted: dict[str, int] = {Count.TOKENS: max(0, tokens), Count.SPEND: max(0, microusd)}
    wanted = {count for count, amount in granted.items() if amount}
    for lease in leases:
        if lease.kind not in wanted:
            continue
        for ceiling in _over(batch, lease, policy, call_id):
            window = batch.windows.window(ceiling, lease.subject)
            left = max(0, ceiling.at_most - ceilings.used(ceiling, window, at_us))
            granted[lease.kind] = min(granted[lease.kind], left)
            if not left:
                empty = Draw(ceiling, lease.subject, window, 1)
                return Drawn(0, 0, _refused(batch, empty, call_id, at_us))
    batch.grown(call_id, tuple(_grown(batch, lease, granted, at_us) for lease in leases))
    tell_over(batch, quiet, call_id, at_us)
    return Drawn(granted[Count.TOKENS], granted[Count.SPEND])


def _over(batch: Batch, lease: Lease, policy: Policy, call_id: str) -> list[Ceiling]:
    """The ceilings of today over what a call reserved when it began. Where a person could let it
    pass, none can while it runs; but what a person let pass was let pass."""
    if lease.window == BUDGET:
        row = batch.conn.execute(
            "SELECT budget_microusd FROM run WHERE name = ?", (lease.subject,)
        ).fetchone()
        return [] if row is None or row[0] is None else [bounds.budget(lease.subject, row[0])]
    found = [one for one in policy.windows.get(lease.window, ()) if one.then is not Then.ALERT]
    if any(one.then is Then.HOLD for one in found) and holds.let_pass(batch.conn, call_id):
        return [one for one in found if one.then is not Then.HOLD]
    return found


def _grown(batch: Batch, lease: Lease, granted: dict[str, int], at_us: int) -> Lease:
    more = granted.get(lease.kind, 0)
    return batch.windows.grow(lease, at_us, more) if more else lease


def _refused(batch: Batch, empty: Draw, call_id: str, at_us: int) -> Verdict:
    """The verdict over a call that is to be cut; its ceiling's cord is pulled with it."""
    run, _, tool = _who(batch, call_id)
    verdict = bounds.exhausted(empty, run, tool, at_us)
    if verdict.pull is not None:
        batch.trip(verdict.pull, call_id)
    return verdict


def _who(batch: Batch, call_id: str) -> tuple[str, str, str]:
    """Run, tenant and tool of an open call, from the record."""
    row = batch.conn.execute(
        "SELECT run, tenant, tool FROM event WHERE call_id = ? AND type = 'call.intent'",
        (call_id,),
    ).fetchone()
    if row is None:
        return "", "", ""
    run, tenant, tool = row
    return run or "", tenant or "", tool or ""


Under = list[tuple[Ceiling, str]]


def under(batch: Batch, leases: Leases, policy: Policy | None, at_us: int) -> Under:
    """The limits that only tell, over what a call reserved, that are not gone over yet."""
    if policy is None:
        return []
    return [
        (ceiling, lease.subject)
        for lease in leases
        if lease.kind in RESERVED
        for ceiling in policy.windows.get(lease.window, ())
        if ceiling.then is Then.ALERT and not _is_over(batch, ceiling, lease.subject, at_us)
    ]


def tell_over(batch: Batch, before: Under, call_id: str, at_us: int) -> None:
    """Tell those that what the call drew or came to has gone over."""
    for ceiling, subject in before:
        if _is_over(batch, ceiling, subject, at_us):
            run, tenant, tool = _who(batch, call_id)
            text = bounds.told(ceiling, subject)
            batch.tell(EventType.CROSSED, text, Identity(run, tenant), tool, at_us)


def _is_over(batch: Batch, ceiling: Ceiling, subject: str, at_us: int) -> bool:
    return ceilings.used(ceiling, batch.windows.window(ceiling, subject), at_us) > ceiling.at_most
