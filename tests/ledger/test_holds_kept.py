"""What is kept of a call that waits: nothing in the clear, no credential, and no loose end."""

from dataclasses import replace

from ledger import holds
from ledger.claims import digest
from ledger.states import HoldState
from ledger.vault import Vault
from policies.call import Identity
from policies.verdict import Reason
from tests.ledger.test_holds import (
    ARGUMENTS,
    SECRET,
    WAIT_SECONDS,
    asked,
    decide,
    parked,
    state,
    told,
)
from tests.ledger.world import World, a_worker


def test_the_person_sees_all_and_the_disk_nothing(held: World) -> None:
    _, hold = parked(held)
    found = held.store.shown("a", held.now_us)
    assert found == (hold, ARGUMENTS)
    held.store.checkpoint()
    on_disk = (held.data / "ledger.db").read_bytes()
    assert b"4242" not in on_disk
    assert b"of=o1" not in on_disk


def test_credentials_are_kept_nowhere(held: World) -> None:
    shown = replace(
        ARGUMENTS,
        url="https://api.example/v1/charges?access_token=hush&of=o1",
        headers=(("authorization", "Bearer hush"), ("x-dry-run", "true")),
    )
    assert held.store.hold(asked(held), shown, "rule", WAIT_SECONDS) is not None
    found = held.store.shown("a", held.now_us)
    assert found is not None
    assert found[1] is not None
    assert found[1].body == SECRET
    assert found[1].url.startswith("https://api.example/v1/charges?access_token=[redacted:")
    assert found[1].url.endswith("]&of=o1")
    assert "hush" not in repr(found)
    assert found[1].headers[1] == ("x-dry-run", "true")


def test_no_guess_can_be_tried_against_what_is_stored(held: World) -> None:
    """Neither the digest that the engine makes stands there, nor one without the key."""
    ask, hold = parked(held)
    ((stored,),) = held.rows("SELECT fingerprint FROM hold")
    assert stored == hold.bound_to
    assert stored not in (ask.bound_to, digest(b"acme", ask.bound_to))
    assert stored != holds.bound(Vault(b"k" * 32), ask, Identity("r1", "acme"))


def test_another_vault_key_shows_nothing(held: World) -> None:
    parked(held)
    held.conn.execute("UPDATE hold SET arguments = zeroblob(64)")
    found = held.store.shown("a", held.now_us)
    assert found is not None
    assert found[1] is None


def test_calls_that_waited_when_the_proxy_ended_were_not_sent(held: World) -> None:
    parked(held, "a")
    parked(held, "b")  # waits on the same ticket
    parked(held, "c", body="c")
    parked(held, "d", body="d")
    held.store.left("d", held.now_us, Reason.SHUTTING_DOWN, "told so")
    decide(held, "c")
    held.decided(replace(asked(held, "c", body="c"), approval="c"))
    assert held.settle("c")
    held.reopen()
    found = {row["id"]: (row["state"], row["reason"]) for row in held.calls()}
    assert found["a"] == found["b"] == ("not_sent", "not_sent")
    assert (found["c"][0], found["d"]) == ("done", ("not_sent", "shutting_down"))
    assert state(held) is HoldState.WAITING
    events = len(held.rows("SELECT 1 FROM event"))
    held.reopen()
    assert len(held.rows("SELECT 1 FROM event")) == events
    again, joined = parked(held, "e")
    assert joined.ticket == "a"
    decide(held, "a")
    assert told(held.decided(again)) == ("allow", "allowed")


def test_calls_of_an_engine_that_lives_wait_on(held: World) -> None:
    held.store.register(a_worker())
    parked(held)
    held.reopen(alive=lambda worker: True)
    assert [row["state"] for row in held.calls()] == ["held"]
    held.reopen()
    assert [row["state"] for row in held.calls()] == ["not_sent"]
