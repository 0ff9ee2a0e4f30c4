"""Progress of a run: what a call has brought that the run did not have, and for how long not.

Credits are in thousandths: a distinct write that succeeded and a mark count one, a destination that
is read for the first time a half, new information a fifth. What is only new information earns no
more credit after CARRIED_CALLS calls or CARRIED_MICROUSD: an agent can page or vary its arguments
for ever. Replays and refusals bring nothing. Marks can be forged, so they are rationed. State is
bounded: what is forgotten counts as new again (notes/detection.md, section 4).
"""

from dataclasses import dataclass, field

from policies.detectors.newest import Newest, pair
from policies.detectors.rate import Sums
from policies.detectors.step import Kind, Step

WRITE, MARK, DESTINATION, INFORMATION = 1000, 1000, 500, 200
CARRIED_CALLS = 50
CARRIED_MICROUSD = 5_000_000
MARK_US = 10_000_000  # one mark is accepted in so long
MARKS_MAX = 3  # without a write between them
HUMANS_MAX = 100  # words of people that count without a write between them: they can be forged, too
HUMANS_KNOWN_MAX = 64
ACTIONS_MAX = 256
DESTINATIONS_MAX = 256
SECOND_US = 1_000_000
EPOCH_BYTES = 4
_REPLAYED = b"replayed"  # in place of a result


@dataclass(slots=True)
class Since:
    """What a run did since it last got on; counts of one run that begin at once are one object."""

    at_us: int
    calls: int = 0
    model_calls: int = 0
    spend_microusd: int = 0
    tokens: int = 0

    def count(self, step: Step) -> None:
        self.spend_microusd += step.spend_microusd
        self.tokens += step.tokens
        if step.kind is Kind.MODEL:
            self.model_calls += 1
        elif step.kind is Kind.TOOL:
            self.calls += 1


@dataclass(slots=True)
class Progress:
    """Fed with every step of one run, in order.

    `is_new`: the last call was none that this run has made already with the same result; `credit`
    is what it earned; `is_written`: it was a write that succeeded and that the run had not made;
    `is_told`: a person said to its model what was not said before; `is_stale`: the call was made
    already, was answered alike, and nothing was written since: answers that take turns are told
    by that, too. `unmoved`
    counts since something was new, `unearned` since something earned, `unwritten` since a write, a
    mark or a human's word, and `repeats` how many calls since then asked what was asked before.
    `epoch` counts distinct writes; `writes` are those of the last minute, by the second, as far as
    `count_write` was told of them.
    """

    unmoved: Since
    unearned: Since
    unwritten: Since
    repeats: int = 0
    is_new: bool = False
    is_stale: bool = False
    is_told: bool = False
    is_written: bool = False
    credit: int = 0
    epoch: int = 0
    writes: Sums | None = None
    _asked: Newest = field(default_factory=lambda: Newest(ACTIONS_MAX))
    _answers: Newest = field(default_factory=lambda: Newest(ACTIONS_MAX, EPOCH_BYTES))
    _written: Newest = field(default_factory=lambda: Newest(ACTIONS_MAX))
    _destinations: Newest = field(default_factory=lambda: Newest(DESTINATIONS_MAX))
    _said: Newest = field(default_factory=lambda: Newest(HUMANS_KNOWN_MAX))
    _told: int = 0
    _marked_us: int = -MARK_US
    _mark: int = 0
    _marks: int = 0

    @classmethod
    def begun(cls, at_us: int) -> "Progress":
        since = Since(at_us)
        return cls(since, since, since)

    def feed(self, step: Step) -> None:
        self.unmoved.count(step)
        if self.unearned is not self.unmoved:
            self.unearned.count(step)
        if self.unwritten is not self.unearned:
            self.unwritten.count(step)
        self.is_told = bool(step.human) and self._is_told(step)
        if self.is_told:
            self._marks = 0
        self.is_new = self.is_stale = self.is_written = False
        self.credit = self._earned(step) if step.kind is Kind.TOOL and step.action else 0
        if step.mark:
            self.credit = max(self.credit, self._marked(step))
        moved = self.is_told or self.credit >= WRITE
        if not (moved or self.is_new):
            return
        self.unmoved = Since(step.at_us)
        if moved or self.credit:
            self.unearned = self.unmoved
        if moved:
            self.unwritten = self.unmoved
            self.repeats = 0

    def count_write(self, at_us: int) -> Sums:
        """The last call was a distinct write; `writes` with it."""
        if self.writes is None:
            self.writes = Sums(SECOND_US, 60)
        self.writes.add(at_us, 1)
        return self.writes

    def rest(self, now_us: int) -> None:
        """Nothing was heard of the run for a while: its writes may all be too old to count."""
        if self.writes is not None and not self.writes.is_within(now_us):
            self.writes = None

    def _is_told(self, step: Step) -> bool:
        if self._said.put(step.human) is not None:
            return False
        self._told += 1
        return self._told <= HUMANS_MAX

    def _earned(self, step: Step) -> int:
        if step.replayed:
            self._answered(step, _REPLAYED)  # it has no result of its own
            return 0
        if step.is_write and step.is_ok and self._written.put(step.action) is None:
            self._write()
        self.repeats += self._asked.put(step.action) is not None
        answered = self._answered(step, step.result)
        if self.is_written:
            self.is_new = True
            return WRITE
        self.is_new = not answered
        known = not step.destination or self._destinations.put(step.destination) is not None
        carried = self.unwritten
        over = carried.calls > CARRIED_CALLS or carried.spend_microusd > CARRIED_MICROUSD
        if not self.is_new or over:
            return 0
        return INFORMATION if known else DESTINATION

    def _write(self) -> None:
        self.is_written = True
        self.epoch += 1
        self._marks = self._told = 0

    def _answered(self, step: Step, result: bytes) -> bool:
        """Whether the call was answered so before; `is_stale` if nothing was written since."""
        epoch = self.epoch.to_bytes(EPOCH_BYTES)
        before = self._answers.put(pair(step.action, result), epoch)
        self.is_stale = before == epoch
        return before is not None

    def _marked(self, step: Step) -> int:
        is_early = step.at_us - self._marked_us < MARK_US
        if is_early or self._marks >= MARKS_MAX or step.mark <= self._mark:
            return 0
        self._mark, self._marked_us = step.mark, step.at_us
        self._marks += 1
        return MARK
