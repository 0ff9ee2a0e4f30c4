"""A ledger in which a run has run away beside healthy ones, filled through a real store, and the
policies of the days before and after."""

import contextlib
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from ledger import incident_reads
from ledger.connection import open_reader
from ledger.errors import LedgerError
from ledger.open_incidents import Incident
from ledger.records import Ask, Bearer
from ledger.states import CallState, ClaimAfter
from ledger.store import Outcome, Store
from ledger.tokens import Grant
from policies.call import Identity, Request, Traits
from policies.decide import decide
from policies.load import load
from policies.match import identify
from policies.policy import Policy
from policies.verdict import Action, Level, Pull, Scope
from proxy import secret_keys

START_US = 1_800_000_000_000_000
CALLS = 40  # of the run that ran away
HEALTHY = 3  # runs
COST_MICROUSD = 10_000

# Of that day: it only told. Since then: it pulls the cord.
BEFORE = """\
version: 1
tools:
  refunds.create: {match: {host: pay.example, method: POST, path: /v1/refunds}, effect: write}
  charges.read: {match: {host: pay.example, method: GET}, effect: read}
detectors: {loop: alert}
"""
LOOP = BEFORE.replace("loop: alert", "loop: enforce")
FEW = f"{BEFORE}ceilings:\n  - {{per: run, count: writes, at_most: 4, within: 1m, then: freeze}}\n"
SLOW = FEW.replace("freeze", "throttle")
TREE = f"{BEFORE}ceilings:\n  - {{per: tree, count: spawned, at_most: 5, then: halt}}\n"
REFUSED = f"{BEFORE}releases: {{refused: [v8]}}\n"
FROZEN = f"{BEFORE}frozen: [refunds.create]\n"

Calls = list[str]
"""The ids of those that were let through."""


@dataclass
class Runaway:
    """A second passes between two calls of one run."""

    data: Path
    policy: Policy = field(default_factory=lambda: load(BEFORE))
    now_us: int = START_US
    asked: int = 0

    def __post_init__(self) -> None:
        key = secret_keys.vault_key(self.data)
        self.store = Store.open(self.data, key, lambda: self.now_us)

    def call(
        self,
        run: str,
        method: str,
        path: str,
        body: str = "",
        result: str = "",
        above: tuple[str, ...] = (),
        release: str = "v7",
    ) -> str:
        """Its id; empty where it was not let through."""
        self.asked += 1
        call_id = str(UUID(int=self.now_us // 1_000 << 80 | 7 << 76 | 2 << 62 | self.asked))
        kind = (("content-type", "application/json"),)
        request = Request(method, "https", "pay.example", 443, path, kind, body.encode())
        call = identify(self.policy, request)
        who = Identity(run, "acme", above, agent="biller", release=release)
        ask = Ask(call_id, self.now_us, who, request, call, traits=Traits(f"{path}{body}".encode()))
        with self.store.transaction(durable=False):
            if self.store.admit(ask, self.policy, decide).verdict.action is not Action.ALLOW:
                return ""
            outcome = Outcome(
                call_id, self.now_us, CallState.DONE, ClaimAfter.KEPT, 200,
                cost_microusd=COST_MICROUSD, result=result.encode(),
            )  # fmt: skip
            if method == "POST":
                outcome = replace(outcome, claim_after=ClaimAfter.DONE)
            self.store.settle(outcome, self.policy)
        return call_id

    def loops(self) -> Calls:
        """The same read with the same result, again and again."""
        return self._beside(
            lambda number: self.call("r1", "GET", "/v1/charges/ch_1", result="pending")
        )

    def refunds(self) -> Calls:
        """One refund after another."""
        return self._beside(
            lambda number: self.call(
                "r1", "POST", "/v1/refunds", f'{{"charge":"ch_{number}"}}', f"re_{number}"
            )
        )

    def fans_out(self, runs: int = 12) -> Calls:
        """It starts run after run; each makes a refund."""
        self._mint("r1")

        def once(number: int) -> str:
            child = f"r1-{number}"
            if number >= runs:
                return ""
            with contextlib.suppress(LedgerError):
                self._mint(child, by=Bearer("r1", _hash("r1")))
                body = f'{{"charge":"ch_{child}"}}'
                return self.call(child, "POST", "/v1/refunds", body, f"re_{child}", ("r1",))
            return ""

        return self._beside(once)

    def releases(self, runs: int = 5) -> Calls:
        """All runs of a bad release refund what nobody asked for."""

        def once(number: int) -> str:
            body = f'{{"charge":"ch_bad_{number}"}}'
            run = f"b{number % runs}"
            return self.call(run, "POST", "/v1/refunds", body, f"re_{number}", release="v8")

        return self._beside(once)

    def _mint(self, run: str, by: Bearer | None = None) -> None:
        grant = Grant(run, "acme", agent="biller", release="v7")
        self.store.mint(
            grant, _hash(run), actor="ann", at_us=self.now_us, by=by, policy=self.policy
        )

    def _beside(self, once: Any) -> Calls:
        """Healthy runs go on beside it."""
        passed = []
        for number in range(CALLS):
            if number % 10 == 5:
                for each in range(HEALTHY):
                    self._healthy(f"h{each}", number)
            passed.append(once(number))
            self.now_us += 1_000_000
        return [one for one in passed if one]

    def _healthy(self, run: str, number: int) -> None:
        charge = f"ch_{run}_{number}"
        self.call(run, "GET", f"/v1/charges/{charge}", result=f"paid {charge}")
        self.call(run, "POST", "/v1/refunds", f'{{"charge":"{charge}"}}', f"re_{charge}")

    def halts(self, *, calls: int = 3) -> None:
        """A person stops it; it tries on."""
        self.store.pull(Pull(Level.HALT, Scope.RUN, "r1", "stop it", "ann", self.now_us))
        for number in range(calls):
            self.now_us += 1_000_000
            self.call("r1", "POST", "/v1/refunds", f'{{"charge":"ch_late_{number}"}}')

    def resumes(self) -> None:
        self.now_us += 1_000_000
        self.store.release(
            Level.HALT, Scope.RUN, "r1", reason="mended", actor="ann", at_us=self.now_us
        )

    def opened(self, kind: Scope = Scope.RUN, name: str = "r1", tenant: str = "acme") -> str:
        """A person opens an incident over it."""
        found, _ = self.store.open_incident(
            kind, name, tenant, START_US, "refunds", "ann", self.now_us
        )
        return found.id

    def the_incident(self) -> Incident:
        with closing(open_reader(self.data)) as reader:
            (found,) = incident_reads.listed(reader, 10)
            return found

    def ends(self) -> None:
        self.store.close()


def _hash(run: str) -> bytes:
    return run.encode().ljust(32, b"-")


def looped(data: Path, policy: str = BEFORE) -> str:
    """The id of the incident of a loop that a detector told of, and a person halted."""
    made = Runaway(data, load(policy))
    made.loops()
    made.halts()
    found = made.the_incident().id
    made.ends()
    return found


def refunded(data: Path, policy: str = BEFORE) -> str:
    """The id of the incident of refunds that only a person noticed."""
    made = Runaway(data, load(policy))
    made.refunds()
    made.halts()
    found = made.opened()
    made.ends()
    return found
