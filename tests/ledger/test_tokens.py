"""Tokens: minted for a run, valid on the next call, narrower for children, revoked at once."""

import hashlib
from typing import Any

import orjson
import pytest

from ledger.errors import LedgerError
from ledger.records import Bearer
from ledger.tokens import (
    ANCESTORS_MAX,
    TOOL_CHARACTERS_MAX,
    TOOL_STARS_MAX,
    TOOLS_MAX,
    Grant,
    Token,
)
from policies.call import Identity
from policies.verdict import Action, Scope
from tests.ledger.world import World, a_pull


def hashed(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def mint(world: World, run: str, secret: str = "", by: Bearer | None = None, **rest: Any) -> Token:
    return world.store.mint(
        Grant(run, **rest),
        hashed(secret or run),
        actor="ann",
        at_us=world.now_us,
        by=by,
        policy=world.policy,
    )


def bearer(run: str, secret: str = "") -> Bearer:
    return Bearer(run, hashed(secret or run))


def told(world: World, claimant: Bearer) -> tuple[str, Identity | None]:
    world.wait(1)
    decision = world.decided(world.read(f"c{world.now_us}", claimant=claimant))
    return decision.verdict.reason, decision.identity


def test_a_token_tells_who_calls(world: World) -> None:
    mint(world, "r1", tenant="acme", agent="biller", release="v1", tools=("pay", "read*"))
    expected = Identity("r1", "acme", (), "biller", "v1", ("pay", "read*"))
    assert told(world, bearer("r1")) == ("allowed", expected)
    world.reopen()
    assert told(world, bearer("r1")) == ("allowed", expected)


def test_a_token_is_bound_to_its_tools(world: World) -> None:
    mint(world, "r1", tenant="acme", tools=("pay",))
    assert told(world, bearer("r1"))[0] == "tool_not_allowed"


@pytest.mark.parametrize(
    "claimant",
    [bearer("r1", "guess"), bearer("r2", "r1"), bearer("", "r1")],
    ids=["unknown token", "another run's name", "no name"],
)
def test_what_is_not_its_own_is_not_valid(world: World, claimant: Bearer) -> None:
    mint(world, "r1", tenant="acme")
    mint(world, "r2", tenant="acme")
    assert told(world, claimant) == ("credentials_invalid", None)
    (row,) = world.calls("reason:credentials_invalid")
    assert (row["run"], row["tenant"]) == (None, None)


def test_a_revoked_token_is_refused_from_the_next_call(world: World) -> None:
    token = mint(world, "r1", tenant="acme")
    assert told(world, bearer("r1"))[0] == "allowed"
    gone = world.store.revoke(token.id, actor="bob", at_us=world.now_us, reason="leaked")
    assert [each.id for each in gone] == [token.id]
    assert told(world, bearer("r1")) == ("token_revoked", None)
    (row,) = world.calls("reason:token_revoked")
    assert row["run"] == "r1"
    world.reopen()
    assert told(world, bearer("r1"))[0] == "token_revoked"


def test_a_token_is_revoked_within_a_transaction_and_comes_back_with_its_failure(
    world: World,
) -> None:
    mint(world, "r1", tenant="acme")
    with world.failing():
        for name, expected in (("a", "allowed"), ("b", "token_revoked")):
            ask = world.read(name, claimant=bearer("r1"))
            assert world.store.admit(ask, world.policy, world.judge).verdict.reason == expected
            world.store.revoke("r1", actor="bob", at_us=world.now_us)
    assert told(world, bearer("r1"))[0] == "allowed"


def test_a_token_that_was_not_used_for_long_is_read_again(world: World) -> None:
    known = world.store._memory.tokens
    for name in ("r1", "r2", "r3", "r4"):
        mint(world, name, tenant="acme")
    assert told(world, bearer("r1"))[0] == told(world, bearer("r2"))[0] == "allowed"
    for name in ("r3", "r4"):
        world.wait(61)
        assert told(world, bearer(name))[0] == "allowed"
    assert len(known) == 2
    world.store.revoke("r2", actor="bob", at_us=world.now_us)
    assert told(world, bearer("r1"))[0] == "allowed"
    assert told(world, bearer("r2"))[0] == "token_revoked"


def test_a_token_expires(world: World) -> None:
    mint(world, "r1", tenant="acme", expires_us=world.now_us + 5_000_000)
    assert told(world, bearer("r1"))[0] == "allowed"
    world.wait(4)
    assert told(world, bearer("r1"))[0] == "token_expired"


def test_a_run_may_have_several_tokens_and_lose_them_all(world: World) -> None:
    mint(world, "r1", "one", tenant="acme")
    mint(world, "r1", "two")
    assert told(world, bearer("r1", "two"))[0] == "allowed"
    assert len(world.store.revoke("r1", actor="bob", at_us=world.now_us)) == 2
    assert world.store.revoke("r1", actor="bob", at_us=world.now_us) == []
    assert {told(world, bearer("r1", name))[0] for name in ("one", "two")} == {"token_revoked"}


def test_mints_and_revocations_are_in_the_record(world: World) -> None:
    token = mint(world, "r1", tenant="acme")
    world.store.revoke("r1", actor="bob", at_us=world.now_us, reason="leaked")
    assert world.rows("SELECT type, run, tenant, actor, detail FROM event") == [
        ("token.minted", "r1", "acme", "ann", f"token {token.id}"),
        ("token.revoked", "r1", "acme", "bob", f"token {token.id}: leaked"),
    ]


def test_tokens_are_listed_newest_first(world: World) -> None:
    mint(world, "r1", tenant="acme")
    world.wait(1)
    mint(world, "r2", tenant="acme")
    world.store.revoke("r1", actor="bob", at_us=7)
    listed = world.store.tokens()
    assert [(token.identity.run, token.revoked_us) for token in listed] == [("r2", None), ("r1", 7)]
    assert "hash" not in repr(listed)


# Runs


def test_a_child_has_the_tenant_and_the_tree_of_its_parent(world: World) -> None:
    mint(world, "a", tenant="acme", release="v1", agent="biller")
    mint(world, "b", parent="a")
    mint(world, "c", parent="b", release="v2")
    assert told(world, bearer("c"))[1] == Identity("c", "acme", ("b", "a"), "biller", "v2")


@pytest.mark.parametrize(
    "grant, message",
    [
        ({"run": "r1", "tenant": "bolt"}, "has the tenant acme, not bolt"),
        ({"run": "r1", "release": "caf\udce9"}, "no Unicode text"),
        ({"run": "r1", "parent": "r0"}, "has the parent none, not r0"),
        ({"run": "r2"}, "name its tenant"),
        ({"run": "r2", "parent": "r9"}, "no run r9 to be the parent"),
        ({"run": "r2", "parent": "r1", "tenant": "bolt"}, "is of tenant acme"),
        ({"run": ""}, "name it"),
        ({"run": "r2", "tenant": "acme", "tools": ("a?",)}, "the only wildcard"),
        ({"run": "r2", "tenant": "acme", "tools": ("[ab]",)}, "the only wildcard"),
        ({"run": "r2", "tenant": "acme", "tools": ("",)}, "the only wildcard"),
        ({"run": "r2", "tenant": "acme", "tools": ("a",) * 65}, "at most 64 tools"),
        ({"run": "r2", "tenant": "acme", "tools": ("a" * 129,)}, "at most 128 characters"),
        ({"run": "r2", "tenant": "acme", "tools": ("a*b*c*d*e*",)}, r"and 4 `\*`"),
    ],
)
def test_what_cannot_be_minted_writes_nothing(
    world: World, grant: dict[str, Any], message: str
) -> None:
    mint(world, "r1", tenant="acme", release="v1")
    before = world.rows("SELECT * FROM token, run")
    with world.store.transaction(durable=True):
        with pytest.raises(LedgerError, match=message):
            mint(world, **grant, secret="new")
        world.store.admit(world.read("a"), world.policy, world.judge)
    assert world.rows("SELECT * FROM token, run") == before
    assert len(world.calls()) == 1


def test_one_token_is_minted_once(world: World) -> None:
    mint(world, "r1", "same", tenant="acme")
    with pytest.raises(LedgerError, match="new random one"):
        mint(world, "r2", "same", tenant="acme")


def test_runs_do_not_nest_without_end(world: World) -> None:
    mint(world, "r0", tenant="acme")
    for depth in range(ANCESTORS_MAX):
        mint(world, f"r{depth + 1}", parent=f"r{depth}")
    with pytest.raises(LedgerError, match="32 deep"):
        mint(world, "more", parent=f"r{ANCESTORS_MAX}")


def test_a_run_that_is_a_child_is_not_taken_for_a_root(world: World) -> None:
    """Its name may be one that another run chose for it."""
    mint(world, "evil", tenant="acme")
    mint(world, "nightly", by=bearer("evil"))
    for tenant in ("", "acme", "bolt"):
        with pytest.raises(LedgerError, match=r"is a child of run evil.*: --parent evil; if not"):
            mint(world, "nightly", "the operator's", tenant=tenant)
    assert len(world.store.tokens()) == 2
    mint(world, "nightly", "the operator's", tenant="acme", parent="evil")
    mint(world, "evil", "another", tenant="acme")


def test_a_token_names_so_many_tools_and_no_more(world: World) -> None:
    longest = "*" * TOOL_STARS_MAX + "a" * (TOOL_CHARACTERS_MAX - TOOL_STARS_MAX)
    tools = ("pay", *[longest] * (TOOLS_MAX - 1))
    assert mint(world, "r1", tenant="acme", tools=tools).identity.tools == tools
    assert mint(world, "child", by=bearer("r1"), tools=tools).identity.tools == tools
    with pytest.raises(LedgerError, match="at most 64 tools"):
        mint(world, "child", "two", by=bearer("r1"), tools=(*tools, "pay"))


def test_a_token_from_before_there_were_such_limits_works(world: World) -> None:
    mint(world, "r1", tenant="acme", tools=("read",))
    older = ["*a" * 30_000, *("x" for _ in range(200)), "read"]
    world.conn.execute("UPDATE token SET tools = ?", (orjson.dumps(older).decode(),))
    world.reopen()
    assert told(world, bearer("r1"))[0] == "allowed"
    assert len(mint(world, "child", by=bearer("r1")).identity.tools or ()) == 202
    assert told(world, bearer("child"))[0] == "allowed"


# Another release of a run


def test_an_operator_mints_another_release_for_a_run(world: World) -> None:
    mint(world, "r1", tenant="acme", release="v1")
    token = mint(world, "r1", "new", release="v2")
    assert token.identity.release == "v2"
    for _ in range(2):
        assert released(world, bearer("r1", "new")) == "v2"
        assert released(world, bearer("r1")) == "v1"
        world.reopen()
    assert {token.identity.release for token in world.store.tokens()} == {"v1", "v2"}
    (gone,) = world.store.revoke(token.id, actor="bob", at_us=1)
    assert gone.identity.release == "v2"


def test_a_token_without_a_word_on_it_is_of_the_runs_release(world: World) -> None:
    mint(world, "r1", tenant="acme", release="v1")
    mint(world, "r1", "two", release="v2")
    assert mint(world, "r1", "three").identity.release == "v1"
    assert world.rows("SELECT release FROM token WHERE release IS NOT NULL") == [("v2",)]


def test_a_halt_of_a_release_follows_the_token(world: World) -> None:
    mint(world, "r1", tenant="acme", release="v1")
    mint(world, "r1", "new", release="v2")
    world.store.pull(a_pull(Scope.RELEASE, "v2"))
    assert told(world, bearer("r1", "new"))[0] == "halted"
    assert told(world, bearer("r1"))[0] == "allowed"


def test_a_child_has_the_release_of_the_token_that_minted_it(world: World) -> None:
    mint(world, "r1", tenant="acme", release="v1")
    for release in ("v2", "v3"):
        mint(world, "r1", release, release=release)
        by = bearer("r1", release)
        token = mint(world, "child", f"child of {release}", by=by)
        assert token.identity.release == release
        assert released(world, bearer("child", f"child of {release}")) == release
        deeper = mint(world, "deep", f"deep {release}", by=bearer("child", f"child of {release}"))
        assert deeper.identity.release == release


def test_a_run_does_not_move_its_child_off_a_release_that_an_operator_gave(world: World) -> None:
    mint(world, "r1", tenant="acme", release="v1")
    mint(world, "child", parent="r1", release="v9")
    with pytest.raises(LedgerError, match="has the release v9, not v1"):
        mint(world, "child", "again", by=bearer("r1"))
    assert len(world.store.tokens()) == 2


def released(world: World, claimant: Bearer) -> str | None:
    identity = told(world, claimant)[1]
    return identity.release if identity else None


# A run's own token mints narrower ones


def own(world: World, **rest: Any) -> Bearer:
    mint(world, "r1", tenant="acme", release="v1", **rest)
    return bearer("r1")


def test_a_run_mints_for_its_children(world: World) -> None:
    by = own(world, tools=("pay.*", "read"), expires_us=world.now_us + 9_000_000)
    token = mint(world, "child", by=by, tools=("pay.refunds", "pay.*"))
    assert token.identity == Identity("child", "acme", ("r1",), "", "v1", ("pay.refunds", "pay.*"))
    assert token.expires_us == world.now_us + 9_000_000


def test_a_child_inherits_what_is_not_said(world: World) -> None:
    token = mint(world, "child", by=own(world, tools=("pay",)))
    assert (token.identity.tools, token.expires_us) == (("pay",), None)


def test_a_child_may_expire_sooner_and_not_later(world: World) -> None:
    by = own(world, expires_us=world.now_us + 100)
    assert mint(world, "c1", by=by, expires_us=world.now_us + 50).expires_us == world.now_us + 50
    assert mint(world, "c2", by=by, expires_us=world.now_us + 500).expires_us == world.now_us + 100


@pytest.mark.parametrize(
    "grant, message",
    [
        ({"run": "r1"}, "name a new run"),
        ({"run": "c", "tenant": "bolt"}, "own children only"),
        ({"run": "c", "parent": "other"}, "own children only"),
        ({"run": "other"}, "has the parent none"),
        ({"run": "c", "release": "v2"}, "release of its parent"),
        ({"run": "c", "tools": ("*",)}, "only what its parent may"),
        ({"run": "c", "tools": ("pay", "mail")}, "only what its parent may"),
        ({"run": "c", "tools": ("pay.[a-z]",)}, "the only wildcard"),
    ],
)
def test_a_run_widens_nothing(world: World, grant: dict[str, Any], message: str) -> None:
    mint(world, "other", tenant="acme")
    by = own(world, tools=("pay*", "read"))
    with pytest.raises(LedgerError, match=message):
        mint(world, **grant, by=by, secret="new")


@pytest.mark.parametrize("how", ["revoked", "expired", "unknown", "another's"])
def test_a_token_that_is_not_valid_mints_nothing(world: World, how: str) -> None:
    by = own(world, expires_us=world.now_us + 1_000_000)
    if how == "revoked":
        world.store.revoke("r1", actor="bob", at_us=world.now_us)
    elif how == "expired":
        world.wait(2)
    elif how == "unknown":
        by = bearer("r1", "guess")
    else:
        by = bearer("r2", "r1")
    with pytest.raises(LedgerError, match="not valid"):
        mint(world, "child", by=by)


def test_what_a_revoked_token_minted_is_revoked_with_it(world: World) -> None:
    by = own(world)
    mint(world, "child", by=by)
    mint(world, "grandchild", by=bearer("child"))
    mint(world, "stranger", tenant="acme")
    world.store.revoke("r1", actor="bob", at_us=world.now_us)
    reasons = [told(world, bearer(run))[0] for run in ("child", "grandchild", "stranger")]
    assert reasons == ["token_revoked", "token_revoked", "allowed"]


def test_a_halt_of_a_run_holds_for_its_children(world: World) -> None:
    by = own(world)
    mint(world, "child", by=by)
    world.store.pull(a_pull())
    assert told(world, bearer("child"))[0] == "halted"
    assert told(world, bearer("r1"))[0] == "halted"


def test_no_token_and_no_hash_prefix_beyond_the_id_is_shown(world: World) -> None:
    token = mint(world, "r1", "s3cret", tenant="acme")
    assert token.id == hashed("s3cret").hex()[:16]
    assert not any(b"s3cret" in path.read_bytes() for path in world.data.iterdir())
    assert world.decided(world.read("a", claimant=bearer("r1", "s3cret"))).verdict.action is (
        Action.ALLOW
    )
