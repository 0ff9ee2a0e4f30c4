"""A ledger whose policy has the digest of its text, a key to seal with, and what verify says."""

import hashlib
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ledger.chain import Head, link, stored
from ledger.connection import open_file
from ledger.pruning import Keys, Pruned
from ledger.seals import PublicKeys, Signer
from ledger.states import EventType
from ledger.verification import Verified, verify
from policies.policy import Policy
from tests.ledger.world import START_US, World, a_policy, a_pull

SIGNER = Signer(b"s" * 32)
KEYS = Keys(SIGNER, PublicKeys(SIGNER.pem))
HOUR_US = 3_600 * 1_000_000


def with_digest(text: str) -> Policy:
    return replace(a_policy(), text=text, digest=hashlib.sha256(text.encode()).hexdigest())


def trusted(world: World) -> World:
    world.policy = with_digest("# the first")
    return world


def filled(world: World) -> World:
    """Twelve rows, the first ten of them sealed: reads, a write of unknown outcome, a cord that
    stands, and a note."""
    trusted(world)
    called(world, "a", "b", "c")
    world.admit(world.ask("w", key="k1"))
    world.settle("w", status=500)
    world.store.pull(a_pull(subject="r9"))
    world.store.note(EventType.CLOCK, actor="ann", at_us=START_US, detail="x", tenant="acme")
    sealed(world)
    called(world, "d")
    return world


def called(world: World, *names: str) -> None:
    """Reads that were let through and ended."""
    for name in names:
        world.admit(world.read(name))
        world.settle(name)


def sealed(world: World, trace: Head = Head()) -> bytes:  # noqa: B008 - it does not change
    """Seal what is recorded; a copy of the seal."""
    made = world.store.seal(SIGNER, trace, world.now_us)
    assert made is not None
    identity, seal = made
    return seal.line(identity)


def verified(path: Path, copies: Iterable[bytes] | None = None) -> Verified:
    with closing(open_file(path)) as reader:
        return verify(reader, KEYS.public, copies=copies)


def wrong(world: World, copies: Iterable[bytes] | None = None) -> list[str]:
    return [problem.what for problem in verified(world.data / "ledger.db", copies).problems]


def pruned(world: World, older_than_us: int = HOUR_US) -> Pruned:
    """All steps."""
    done = Pruned(next_seq=0)
    while done.next_seq is not None:
        before_us = world.now_us - older_than_us
        done += world.store.prune(
            done.next_seq, before_us, KEYS, Head(), actor="ann", at_us=world.now_us
        )
    return done


# What somebody does who can write the file.


def change(world: World, statement: str, *values: object) -> None:
    world.conn.execute(statement, values)


def rechain(world: World, first: int, last: int) -> None:
    """Hashes anew, as they would be."""
    row = world.conn.execute("SELECT hash FROM event WHERE seq = ?", (first - 1,)).fetchone()
    previous = row[0]
    for each in stored(world.conn, first - 1, last, 1000):
        previous = link(previous, each.columns)
        change(world, "UPDATE event SET hash = ? WHERE seq = ?", previous, each.seq)
