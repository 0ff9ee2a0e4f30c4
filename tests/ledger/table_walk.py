"""A walk: steps that a seed chooses, made on a real store and told to the model beside it.

After each step both must say the same. A step names nothing that must exist: it picks among what
there is, so that a walk from which steps were taken out is still a walk.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger import chain, checks
from ledger.connection import open_reader
from ledger.errors import LedgerError
from ledger.records import Ask, Decision
from ledger.states import CallState, ClaimAfter, outcome_of
from ledger.workers import LEFT_OPEN
from policies.call import Identity
from policies.verdict import Action
from tests.ledger.table_model import DONE, NOT_SENT, UNKNOWN, Asked, Ended, Model, Rule, answer_of
from tests.ledger.world import World, a_policy, a_worker

Step = tuple[Any, ...]

RULES = (
    Rule(),
    Rule(same_body="allow"),
    Rule(per="tenant"),
    Rule(unauthorized="release"),
    Rule(missing="require"),
    Rule(missing="off"),
    Rule(keep_seconds=60, same_body_seconds=30),
    Rule(keep_seconds=30, same_body_seconds=300, per="tenant", unauthorized="release"),
    Rule(missing="off", same_body="allow", keep_seconds=300),
)
WHO = (("r1", "acme"), ("r2", "acme"), ("r1", "bolt"))
TOOLS = ("pay", "pay", "pay", "mail")
BODIES = ("x", "x", "y", "z", "w")
KEYS = (None, None, "k1", "k2", "k3")
ENDS = (
    *(Ended(200), Ended(201), Ended(302), Ended(200), Ended(204), Ended(200), Ended(206)),
    *(Ended(200, kept=False), Ended(200, kept=False), Ended(201, kept=False)),
    *(Ended(400), Ended(404), Ended(422), Ended(409), Ended(409)),
    *(Ended(421), Ended(425), Ended(429), Ended(401), Ended(407)),
    *(Ended(500), Ended(503), Ended(503, kept=False), Ended(504)),
    *(Ended(None, complete=False), Ended(200, complete=False), Ended(500, complete=False)),
    *(Ended(None, sent=False, complete=False), Ended(None, sent=False, complete=False)),
)
WAITS_SECONDS = (0.001, 1, 29, 61, 299, 301, 599, 601, 3_600, 86_300, 86_401)
EDGES_US = (-1, 0, 1)
SLOTS = 3  # the store's own process, and two engines

_WEIGHTS = {
    "ask": 50,
    "settle": 26,
    "late": 2,
    "wait": 7,
    "edge": 8,
    "lose": 2,
    "crash": 3,
    "restart": 1,
    "together": 6,
    "reap": 3,
    "resolve": 6,
    "edit": 2,
}


class Divergence(Exception):
    """The store and the model disagree."""


def chosen(choice: random.Random, count: int) -> list[Step]:
    """Steps of a walk."""
    kinds = choice.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=count)
    return [(kind, *_details(kind, choice)) for kind in kinds]


def _details(kind: str, choice: random.Random) -> Step:
    pick = choice.randrange(2**16)
    match kind:
        case "ask":
            what = (choice.choice(TOOLS), choice.choice(BODIES), choice.choice(KEYS))
            how = (choice.random() < 0.93, choice.random() < 0.15)
            return (*what, choice.choice(WHO), choice.randrange(SLOTS), *how)
        case "together":
            kinds = ["ask", "settle", *choice.choices(("ask", "settle"), (3, 1), k=3)]
            choice.shuffle(kinds)
            parts = tuple((kind, *_details(kind, choice)) for kind in kinds)
            return parts, choice.random() < 0.3
        case "settle" | "late":
            return pick, choice.choice(ENDS)
        case "wait":
            return (choice.choice(WAITS_SECONDS),)
        case "edge":
            return pick, choice.random() < 0.5, choice.choice(EDGES_US)
        case "lose":
            return (choice.randrange(1, SLOTS),)
        case "crash":
            living = tuple(slot for slot in range(1, SLOTS) if choice.random() < 0.5)
            return pick, choice.choice(("copied", "dropped")), choice.random() < 0.5, living
        case "resolve":
            return pick, choice.choice((DONE, NOT_SENT))
        case "edit":
            return (choice.randrange(len(RULES)),)
    return ()


@dataclass(eq=False, slots=True)
class Walk:
    """`made` counts the steps that were made, `told` what asks were told; `slots` are the ids of
    the workers of now."""

    world: World
    model: Model
    made: int = 0
    asked: int = 0
    lives: int = 0
    told: Counter[str] = field(default_factory=Counter)
    slots: list[str] = field(default_factory=lambda: ["", "", ""])

    def go(self, steps: Sequence[Step]) -> None:
        """Raises Divergence, or whatever the store raises."""
        self._engines_start()
        for step in steps:
            self.made += 1
            _STEPS[step[0]](self, *step[1:])
            self._compare()
            self.world.now_us += 1
        self._compare_all()

    # The steps

    def ask(self, *what: Any) -> None:
        asked, ask = self._asked(*what)
        self._compare_told(asked, self.world.decided(ask))
        self._compare_row(asked.name)

    def together(self, parts: Sequence[Step], fails: bool) -> None:
        """In one transaction, which may fail after all its work: then it is as if never been."""
        before = deepcopy(self.model)
        store = self.world.store
        with self.world.failing() if fails else store.transaction(durable=True):
            for kind, *details in parts:
                if kind == "ask":
                    asked, ask = self._asked(*details)
                    told = store.admit(ask, self.world.policy, self.world.judge)
                    self._compare_told(asked, told)
                elif self.model.open:
                    name = _picked(sorted(self.model.open), details[0])
                    known = self._told_to_store(name, details[1])
                    _same("settled", known, self.model.settle(name, details[1], self.world.now_us))
                self.world.now_us += 1
            if fails:
                store._open_batch().write()
        if fails:
            self.model = before

    def settle(self, pick: int, end: Ended) -> None:
        if self.model.open:
            self._settle(_picked(sorted(self.model.open), pick), end)

    def late(self, pick: int, end: Ended) -> None:
        """An outcome of what has ended already."""
        ended = sorted(set(self.model.rows) - set(self.model.open))
        if ended and _picked(ended, pick) in self.world.asks:
            self._settle(_picked(ended, pick), end)

    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    def edge(self, pick: int, of_body: bool, beside_us: int) -> None:
        """To the moment at which a protection ends, or one microsecond beside it."""
        model, now_us = self.model, self.world.now_us
        ends: list[int] = []
        for claim in model.claims:
            if claim.state == DONE and of_body:
                ends.append(model.body_until_us(claim))
            elif claim.state == DONE:
                ends += [model.own_until_us(claim), *claim.aliases.values()]
        coming = sorted(end_us for end_us in ends if end_us + beside_us > now_us)
        if coming:  # what is told next is told a microsecond later
            self.world.now_us = _picked(coming, pick) + beside_us - 1

    def lose(self, slot: int) -> None:
        self.world.store.forsake(self.slots[slot], self.world.now_us, LEFT_OPEN)
        self.model.lost({self.slots[slot]})
        self._engines_start(slot)

    def crash(self, pick: int, how: str, in_midst: bool, living: tuple[int, ...]) -> None:
        """Nothing is settled or closed; in the midst of a transaction, or between two."""
        store, data = self.world.store, self.world.data
        half = store.transaction(durable=True)
        if in_midst:
            half.__enter__()
            _, ask = self._asked("pay", f"b{pick}", None, WHO[0], 0, True, False)
            store.admit(ask, self.world.policy, self.world.judge)
            if self.model.open:
                self._told_to_store(_picked(sorted(self.model.open), pick), Ended(200))
            store._open_batch().write()
        if how == "copied":  # as the disk holds it at a SIGKILL
            self.world.data = data.with_name(f"life-{self.lives}")
            unlinked = shutil.ignore_patterns("*-shm")
            shutil.copytree(data, self.world.data, ignore=unlinked)
        store._inspection.close()
        store._writer.conn.close()
        store._writer.release_lock()
        del half
        self._opened(living)
        if how == "copied":
            shutil.rmtree(data)

    def restart(self) -> None:
        self.world.store.close()
        self._opened(())

    def reap(self) -> None:
        while self.world.store.reap(limit=7):
            pass
        self.model.reap(self.world.now_us)

    def edit(self, number: int) -> None:
        """Another rule from here on; claims keep the one under which they were taken."""
        self.model.rule = RULES[number]
        words = {name: getattr(RULES[number], name) for name in Rule.__slots__}
        self.world.policy = a_policy(digest=f"d{number}", **words)

    def resolve(self, pick: int, state: str) -> None:
        """A person's word, most often on a call that is unknown."""
        unknown = [name for name, is_now in self.model.rows.items() if is_now == UNKNOWN]
        names = unknown if pick % 4 else sorted(self.model.rows)
        if not names:
            return
        name, now_us = _picked(names, pick), self.world.now_us
        before = self.model.rows[name]
        said: dict[str, Any] = {"reason": "looked", "actor": "ann", "at_us": now_us}
        try:
            done = self.world.store.resolve(name, CallState(state), **said)
            changed = done is not None and done.changed
        except LedgerError:
            changed = False
        _same("resolved", changed, self.model.resolve(name, state, now_us))
        _same("a word on what is no unknown", before == UNKNOWN, changed)
        self._compare_row(name)

    # Beside them

    def _asked(
        self, tool: str, body: str, key: str | None, who: tuple[str, str], slot: int,
        is_write: bool, may_wait: bool,
    ) -> tuple[Asked, Ask]:  # fmt: skip
        self.asked += 1
        name, worker = f"c{self.asked:05}", self.slots[slot]
        asked = Asked(name, tool, body, key, *who, worker, is_write, may_wait)
        told: dict[str, Any] = {"tool": tool if is_write else "read", "key": key}
        told |= {"effect": "write" if is_write else "read", "may_wait": may_wait}
        return asked, self.world.ask(
            name, body=body, claimant=Identity(*who), worker=worker, **told
        )

    def _settle(self, name: str, end: Ended) -> None:
        known = self._told_to_store(name, end)
        _same("settled", known, self.model.settle(name, end, self.world.now_us))
        self._compare_row(name)

    def _told_to_store(self, name: str, end: Ended) -> bool:
        """As the gate settles."""
        world, how = self.world, (end.status, end.sent, end.complete)
        if end.kept:
            body = answer_of(name)
            return world.settle(name, status=how[0], sent=how[1], complete=how[2], body=body)
        call = world.asks[name].call
        state, after = outcome_of(
            call.effect,
            sent=end.sent,
            status=end.status,
            complete=end.complete,
            forwarded_key=call.key is not None,
        )
        return world.store.settle(world.outcome(name, state, ClaimAfter(after), status=end.status))

    def _opened(self, living: tuple[int, ...]) -> None:
        """The next life of the store. What living engines hold stays open."""
        ids = {self.slots[slot] for slot in living}
        self.world.store = self.world.opened(alive=lambda worker: worker.id in ids)
        before = len(self.model.open)
        self.model.lost({asked.worker for asked in self.model.open.values()} - ids)
        _same("recovered", self.world.store.recovered.calls, before - len(self.model.open))
        self._compare_all()
        self._engines_start(*(slot for slot in range(1, SLOTS) if slot not in living))

    def _engines_start(self, *slots: int) -> None:
        # A process that dies loses nothing that the kernel has; waiting for the disk takes minutes.
        self.world.conn.execute("PRAGMA synchronous=OFF")
        for slot in slots or range(1, SLOTS):
            self.lives += 1
            self.slots[slot] = f"w{self.lives}"
            self.world.store.register(a_worker(self.slots[slot], 1_000 + self.lives))

    # Comparing

    def _compare_told(self, asked: Asked, decision: Decision) -> None:
        verdict = decision.verdict
        got = verdict.reason.value if verdict.action is Action.REFUSE else verdict.action.value
        answer = decision.answer and (decision.answer.status, decision.answer.body)
        told = self.model.ask(asked, self.world.now_us)
        _same("verdict", (got, verdict.earlier_call, answer), (told.what, told.of, told.answer))
        self.told[told.what] += 1

    def _compare_row(self, name: str) -> None:
        found = self.world.conn.execute("SELECT state FROM calls WHERE id = ?", (name,)).fetchall()
        state = self.model.rows.get(name)
        _same(f"row of {name}", found, [] if state is None else [(state,)])

    def _compare(self) -> None:
        now_us = self.world.now_us
        found = self.world.conn.execute(
            "SELECT call_id, state, expires_us FROM claim WHERE expires_us IS NULL "
            "OR expires_us > ?",
            (now_us,),
        ).fetchall()
        claims = {call: (state, until_us) for call, state, until_us in found}
        _same("claims", claims, self.model.standing(now_us))

    def _compare_all(self) -> None:
        """Every row, what is open, the chain, and all that `ledger check` looks at."""
        with closing(open_reader(self.world.data)) as reader:
            rows = dict(reader.execute("SELECT id, state FROM calls").fetchall())
            _same("rows", rows, self.model.rows)
            held = {name for (name,) in reader.execute("SELECT call_id FROM open_call")}
            _same("open calls", held, set(self.model.open))
            previous = chain.GENESIS
            for row in chain.stored(reader, 0, 2**62, 2**31):
                previous = chain.link(previous, row.columns)
                _same(f"hash of row {row.seq}", row.hash, previous)
            wrong = [each for each in checks.checked(reader) if not each.is_ok or each.skipped]
            _same("findings", wrong, [])
        self.world.check_memory()


_STEPS: dict[str, Callable[..., None]] = {
    "ask": Walk.ask,
    "settle": Walk.settle,
    "late": Walk.late,
    "wait": Walk.wait,
    "edge": Walk.edge,
    "lose": Walk.lose,
    "crash": Walk.crash,
    "restart": Walk.restart,
    "together": Walk.together,
    "reap": Walk.reap,
    "resolve": Walk.resolve,
    "edit": Walk.edit,
}


def _same(what: str, store: object, model: object) -> None:
    if store != model:
        raise Divergence(f"{what}: the store says {store!r}, the model {model!r}")


def _picked[T](things: Sequence[T], pick: int) -> T:
    return things[pick % len(things)]


@dataclass(frozen=True, slots=True)
class Walked:
    """How many steps were made, what asks were told, and how the last step diverged; empty where
    none did."""

    made: int
    told: Counter[str]
    why: str = ""


def walked(folder: Path, template: Path, rule: int, steps: Sequence[Step]) -> Walked:
    data = folder / "data"
    data.mkdir(parents=True)
    shutil.copy(template, data)
    world = World(data)
    walk = Walk(world, Model(RULES[rule]))
    walk.edit(rule)
    try:
        walk.go(steps)
    except Exception as error:  # what the store raises by itself is a divergence, too
        return Walked(walk.made, walk.told, f"{type(error).__name__}: {error}")
    finally:
        world.store.close()
        shutil.rmtree(folder)
    return Walked(walk.made, walk.told)
