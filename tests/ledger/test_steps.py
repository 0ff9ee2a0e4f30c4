"""What the detectors are fed live is what is read back from the rows: the same steps, in order."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ledger import steps
from ledger.records import Answer, Ask, Outcome
from ledger.states import CallState, ClaimAfter
from ledger.steps import Forgotten, Told
from ledger.tokens import Grant
from ledger.watching import Found, Watch
from policies.call import NO_TRAITS, Effect, Identity, Traits, Worth
from policies.detectors.step import Kind, Step
from policies.policy import CANARY, DRILL_TENANT
from policies.verdict import Action, Level, Pull, Scope
from tests.ledger.world import R1, START_US, World, a_worker

CHILD = Identity("r3", "acme", ("r2", "r1", "r0"), agent="biller", release="rel")
TOKEN = b"t" * 32


class Listening(Watch):
    """Remembers what it is fed; what a transaction that failed had fed is forgotten again."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Told] = []
        self.made = 0

    def make(self, *args: Any) -> bool:
        self.told, self.made = [], self.made + 1
        return super().make(*args)

    def feed(self, step: Step) -> list[Found]:
        self.told.append(step)
        return super().feed(step)

    def forget(self, what: Forgotten) -> None:
        self.told.append(what)
        super().forget(what)


@pytest.fixture
def heard(world: World) -> Listening:
    """Made before anything is written, so that it is fed live from the first row on."""
    return listening(world)


def listening(world: World) -> Listening:
    watch = world.store._memory.watch = Listening()
    with world.store.transaction(durable=False):
        assert world.store._open_batch().watched(world.policy, world.now_us)
    return watch


def read_back(world: World) -> list[Told]:
    rows = world.rows(f"SELECT {', '.join(steps.COLUMNS)} FROM event ORDER BY seq")
    return list(steps.of_rows(rows))


def ended(world: World, name: str, state: CallState = CallState.DONE, **rest: Any) -> None:
    after = ClaimAfter.RELEASED if state is CallState.NOT_SENT else ClaimAfter.DONE
    outcome = replace(world.outcome(name, state, after), **rest)
    assert world.store.settle(outcome, world.policy)


def traits(salt: str) -> Traits:
    return Traits(salt.encode().ljust(32), b"to" * 16, b"human" * 6, 7)


def test_a_write_a_read_and_a_model_call_are_steps_when_they_have_ended(
    world: World, heard: Listening
) -> None:
    asks = [
        replace(world.ask("w"), traits=traits("w")),
        replace(world.read("r", claimant=CHILD), traits=traits("r")),
        world.ask("m", effect="model", tool="read"),
    ]
    world.admit(*asks)
    assert heard.told == []
    world.wait(3)
    ended(world, "m", used_microusd=5, used_tokens=9, input_tokens=1, result=b"m" * 32)
    ended(world, "w", cost_microusd=7, used_microusd=5, input_tokens=1, output_tokens=2)
    ended(world, "r", failed=True, result=b"r" * 32)
    model, write, read = (step for step in heard.told if isinstance(step, Step))
    assert [step.call_id for step in (model, write, read)] == ["m", "w", "r"]
    assert (model.kind, model.spend_microusd, model.tokens) == (Kind.MODEL, 5, 9)
    assert (write.is_write, write.is_ok, write.spend_microusd, write.tokens) == (True, True, 7, 3)
    assert (read.depth, read.root, read.is_ok, read.mark) == (3, "r0", False, 7)
    assert (read.at_us, read.ended_us) == (START_US, START_US + 3_000_000)
    assert read_back(world) == heard.told


def test_what_was_sent_is_kept_keyed_and_short(world: World, heard: Listening) -> None:
    world.decided(replace(world.ask("w"), traits=traits("w")))
    ended(world, "w", result=b"r" * 32)
    (step,) = heard.told
    assert isinstance(step, Step)
    for kept in (step.action, step.recipient, step.human, step.result):
        assert len(kept) == steps.KEYED_BYTES
        assert kept not in traits("w").action + traits("w").recipient + b"r" * 32
    text = str(world.rows("SELECT seen FROM event"))
    assert traits("w").action.hex() not in text
    assert step.action.hex() in text


def test_without_traits_the_digests_of_the_record_stand_in(world: World, heard: Listening) -> None:
    """So rows of before there were any are no loop."""
    world.admit(world.read("a", body="one"), world.read("b", body="two"))
    ended(world, "a", response_digest=b"1" * 32)
    ended(world, "b", response_digest=b"2" * 32)
    told = [(step.action, step.result) for step in heard.told if isinstance(step, Step)]
    assert told == [
        (world.asks["a"].call.fingerprint[:8], b"1" * 8),
        (world.asks["b"].call.fingerprint[:8], b"2" * 8),
    ]
    assert read_back(world) == heard.told


def test_what_was_never_sent_is_no_step_and_what_is_unknown_is_a_failed_one(
    world: World, heard: Listening
) -> None:
    world.store.register(a_worker())
    world.admit(world.read("a"), world.read("b"), world.read("c", worker="w1"))
    ended(world, "a", CallState.NOT_SENT)
    ended(world, "b", CallState.UNKNOWN, status=None)
    world.store.forsake("w1", world.now_us, "it is gone")
    told = [(s.call_id, s.is_ok, s.result) for s in heard.told if isinstance(s, Step)]
    assert told == [("b", False, b"r" * 8), ("c", False, b"")]
    assert read_back(world) == heard.told


def test_what_a_crash_leaves_open_is_a_failed_step_after_the_start(world: World) -> None:
    world.admit(world.read("a"), world.ask("b"))
    world.reopen()
    heard = listening(world)
    assert [s.call_id for s in heard.told if isinstance(s, Step) and not s.is_ok] == ["a", "b"]
    assert read_back(world) == heard.told


def test_a_call_that_is_held_over_a_start_is_the_same_step(world: World) -> None:
    world.store.register(a_worker())
    world.decided(replace(world.read("a", worker="w1", claimant=CHILD), traits=traits("a")))
    world.reopen(alive=lambda worker: True)
    heard = listening(world)
    ended(world, "a", result=b"r" * 32)
    assert len(heard.told) == 1
    assert read_back(world) == heard.told


def test_a_replay_is_a_step_and_a_refusal_is_none(world: World, heard: Listening) -> None:
    world.decided(world.ask("a", key="k"))
    world.settle("a")
    assert world.decided(world.ask("b", key="k")).verdict.action is Action.REPLAY
    assert world.decided(world.ask("c", key="k", body="y")).verdict.action is Action.REFUSE
    told = [(s.call_id, s.replayed) for s in read_back(world) if isinstance(s, Step)]
    assert told == [("a", False), ("b", True)]
    assert heard.told == read_back(world)[1:]  # that one was settled without a policy


def test_what_a_drill_does_is_no_step(world: World, heard: Listening) -> None:
    drill = Identity("drill", DRILL_TENANT)
    world.admit(
        world.ask("a", effect="read", tool=CANARY, claimant=drill), world.read("b", claimant=drill)
    )
    for name in ("a", "b"):
        world.store.settle(world.outcome(name), world.policy)
    assert heard.told == []
    assert read_back(world) == []


def minted(world: World, run: str, **rest: Any) -> None:
    token = run.encode().ljust(32)
    world.store.mint(
        Grant(run, **rest), token, actor="ann", at_us=world.now_us, policy=world.policy
    )


def test_a_run_that_another_starts_is_a_step_once(world: World, heard: Listening) -> None:
    minted(world, "a", tenant="acme", agent="biller", release="r1")
    assert heard.told == []
    for run, parent in (("b", "a"), ("c", "b"), ("d", "c")):
        minted(world, run, parent=parent)
    with pytest.raises(Exception, match="already"):
        minted(world, "d", parent="c")
    world.store.mint(
        Grant("d", parent="c"), TOKEN, actor="ann", at_us=world.now_us, policy=world.policy
    )
    told = [(s.kind, s.run, s.root, s.depth, s.release) for s in heard.told if isinstance(s, Step)]
    assert told == [(Kind.SPAWN, run, "a", depth, "r1") for depth, run in enumerate("bcd", 1)]
    assert read_back(world) == heard.told
    found = world.rows("SELECT run, tenant, parent, root FROM event WHERE type = 'run.spawned'")
    assert found[-1] == ("d", "acme", "c", "a")


def test_marks_and_ends_are_steps(world: World, heard: Listening) -> None:
    store, policy = world.store, world.policy
    assert store.progress(CHILD, 3, "chapter 3; sk_live_abcdefgh1234", policy, world.now_us) is None
    assert store.end(CHILD, policy, world.now_us) is None
    told = [(s.kind, s.run, s.root, s.depth, s.mark) for s in heard.told if isinstance(s, Step)]
    assert told == [(Kind.MARK, "r3", "r0", 3, 3), (Kind.END, "r3", "r0", 3, 0)]
    assert read_back(world) == heard.told
    ((note,),) = world.rows("SELECT detail FROM event WHERE type = 'run.progressed'")
    assert note.startswith("chapter 3; [redacted:")


def test_a_run_tells_of_itself_once_in_a_second(world: World, heard: Listening) -> None:
    def marks(run: Identity) -> bool:
        return world.store.progress(run, 1, "", world.policy, world.now_us) is None

    assert [marks(R1), marks(R1), marks(CHILD)] == [True, False, True]
    world.wait(0.9)
    assert not marks(R1)
    world.wait(0.2)
    assert marks(R1)
    assert len(heard.told) == 3
    assert read_back(world) == heard.told


def a_cord(actor: str, subject: str = "r1", scope: Scope = Scope.RUN) -> Pull:
    return Pull(Level.HALT, scope, subject, "loops", actor, START_US)


def released(world: World, pull: Pull) -> None:
    world.store.pull(pull)
    cord = (pull.level, pull.scope, pull.subject)
    world.store.release(*cord, reason="it is fine", actor="ann", at_us=world.now_us)


def test_releasing_what_a_detector_pulled_is_told_and_what_a_person_pulled_is_not(
    world: World, heard: Listening
) -> None:
    released(world, a_cord("bob"))
    released(world, a_cord("detector:loop"))
    released(world, a_cord("detector:loop", "r1/pay", Scope.TOOL))
    assert heard.told == [Forgotten(Scope.RUN, "r1"), Forgotten(Scope.TOOL, "r1/pay")]
    assert read_back(world) == heard.told


def test_an_outcome_without_its_call_is_asked_for(world: World, heard: Listening) -> None:
    world.decided(world.read("a"))
    ended(world, "a")
    columns = ", ".join(steps.COLUMNS)
    rows = world.rows(f"SELECT {columns} FROM event WHERE type = 'call.outcome'")
    assert list(steps.of_rows(rows)) == []
    assert list(steps.of_rows(rows, steps.intent_of(world.conn))) == heard.told


def test_of_too_many_open_calls_the_oldest_is_asked_for_again() -> None:
    def row(kind: str, call_id: str) -> tuple[Any, ...]:
        told = dict.fromkeys(steps.COLUMNS)
        told |= {"type": kind, "at_us": 1, "call_id": call_id, "run": "r", "effect": "read"}
        return tuple(told.values())

    count = steps.OPEN_MAX + 1
    rows = [row("call.intent", str(number)) for number in range(count)]
    rows += [row("call.outcome", str(number)) for number in range(count)]
    asked = list[str]()
    found = list(steps.of_rows(rows, lambda call_id: asked.append(call_id)))
    assert (len(found), asked) == (steps.OPEN_MAX, ["0"])


@pytest.mark.parametrize(
    "seen, why",
    [
        ("{", "unexpected end"),
        ("[1]", "what nobody writes"),
        ('{"action": "xyz"}', "non-hexadecimal"),
        ('{"forget": ["moon", "x"]}', "'moon' is not a valid Scope"),
    ],
)
def test_a_row_that_is_not_as_it_was_written_is_an_error(seen: str, why: str) -> None:
    told = dict.fromkeys(steps.COLUMNS)
    kind = "cord.released" if "forget" in seen else "call.replayed"
    told |= {"type": kind, "at_us": 1, "call_id": "a", "run": "r", "seen": seen}
    with pytest.raises(ValueError, match=why):
        list(steps.of_rows([tuple(told.values())]))


# ---------------------------------------------------------------------------- a long mixed record


class Mixed:
    """Acts of many kinds on one store, chosen by chance."""

    def __init__(self, world: World, seed: int, *, fails: bool) -> None:
        self.world, self.chance, self.fails = world, random.Random(seed), fails
        self.names: Iterator[str] = (f"c{number}" for number in range(10_000))
        self.open: list[Ask] = []
        self.who = [R1, CHILD, Identity("r2", "other", ("r9",)), Identity("d", DRILL_TENANT)]
        self.runs = 0
        world.store.register(a_worker())
        minted(world, "root", tenant="acme")

    def act(self) -> None:
        self.world.wait(self.chance.choice((0.01, 0.3, 1.2)))
        acts = (self._ask, self._ask, self._ask, self._end, self._end, self._fail)
        self.chance.choice((*acts, *acts, self._mint, self._mark, self._release, self._lose))()

    def _ask(self) -> None:
        world, chance = self.world, self.chance
        effect = chance.choice(("read", "write", "model"))
        body = chance.choice("abcd")
        ask = world.ask(
            next(self.names),
            effect=effect,
            tool="pay" if effect == "write" else "read",
            body=body,
            key=body if chance.random() < 0.5 else None,
            claimant=chance.choice(self.who),
            worker=chance.choice(("", "w1")),
            host=chance.choice(("api.example", "sk-abcdefghijklmnopqrst.example")),
            worth=Worth(10, 10),
        )
        ask = replace(ask, traits=chance.choice((NO_TRAITS, traits(body))))
        if world.decided(ask).verdict.action is Action.ALLOW:
            self.open.append(ask)

    def _outcome(self) -> Outcome:
        chance = self.chance
        ask = self.open.pop(chance.randrange(len(self.open)))
        state = chance.choice((CallState.DONE, CallState.DONE, *CallState.__members__.values()))
        if state not in (CallState.DONE, CallState.NOT_SENT):
            state = CallState.UNKNOWN
        after = {
            CallState.DONE: ClaimAfter.DONE,
            CallState.NOT_SENT: ClaimAfter.RELEASED,
            CallState.UNKNOWN: ClaimAfter.UNKNOWN,
        }[state]
        answer = Answer(200, (), b"done") if ask.call.effect is Effect.WRITE else None
        return replace(
            self.world.outcome(ask.call_id, state, after),
            answer=answer if state is CallState.DONE else None,
            status=chance.choice((200, 404, 500, None)),
            result=chance.choice((b"", b"r" * 32)),
            failed=chance.random() < 0.2,
            cost_microusd=chance.choice((None, 0, 12)),
            used_microusd=chance.choice((None, 3)),
            used_tokens=chance.choice((None, 4)),
            input_tokens=chance.choice((None, 5)),
            output_tokens=chance.choice((None, 6)),
        )

    def _end(self) -> None:
        if self.open:
            assert self.world.store.settle(self._outcome(), self.world.policy)

    def _fail(self) -> None:
        """A call is settled in a transaction that fails, and again in the next."""
        if self.open:
            outcome = self._outcome()
            if self.fails:
                with self.world.failing():
                    assert self.world.store.settle(outcome, self.world.policy)
            assert self.world.store.settle(outcome, self.world.policy)

    def _mint(self) -> None:
        self.runs += 1
        parent = self.chance.choice(("root", "n1")) if self.runs > 1 else "root"
        minted(self.world, f"n{self.runs}", parent=parent)

    def _mark(self) -> None:
        who = self.chance.choice(self.who)
        policy, now_us = self.world.policy, self.world.now_us
        if self.chance.random() < 0.2:
            self.world.store.end(who, policy, now_us)
        else:
            self.world.store.progress(who, self.chance.randrange(1, 9), "on", policy, now_us)

    def _release(self) -> None:
        released(self.world, a_cord(self.chance.choice(("ann", "detector:burn")), "elsewhere"))

    def _lose(self) -> None:
        self.world.store.forsake("w1", self.world.now_us, "gone")
        self.world.store.register(a_worker())
        self.open = [ask for ask in self.open if not ask.worker]


@pytest.mark.parametrize("seed, fails", [(1, False), (2, False), (3, True), (4, True)])
def test_whatever_happens_the_rows_tell_what_was_fed(
    world: World, heard: Listening, seed: int, fails: bool
) -> None:
    mixed = Mixed(world, seed, fails=fails)
    for _ in range(250):
        mixed.act()
    world.decided(world.read("last"))  # what was lost is made again before a call passes
    ended(world, "last")
    assert heard.told == read_back(world)
    assert (heard.made > 1) is fails, "what was read back is no proof of what was fed"
    told = [each for each in heard.told if isinstance(each, Step)]
    assert {step.kind for step in told} == set(Kind)
    assert {(step.replayed, step.is_ok) for step in told} == {
        *((False, True), (False, False), (True, True)),
    }
