"""The operator's acts on a real store."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ledger.errors import LedgerBusy, LedgerError
from ledger.records import Ask, Bearer, OwnState
from ledger.store import Store
from ledger.tokens import Grant
from policies.call import Effect, Request, ToolCall
from policies.load import load
from policies.policy import Policy
from policies.verdict import Level, Pull, Reason, Scope
from proxy import operations, secret_keys
from proxy.cli.reading import told_cord
from proxy.control_access import Role
from proxy.control_operators import enroll
from proxy.identity import token_hash
from proxy.operations import NotFound, OperationError

NOW_US = 1_800_000_000_123_456


@pytest.fixture
def policy() -> Policy:
    return load(
        "version: 1\n"
        "frozen: [mail.send]\n"
        "tools:\n"
        "  mail.send: {match: {host: mail.example, method: POST}, effect: write}\n"
        "  mail.read: {match: {host: mail.example, method: GET}, effect: read}\n",
        "config/policy.yaml",
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path, secret_keys.vault_key(tmp_path), lambda: NOW_US)
    yield opened
    opened.close()


def cord(level: Level, scope: Scope, subject: str = "", reason: str = "") -> Pull:
    return Pull(level, scope, subject, reason, "ada", NOW_US)


def known_by(store: Store, policy: Policy, run: str, secret: str) -> OwnState | Reason:
    call = ToolCall("unlisted", Effect.READ, "GET /", b"")
    bearer = Bearer(run, token_hash(secret))
    ask = Ask("c1", NOW_US, bearer, Request("GET", "http", "pullcord.invalid", 80, "/"), call)
    return store.own_state(ask, policy)


RUN = cord(Level.HALT, Scope.RUN, "r1", "loops")
RUN_NAME = (Level.HALT, Scope.RUN, "r1")


def release(store: Store, policy: Policy | None, name: operations.CordName, reason: str) -> Pull:
    return operations.release(store, policy, name, reason=reason, actor="ada", at_us=NOW_US + 1)


def test_a_cord_is_pulled_once_and_the_first_one_stands(store: Store, policy: Policy) -> None:
    assert operations.pull(store, policy, RUN) == (RUN, True)
    again = cord(Level.HALT, Scope.RUN, "r1", "another reason")
    assert operations.pull(store, policy, again) == (RUN, False)
    assert store.pulls == {RUN_NAME: RUN}


def test_a_released_cord_is_given_back(store: Store, policy: Policy) -> None:
    operations.pull(store, policy, RUN)
    assert release(store, policy, RUN_NAME, "mended") == RUN
    assert store.pulls == {}


@pytest.mark.parametrize("reason", ["", " ", "\u200b", "\n\t\x00", "\u00a0\u2060"])
def test_a_release_needs_a_reason_that_can_be_read(
    store: Store, policy: Policy, reason: str
) -> None:
    operations.pull(store, policy, RUN)
    with pytest.raises(OperationError, match="--reason"):
        release(store, policy, RUN_NAME, reason)
    assert store.pulls == {RUN_NAME: RUN}


def test_what_is_not_pulled_cannot_be_released(store: Store, policy: Policy) -> None:
    with pytest.raises(NotFound, match="no halt is pulled for run r1"):
        release(store, policy, RUN_NAME, "mended")


def test_a_cord_of_the_policy_is_released_in_its_file_only(store: Store, policy: Policy) -> None:
    name = (Level.FREEZE, Scope.TOOL, "mail.send")
    with pytest.raises(OperationError, match=r"config/policy\.yaml:2"):
        release(store, policy, name, "mended")


@pytest.mark.parametrize(
    "scope, subject, told",
    [
        (Scope.GLOBAL, "r1", "takes no name"),
        (Scope.RUN, "", "name the run"),
        (Scope.RUN, "a b", "can be no run"),
        (Scope.TENANT, "a/b", "can be no tenant"),
        (Scope.RELEASE, "x" * 1001, "longer than 1000"),
        (Scope.RELEASE, "v\x001", "control characters"),
        (Scope.TENANT, "a\x1bb", "can be no tenant"),
        (Scope.TOOL, "mail.send\n", "control characters"),
        (Scope.TOOL, "a b/mail.send", "can be no tool: name it, or RUN/TOOL"),
        (Scope.TOOL, "/mail.send", "can be no tool"),
        (Scope.TOOL, "r1/", "can be no tool"),
        (Scope.TOOL, "r1/r2/mail.send", "can be no tool"),
    ],
)
def test_a_cord_that_can_fit_no_call_is_refused(
    store: Store, policy: Policy, scope: Scope, subject: str, told: str
) -> None:
    with pytest.raises(OperationError, match=told):
        operations.pull(store, policy, cord(Level.HALT, scope, subject))
    assert store.pulls == {}


def test_a_misspelt_tool_is_not_found_and_nearby_ones_are_named(
    store: Store, policy: Policy
) -> None:
    with pytest.raises(NotFound, match=r"did you mean mail\.send"):
        operations.pull(store, policy, cord(Level.HALT, Scope.TOOL, "mail.sent"))
    with pytest.raises(NotFound, match=r"has no tool 'mail\.sent'; did you mean mail\.send"):
        operations.pull(store, policy, cord(Level.HALT, Scope.TOOL, "r1/mail.sent"))
    assert store.pulls == {}


def test_a_tool_of_one_run_is_halted_and_resumed(store: Store, policy: Policy) -> None:
    wanted = cord(Level.HALT, Scope.TOOL, "r1/mail.send")
    assert operations.pull(store, policy, wanted) == (wanted, True)
    assert operations.undo_command(wanted) == ('pullcord resume tool r1/mail.send --reason "..."')
    name = (Level.HALT, Scope.TOOL, "r1/mail.send")
    operations.release(store, policy, name, reason="ok", actor="bob", at_us=1)
    assert store.pulls == {}


def test_only_a_detector_throttles_and_a_thaw_lifts_it_with_the_freeze(
    store: Store, policy: Policy
) -> None:
    throttle = cord(Level.THROTTLE, Scope.RUN, "r1")
    with pytest.raises(OperationError, match="only a detector throttles"):
        operations.pull(store, policy, throttle)
    freeze, name = cord(Level.FREEZE, Scope.RUN, "r1"), (Level.FREEZE, Scope.RUN, "r1")
    for pulled in ([throttle], [throttle, freeze]):
        for each in pulled:
            store.pull(each)
        lifted = operations.release(store, policy, name, reason="ok", actor="bob", at_us=1)
        assert lifted == pulled[-1]
        assert store.pulls == {}
    with pytest.raises(NotFound, match="no freeze is pulled for run r1"):
        operations.release(store, policy, name, reason="ok", actor="bob", at_us=1)
    assert operations.undo_command(throttle) == 'pullcord thaw run r1 --reason "..."'


def test_without_a_readable_policy_any_tool_may_be_halted(store: Store) -> None:
    assert operations.pull(store, None, cord(Level.HALT, Scope.TOOL, "mail.sent"))[1]


def test_unlisted_destinations_can_be_halted_as_a_tool(store: Store, policy: Policy) -> None:
    assert operations.pull(store, policy, cord(Level.HALT, Scope.TOOL, "unlisted"))[1]


@pytest.mark.parametrize(
    "pulled, typed",
    [
        (RUN, 'pullcord resume run r1 --reason "..."'),
        (cord(Level.FREEZE, Scope.GLOBAL), 'pullcord thaw global --reason "..."'),
        (cord(Level.HALT, Scope.RELEASE, "a b"), "pullcord resume release 'a b' --reason \"...\""),
        (cord(Level.HALT, Scope.RUN, "--help"), 'pullcord resume run --reason "..." -- --help'),
    ],
)
def test_the_undo_command_can_be_pasted(pulled: Pull, typed: str) -> None:
    assert operations.undo_command(pulled) == typed


def test_the_command_that_halts_can_be_pasted() -> None:
    assert operations.halt_command(Scope.GLOBAL, "") == "pullcord halt global"
    assert operations.halt_command(Scope.RELEASE, "a b") == "pullcord halt release 'a b'"
    assert operations.halt_command(Scope.RUN, "--help") == "pullcord halt run -- --help"


def test_a_minted_token_is_known_by_its_secret(store: Store, policy: Policy) -> None:
    minted = operations.mint(store, Grant("r1", tools=("mail.*",)), "ada", NOW_US)
    state = known_by(store, policy, "r1", minted.secret)
    assert isinstance(state, OwnState)
    who = state.identity
    assert (who.run, who.tenant, who.tools) == ("r1", "default", ("mail.*",))
    assert known_by(store, policy, "r2", minted.secret) is Reason.CREDENTIALS_INVALID
    assert minted.secret not in repr(minted)


def test_a_known_run_keeps_its_tenant_when_none_is_named(store: Store) -> None:
    operations.mint(store, Grant("r1", tenant="acme"), "ada", NOW_US)
    assert operations.mint(store, Grant("r1"), "ada", NOW_US).token.identity.tenant == "acme"


def test_a_child_run_has_the_tenant_of_its_parent(store: Store, policy: Policy) -> None:
    operations.mint(store, Grant("r1", tenant="acme"), "ada", NOW_US)
    child = operations.mint(store, Grant("r2", parent="r1"), "ada", NOW_US, policy).token
    assert (child.identity.tenant, child.identity.ancestors) == ("acme", ("r1",))


def test_a_run_cannot_be_minted_into_another_tenant(store: Store) -> None:
    operations.mint(store, Grant("r1", tenant="acme"), "ada", NOW_US)
    with pytest.raises(LedgerError, match="tenant acme"):
        operations.mint(store, Grant("r1", tenant="umbrella"), "ada", NOW_US)


@pytest.mark.parametrize(
    "grant",
    [
        *(Grant(""), Grant("a:b"), Grant("r1", tenant="a b"), Grant("r1", release="v\x00")),
        *(Grant("r1", expires_us=NOW_US), Grant("r1", expires_us=NOW_US + 10**18)),
        *(Grant("r1", release="pullcord.drill"), Grant("r1", tools=("x", "pullcord.canary"))),
    ],
)
def test_a_token_that_no_client_could_use_is_not_minted(store: Store, grant: Grant) -> None:
    with pytest.raises(OperationError):
        operations.mint(store, grant, "ada", NOW_US)


KEY = f"sk_{'live'}_4eC39HqLyjWDarjtT1"
COMMIT = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"


@pytest.mark.parametrize(
    "grant, what",
    [
        (Grant(KEY), "the run"),
        (Grant("r1", tenant=f"t-{KEY}"), "the tenant"),
        (Grant("r1", agent=KEY), "the agent"),
        (Grant("r1", release=KEY), "the release"),
        (Grant("r1", tools=("mail.*", KEY)), "the tool"),
    ],
)
def test_a_secret_is_no_name(store: Store, grant: Grant, what: str) -> None:
    with pytest.raises(OperationError, match=rf"^{what} looks like a secret") as caught:
        operations.mint(store, grant, "ada", NOW_US)
    assert KEY not in str(caught.value)
    assert store.tokens() == []
    with pytest.raises(OperationError, match=r"^the operator's name looks like a secret"):
        enroll(store, KEY, Role.VIEW, "ada", NOW_US)
    assert store.operators() == []


def test_an_operators_names_may_look_drawn(store: Store) -> None:
    """A trace's id as a run, a customer's as a tenant, a commit as a release."""
    grant = Grant(COMMIT[:32], tenant=COMMIT[-32:], release=COMMIT)
    assert operations.mint(store, grant, "ada", NOW_US).token.identity.release == COMMIT


def test_a_revoked_token_is_refused_from_then_on(store: Store, policy: Policy) -> None:
    minted = operations.mint(store, Grant("r1"), "ada", NOW_US)
    assert [each.id for each in operations.revoke(store, "r1", "ada", NOW_US)] == [minted.token.id]
    assert known_by(store, policy, "r1", minted.secret) is Reason.TOKEN_REVOKED
    with pytest.raises(NotFound):
        operations.revoke(store, "r1", "ada", NOW_US)


def test_a_cord_survives_its_way_through_json() -> None:
    there = operations.pull_as_json(RUN)
    assert there["at"] == "2027-01-15T08:00:00.123Z"
    back = operations.pull_from_json(there)
    assert (back.rule, back.reason, back.actor) == (RUN.rule, RUN.reason, RUN.actor)
    assert back.at_us == 1_800_000_000_123_000
    assert (there["until"], there["but_releases"]) == (None, [])
    assert (back.until_us, back.but_releases) == (None, ())
    timed = replace(RUN, until_us=1_800_000_060_000_000, but_releases=("v2",))
    there = operations.pull_as_json(timed)
    assert there["until"] == "2027-01-15T08:01:00.000Z"
    back = operations.pull_from_json(there)
    assert (back.until_us, back.but_releases) == (timed.until_us, ("v2",))


def test_a_cord_of_the_policy_says_no_time(tmp_path: Path) -> None:
    there = operations.pull_as_json(replace(RUN, at_us=0, actor="setting:any"))
    assert there["at"] is None
    assert operations.pull_from_json(there).at_us == 0
    assert "since" not in told_cord(there)
    assert "1970" not in told_cord(there)


def test_the_vault_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    key = secret_keys.vault_key(tmp_path / "data")
    path = tmp_path / "data" / "private" / "vault.key"
    assert len(key) == 32
    assert secret_keys.vault_key(tmp_path / "data") == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["vault.key"]


def test_a_vault_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    secret_keys.vault_key(tmp_path)
    (tmp_path / "private" / "vault.key").chmod(0o640)
    with pytest.raises(LedgerError, match="chmod 600"):
        secret_keys.vault_key(tmp_path)


def test_a_vault_key_of_the_wrong_length_is_not_replaced(tmp_path: Path) -> None:
    secret_keys.vault_key(tmp_path)
    (tmp_path / "private" / "vault.key").write_bytes(b"short")
    with pytest.raises(LedgerError, match="32 bytes"):
        secret_keys.vault_key(tmp_path)
    assert (tmp_path / "private" / "vault.key").read_bytes() == b"short"


def test_a_store_opened_for_one_act_keeps_it(tmp_path: Path, policy: Policy) -> None:
    with operations.opened(tmp_path, lambda: NOW_US) as store:
        operations.pull(store, policy, RUN)
    with operations.opened(tmp_path, lambda: NOW_US) as store:
        assert store.pulls == {RUN_NAME: RUN}


def test_a_failed_act_leaves_nothing(tmp_path: Path, policy: Policy) -> None:
    def two_acts() -> None:
        with operations.opened(tmp_path, lambda: NOW_US) as store:
            operations.pull(store, policy, RUN)
            operations.pull(store, policy, cord(Level.HALT, Scope.TOOL, "nothing"))

    with pytest.raises(NotFound):
        two_acts()
    with operations.opened(tmp_path, lambda: NOW_US) as store:
        assert store.pulls == {}


def test_a_store_that_is_owned_is_not_opened(tmp_path: Path, store: Store) -> None:
    with pytest.raises(LedgerBusy), operations.opened(tmp_path, lambda: NOW_US):
        pass
