"""The proxy's side of a drill: its token, its port, its cords, and how the last one ended.

A drill can be begun by an operator only, and one at a time. It ends by itself, and so do the cords
that it pulls: whatever happens to the program that drills, it leaves nothing open and nothing shut.
"""

import asyncio
from typing import Any

import structlog

from ledger.errors import LedgerError
from ledger.store import Store
from ledger.tokens import Grant
from policies.call import Identity
from policies.policy import CANARY, DRILL_TENANT
from policies.standing import standing
from policies.verdict import Level, Pull, Scope
from proxy import operations, pulling
from proxy.identity import new_token, token_hash

log = structlog.get_logger()

DRILL_SECONDS = 60.0  # a drill takes a few; after this its program has died
CORD_SECONDS = 10.0  # a level of it takes less than one
TOKEN_SECONDS = 86_400  # so that a drill a minute leaves one token a day
ACTOR = "drill"
REASON = "a drill: it ends by itself in seconds"
RUN = RELEASE = DRILL_TENANT

SUBJECTS = {
    Scope.RUN: RUN,
    Scope.TOOL: CANARY,
    Scope.RELEASE: RELEASE,
    Scope.TENANT: DRILL_TENANT,
    Scope.GLOBAL: "",
}
"""What a drill pulls in each scope; only `global` concerns anybody else."""

_CANARY = Identity(RUN, DRILL_TENANT, release=RELEASE, tools=(CANARY,))


class Drilling:
    """One for each proxy; every method is for the loop of its decider.

    `failure` is why the last drill failed; empty when it passed, and before the first.
    """

    def __init__(self, service: pulling.Service) -> None:
        self.failure = ""
        self._service = service
        self._decider = service.decider
        self._fleet = service.fleet
        self._clock = service.clock
        self._secret = ""
        self._secret_until_us = 0
        self._over: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def begin(self, port: int) -> str:
        """Let the canary fly to this port of loopback. Its token's secret.

        Raises OperationError while another drill runs and while a cord stands that stops the
        canary; LedgerError.
        """
        if self._over is not None:
            raise operations.OperationError(
                f"another drill runs; it ends by itself within {DRILL_SECONDS:g} seconds"
            )
        self._over = asyncio.get_running_loop().call_later(DRILL_SECONDS, self._expire)
        try:
            await self._lifted()
            self._check_free()
            await self._mint()
            self._decider.canary_port = port
            await self._fleet.sweep()
        except BaseException:
            self._close()
            raise
        return self._secret

    async def pull(self, level: Level, scope: Scope) -> pulling.Answer:
        """Pull a cord over the canary, as an operator's command does.

        Raises OperationError, LedgerError.
        """
        self._check_running()
        self._check_free()  # else a shorter cord of somebody's would become the drill's, and end
        now_us = self._clock.now_us()
        until_us = now_us + round(CORD_SECONDS * 1_000_000)
        cord = Pull(level, scope, SUBJECTS[scope], REASON, ACTOR, now_us, until_us)
        answer = await pulling.pull(self._service, cord)
        if not answer["changed"]:
            raise operations.OperationError(
                f"{operations.described(cord)} is pulled by somebody else; it stays"
            )
        return answer

    async def release(self, level: Level, scope: Scope) -> None:
        """Lift the drill's own cord. Raises OperationError when it is another's by now."""
        self._check_running()
        name = (level, scope, SUBJECTS[scope])
        await self._lifted(name)
        found = self._decider.pulls.get(name)
        if found is not None:
            raise operations.OperationError(
                f"{operations.described(found)} was pulled meanwhile by {found.actor}; it stays"
            )

    async def end(self) -> None:
        """No canary flies from now on, and nothing that the drill pulled stands. Raises
        LedgerError; then the cords end by their time."""
        self._close()
        await self._lifted()
        await self._fleet.sweep()

    async def failed(self, why: str, *, halts: bool) -> None:
        """Remember it for `readyz`; with `halts` nothing passes from now on. Raises LedgerError."""
        self.failure = why
        self._secret = ""  # whatever was wrong, it is not the old token the next time
        log.error("drill.failed", why=why, halts=halts)
        if halts:
            reason = f"a drill failed: {why}"[: operations.TEXT_CHARACTERS_MAX]
            cord = Pull(Level.HALT, Scope.GLOBAL, "", reason, ACTOR, self._clock.now_us())
            await self._decider.act(lambda store: store.pull(cord))
            await self._fleet.sweep()

    async def _lifted(self, only: operations.CordName | None = None) -> None:
        now_us = self._clock.now_us()
        await self._decider.act(lambda store: _lift(store, now_us, only))

    def _check_running(self) -> None:
        if self._over is None:
            raise operations.OperationError("no drill runs; begin one: pullcord drill")

    def _check_free(self) -> None:
        policy = self._decider.policy
        for level in (Level.HALT, Level.FREEZE):
            cord = standing(policy, CANARY, _CANARY, self._decider.pulls, level)
            if cord is not None:
                raise operations.OperationError(
                    f"nothing to prove: {operations.described(cord)} stands (by {cord.actor}) "
                    "and stops the canary, too"
                )

    def _close(self) -> None:
        self._decider.canary_port = 0
        if self._over is not None:
            self._over.cancel()
            self._over = None

    def _expire(self) -> None:
        log.error("drill.abandoned")
        self._ending = asyncio.get_running_loop().create_task(self._expired())

    async def _expired(self) -> None:
        try:
            await self.end()
        except LedgerError as failure:
            log.error("drill.not_ended", error=str(failure))

    async def _mint(self) -> None:
        now_us = self._clock.now_us()
        if self._secret and now_us < self._secret_until_us - round(DRILL_SECONDS * 1_000_000):
            return
        secret, until_us = new_token(), now_us + TOKEN_SECONDS * 1_000_000
        grant = Grant(RUN, DRILL_TENANT, release=RELEASE, tools=(CANARY,), expires_us=until_us)

        def mint(store: Store) -> Any:
            store.revoke(RUN, actor=ACTOR, at_us=now_us, reason="the drill gets a new one")
            return store.mint(grant, token_hash(secret), actor=ACTOR, at_us=now_us)

        await self._decider.act(mint)
        self._secret, self._secret_until_us = secret, until_us


def _lift(store: Store, at_us: int, only: operations.CordName | None = None) -> None:
    """Lift what a drill pulled, this cord or all; never what somebody else did, or made last."""
    for name, cord in store.pulls.items():
        if not _is_ours(cord) or only not in (None, name):
            continue
        why = "this part of the drill is over"
        lifted = store.release(*name, reason=why, actor=ACTOR, at_us=at_us)
        if lifted is not None and not _is_ours(lifted):
            store.pull(lifted)  # somebody pulled it in this very transaction


def _is_ours(cord: Pull) -> bool:
    return (cord.actor, cord.reason) == (ACTOR, REASON)
