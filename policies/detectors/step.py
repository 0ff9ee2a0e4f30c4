"""What the detectors see of a run, and what they say. Plain frozen values.

A step is one settled call, or an act of a run: it started another, it marked progress, it ended.
Times are those of the record, so that the same steps give the same findings live, in a replay and
in a simulation. Of arguments and results only keyed hashes come in.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    MODEL = "model"
    TOOL = "tool"
    SPAWN = "spawn"
    MARK = "mark"
    END = "end"


class Subject(StrEnum):
    """What a finding is about, and so what would be stopped by it."""

    RUN = "run"
    TREE = "tree"
    TOOL = "tool"
    RELEASE = "release"


class Severity(StrEnum):
    """An alert tells somebody; a trip is ground enough to stop something."""

    ALERT = "alert"
    TRIP = "trip"


@dataclass(slots=True)
class Step:
    """Nobody changes one but who settles the call, before it is fed.

    `action` is the hash of tool and arguments, `result` that of the answer, both without what
    changes by itself (volatile.py). `human` is the hash of what a person last said to the model,
    empty where nobody did. A `replayed` write was answered from the record. `depth` is how many
    runs stand above this one; `root` is the topmost of them. `recipient` is the hash of whom a
    write is for, where its arguments say so. `mark` is the number of the progress that the run
    says it made, which only counts up; 0 where it says nothing. `at_us` is when it was asked for,
    `ended_us` when it was settled; 0 of a step that is no settled call. What only the end of a call
    tells stands last.
    """

    at_us: int
    kind: Kind
    call_id: str
    run: str
    root: str
    tenant: str = ""
    agent: str = ""
    release: str = ""
    depth: int = 0
    tool: str = ""
    destination: str = ""
    recipient: bytes = b""
    action: bytes = b""
    is_write: bool = False
    replayed: bool = False
    human: bytes = b""
    mark: int = 0
    result: bytes = b""
    is_ok: bool = True
    spend_microusd: int = 0
    tokens: int = 0
    ended_us: int = 0

    def end(
        self, result: bytes, *, is_ok: bool, spend_microusd: int, tokens: int, ended_us: int = 0
    ) -> None:
        """A call that was let through is settled."""
        self.result = result
        self.is_ok = is_ok
        self.spend_microusd = spend_microusd
        self.tokens = tokens
        self.ended_us = ended_us

    def reopen(self) -> None:
        """That could not be recorded: the call is settled another time."""
        self.end(b"", is_ok=True, spend_microusd=0, tokens=0)


@dataclass(frozen=True, slots=True)
class Finding:
    """One detector's word over a step. `subject` names the smallest thing that would have to be
    stopped; `why` is for people, with the numbers that convinced it; `evidence` are ids of the
    calls that did, the newest last. `tool` is the one that all of the evidence is of, `release`
    the one that all of its runs are of and that followed another; empty where there is none.
    `shared_tool`, `shared_release`: other tenants use it, too. `since_us` is from when on it went
    wrong, where the first call of the evidence does not tell; `runs` are the roots of which the
    evidence is: empty for the step's own, None for any."""

    detector: str
    severity: Severity
    subject: Subject
    name: str
    why: str
    evidence: tuple[str, ...] = ()
    tool: str = ""
    release: str = ""
    shared_tool: bool = False
    shared_release: bool = False
    since_us: int | None = None
    runs: tuple[str, ...] | None = ()
