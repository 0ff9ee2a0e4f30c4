"""Whom a narrowed cord lets pass, and who may be one of those that go first."""

from dataclasses import replace

import pytest

from policies.call import Identity
from policies.load import load
from policies.standing import lets_pass, may_take_place
from policies.verdict import Level, Pull, Scope, Trial

POLICY = load("version: 1\nreleases: {known_good: [good-1, good-2]}\n")
CORD = Pull(Level.HALT, Scope.TENANT, "acme", "", "ann", 1)
FIRST = replace(CORD, trial=Trial("i1", "good-1", ("r7",), 1, 0))


def who(run: str, release: str, *above: str) -> Identity:
    return Identity(run, "acme", ancestors=above, release=release)


@pytest.mark.parametrize(
    "cord, caller, passes",
    [
        (CORD, who("r7", "good-1"), False),
        (replace(CORD, but_releases=("good-1",)), who("r1", "good-1"), True),
        (replace(CORD, but_releases=("good-1",)), who("r1", "good-2"), False),
        (replace(CORD, but_releases=("bad",)), who("r1", "bad"), False),
        (replace(CORD, but_releases=("",)), who("r1", ""), False),
        (FIRST, who("r7", "good-1"), True),
        (FIRST, who("kid", "good-1", "mid", "r7"), True),
        (FIRST, who("r7", "good-2"), False),
        (FIRST, who("r7", ""), False),
        (FIRST, who("r8", "good-1"), False),
        (replace(FIRST, but_releases=("good-2",)), who("r8", "good-2"), True),
        (replace(CORD, trial=Trial("i1", "bad", ("r7",), 1, 0)), who("r7", "bad"), False),
        (replace(CORD, trial=Trial("i1", "", ("r7",), 1, 0)), who("r7", ""), False),
    ],
)
def test_who_passes(cord: Pull, caller: Identity, passes: bool) -> None:
    assert lets_pass(cord, POLICY, caller) is passes


@pytest.mark.parametrize(
    "cord, release, may",
    [
        (CORD, "good-1", False),
        (FIRST, "good-1", True),
        (FIRST, "good-2", False),
        (FIRST, "", False),
        (replace(CORD, trial=Trial("i1", "good-1", (), 0, 0)), "good-1", False),
        (replace(CORD, trial=Trial("i1", "bad", (), 1, 0)), "bad", False),
        (replace(CORD, trial=Trial("i1", "", (), 1, 0)), "", False),
    ],
)
def test_who_may_go_first(cord: Pull, release: str, may: bool) -> None:
    assert may_take_place(cord, POLICY, who("r9", release)) is may
