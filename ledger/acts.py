"""What people and programs do beside calls: operators, alerts, notes, tokens, budgets, policies.

The part of the store that judges no call; `store.py` builds on it.
"""

from ledger import allowances, budgets, operators, resolution, tokens
from ledger.allowances import Allowance
from ledger.batch import Batch
from ledger.budgets import Adjusted, Spent, Stops
from ledger.errors import LedgerError
from ledger.records import Ask, Bearer, Operator
from ledger.redact import check_storable, redact, storable
from ledger.resolution import Resolution
from ledger.states import CallState, EventType
from ledger.tokens import Grant, Token
from ledger.transactions import Transactions
from policies.call import Identity
from policies.ceilings import Per, usd
from policies.policy import Policy
from policies.verdict import Reason, Verdict


class Acts(Transactions):
    """Every act is a transaction of its own, or part of the one around it."""

    # Operators, alerts and what else people do

    def enroll(
        self, name: str, role: str, token_hash: bytes, *, actor: str, at_us: int
    ) -> Operator:
        """Record an operator by the hash of the token. Raises LedgerError for a name in use."""
        with self._joined() as batch:
            made = operators.enroll(self._conn, name, role, token_hash, actor=actor, at_us=at_us)
            detail = f"operator {name} ({role}, token {made.id})"
            batch.journal.noted(EventType.ENROLLED, at_us=at_us, actor=actor, detail=detail)
            batch.must_last = True
            return made

    def operator(self, token_hash: bytes) -> Operator | None:
        """The operator whose token this is, unless dismissed."""
        with self._joined():
            return operators.by_hash(self._conn, token_hash)

    def dismiss(self, name: str, *, actor: str, at_us: int) -> Operator | None:
        """End an operator's token; who that was, or None."""
        check_storable(name, actor)
        with self._joined() as batch:
            gone = operators.dismiss(self._conn, name, at_us)
            if gone is not None:
                detail = f"operator {name} ({gone.role}, token {gone.id})"
                batch.journal.noted(EventType.DISMISSED, at_us=at_us, actor=actor, detail=detail)
                batch.must_last = True
            return gone

    def operators(self) -> list[Operator]:
        """All of them, dismissed ones too, the newest first."""
        with self._joined():
            return operators.listed(self._conn)

    def alert_is_new(self, fingerprint: str, starts_at: str, at_us: int) -> bool:
        """Whether this alert comes in for the first time."""
        with self._joined() as batch:
            new = operators.alert_is_new(self._conn, fingerprint, starts_at, at_us)
            batch.must_last = batch.must_last or new
            return new

    def note(
        self,
        kind: EventType,
        *,
        actor: str,
        at_us: int,
        detail: str,
        run: str = "",
        tenant: str = "",
        tool: str = "",
        call_id: str = "",
    ) -> None:
        """A row about an act. `detail` is redacted, and cut as a path is."""
        with self._joined() as batch:
            batch.journal.noted(
                kind,
                at_us=at_us,
                actor=storable(actor),
                detail=redact(detail, self._redact_key),
                run=storable(run),
                tenant=storable(tenant),
                tool=storable(tool),
                call_id=call_id,
            )

    # Tokens and policies

    def mint(
        self,
        grant: Grant,
        token_hash: bytes,
        *,
        actor: str,
        at_us: int,
        by: Bearer | None = None,
        policy: Policy | None = None,
    ) -> Token:
        """Record a token by its hash. `by` is the run's own token when a run mints for a child.

        A child that is new counts on the ceilings of the `policy` in force; without one it is
        refused. Raises LedgerError, and OverCeiling (the cord of that ceiling then stands, so the
        transaction around this has to go on).
        """

        def spawn(child: Identity) -> None:
            budgets.spawn(batch, policy, child, actor, at_us)

        with self._joined() as batch:
            before = tokens.budget(self._conn, grant.run)
            token = tokens.mint(
                self._conn, grant, token_hash, actor=actor, at_us=at_us, by=by, spawn=spawn
            )
            said = _said(token, before, grant.budget_microusd)
            self._noted(batch, EventType.MINTED, token, actor=actor, at_us=at_us, said=said)
            return token

    def has_run(self, name: str) -> bool:
        """Whether a token was minted for this run before."""
        with self._joined():
            return tokens.is_run(self._conn, name)

    def acting(self, ask: Ask, policy: Policy, stops: Stops) -> Identity | Verdict | Reason:
        """Who asks to act for itself, or why it may not: it is nobody known, or it is stopped."""
        with self._joined() as batch:
            return budgets.acting(batch, ask.claimant, policy, stops, ask.at_us)

    def step(self, identity: Identity, steps: int, policy: Policy, at_us: int) -> Verdict | None:
        """Count steps that a run declares; why they are refused, and then none is counted."""
        with self._joined() as batch:
            return budgets.step(batch, identity, steps, policy, at_us)

    def progress(
        self, identity: Identity, mark: int, note: str, policy: Policy, at_us: int
    ) -> Verdict | None:
        """Record that a run marks progress; why it may not now, and then nothing is."""
        with self._joined() as batch:
            return budgets.tell(
                batch, identity, EventType.PROGRESSED, policy, at_us, mark=mark, note=note
            )

    def end(self, identity: Identity, policy: Policy, at_us: int) -> Verdict | None:
        """Record that a run says it has ended; why it may not now. It revokes nothing."""
        with self._joined() as batch:
            return budgets.tell(batch, identity, EventType.ENDED, policy, at_us)

    # Budgets

    def spent(self, per: Per, subject: str, policy: Policy, at_us: int) -> list[Spent]:
        """What was spent under each ceiling on spend of a subject, and its own budget."""
        with self._joined() as batch:
            return budgets.spent(batch, per, subject, policy, at_us)

    def allowances(self, per: Per, subject: str, policy: Policy, at_us: int) -> list[Allowance]:
        """Every window over a run, or every window of anybody else, with what is left of it."""
        with self._joined() as batch:
            return allowances.over(batch, per, subject, policy, at_us)

    def allowance(self, name: str, subject: str, policy: Policy, at_us: int) -> Allowance | None:
        """The window of one ceiling by its id; None when the policy has none of that id."""
        with self._joined() as batch:
            return allowances.of_ceiling(batch, name, subject, policy, at_us)

    def root_of(self, run: str) -> str:
        with self._joined():
            return allowances.root(self._conn, run)

    def set_budget(
        self, run: str, microusd: int | None, *, reason: str, actor: str, at_us: int
    ) -> int | None:
        """Give a run another budget of its own, or with None take it away. What it was. Raises
        LedgerError for a run that no token was minted for."""
        if not reason.strip() or not actor.strip():
            raise LedgerError("a budget is set by a named person with a reason")
        check_storable(run, reason, actor)
        with self._joined() as batch:
            if not tokens.is_run(self._conn, run):
                raise LedgerError(f"run {run} has no token, and only that carries a budget")
            before = tokens.budget(self._conn, run)
            tokens.set_budget(self._conn, run, microusd)
            now, was = (
                "none" if each is None else f"{usd(each)} USD" for each in (microusd, before)
            )
            self.note(
                EventType.ADJUSTED,
                actor=actor,
                at_us=at_us,
                detail=f"budget of {run} {now} (was {was}): {reason}",
                run=run,
            )
            batch.tokens_changed()
            return before

    def adjust(
        self,
        per: Per,
        subject: str,
        microusd: int,
        policy: Policy,
        *,
        reason: str,
        actor: str,
        at_us: int,
    ) -> list[Adjusted]:
        """Correct by hand what a subject has spent. Raises LedgerError where nothing bounds it."""
        if not reason.strip() or not actor.strip():
            raise LedgerError("a budget is adjusted by a named person with a reason")
        check_storable(subject, reason, actor)
        with self._joined() as batch:
            done = budgets.adjust(batch, per, subject, microusd, policy, at_us)
            what = f"{per} {subject}".strip()
            self.note(
                EventType.ADJUSTED,
                actor=actor,
                at_us=at_us,
                detail=f"{what} {'+' if microusd >= 0 else ''}{usd(microusd)} USD: {reason}",
                run=subject if per in (Per.RUN, Per.TREE) else "",
                tenant=subject if per is Per.TENANT else "",
                tool=subject if per is Per.TOOL else "",
            )
            batch.must_last = True
            return done

    def revoke(self, name: str, *, actor: str, at_us: int, reason: str = "") -> list[Token]:
        """Revoke a token by id, or a run's by its name, and what they minted. Those that went."""
        with self._joined() as batch:
            gone = tokens.revoke(self._conn, name, at_us)
            for token in gone:
                self._noted(
                    batch, EventType.REVOKED, token, actor=actor, at_us=at_us, reason=reason
                )
            return gone

    def tokens(self) -> list[Token]:
        with self._joined():
            return tokens.listed(self._conn)

    def _noted(
        self,
        batch: Batch,
        kind: EventType,
        token: Token,
        *,
        actor: str,
        at_us: int,
        reason: str = "",
        said: str = "",
    ) -> None:
        who = token.identity
        detail = f"token {token.id}{said}" + (f": {reason}" if reason else "")
        batch.journal.noted(
            kind, at_us=at_us, actor=actor, detail=detail, run=who.run, tenant=who.tenant
        )
        batch.tokens_changed()

    def record_policy(self, digest: str, text: str, source: str, at_us: int) -> None:
        """Keep the text of a policy and note that it is in force from now on."""
        with self._joined() as batch:
            batch.store_policy(digest, text, source, at_us)
            batch.journal.noted(
                EventType.POLICY, at_us=at_us, actor=f"policy:{digest[:12]}", detail=source
            )
            batch.must_last = True

    # Calls of unknown outcome

    def resolve(
        self,
        name: str,
        state: CallState,
        *,
        reason: str,
        actor: str,
        at_us: int,
        dry_run: bool = False,
    ) -> Resolution | None:
        """A person says how a call of unknown outcome ended; None when there is no such call.

        `name` may be the start of its id. Raises LedgerError for one that is not unknown.
        """
        if not dry_run and (not reason.strip() or not actor.strip()):
            raise LedgerError("a call is resolved by a named person with a reason")
        check_storable(name, reason, actor)
        with self._joined() as batch:
            return resolution.resolve(
                batch, name, state, reason=reason, actor=actor, at_us=at_us, dry_run=dry_run
            )


def _said(token: Token, before: int | None, budget_microusd: int | None) -> str:
    """What a row about a new token tells beside its name."""
    said = ", read-only" if token.identity.read_only else ""
    if budget_microusd is not None:
        said += f", budget of {token.identity.run} {usd(budget_microusd)} USD"
        said += "" if before is None else f" (was {usd(before)})"
    return said
