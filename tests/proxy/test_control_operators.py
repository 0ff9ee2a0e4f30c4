"""Operators: made and dismissed, their file, and the routes and commands by which that is done."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.errors import LedgerUnavailable
from ledger.store import Operator
from proxy import control_operators
from proxy.control_client import TOKEN_FILE
from proxy.control_operators import LOCAL, ensure_one
from proxy.control_socket import ControlError, user_name
from tests.proxy.controlled import Controlled, controlled


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


async def living(running: Controlled) -> list[Operator]:
    operators = await running.service.decider.act(lambda store: store.operators())
    return [each for each in operators if each.revoked_us is None]


# ---------------------------------------------------------------------------- the file


async def test_where_there_is_no_operator_one_is_made_for_this_machines_admin(
    running: Controlled,
) -> None:
    path = running.data / TOKEN_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    secret = path.read_text("ascii").strip()
    status, answer, _ = await running.at_port("GET", "/v1/tokens", secret)
    assert status == 200
    ((name, role),) = [(each["name"], each["role"]) for each in answer["operators"]]
    assert (name, role) == (LOCAL, "admin")
    assert secret not in str(answer)
    (row,) = running.rows("operator.enrolled")
    assert row["actor"] == f"file:{TOKEN_FILE}"


async def test_the_next_start_makes_no_other(tmp_path: Path) -> None:
    async with controlled(tmp_path) as running:
        before = (running.data / TOKEN_FILE).read_text()
    async with controlled(tmp_path) as running:
        assert (running.data / TOKEN_FILE).read_text() == before
        assert len(await living(running)) == 1


async def test_where_an_operator_lives_none_is_made(tmp_path: Path) -> None:
    async with controlled(tmp_path) as running:
        await running.enrolled("view")
        await running.asked("POST", "/v1/tokens/revoke", name=LOCAL)
        (running.data / TOKEN_FILE).unlink()
    async with controlled(tmp_path) as running:
        assert not (running.data / TOKEN_FILE).exists()


async def test_when_all_are_dismissed_a_new_one_replaces_the_file(tmp_path: Path) -> None:
    async with controlled(tmp_path) as running:
        await running.asked("POST", "/v1/tokens/revoke", name=LOCAL)
        old = (running.data / TOKEN_FILE).read_text().strip()
        (running.data / TOKEN_FILE).chmod(0o644)
    async with controlled(tmp_path) as running:
        new = (running.data / TOKEN_FILE).read_text().strip()
        assert new != old
        assert (running.data / TOKEN_FILE).stat().st_mode & 0o777 == 0o600
        assert (await running.at_port("GET", "/v1/status", old))[0] == 401
        assert (await running.at_port("GET", "/v1/status", new))[0] == 200


async def test_a_link_in_the_place_of_the_file_is_replaced_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("notes")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / TOKEN_FILE).symlink_to(elsewhere)
    async with controlled(tmp_path) as running:
        assert not (running.data / TOKEN_FILE).is_symlink()
    assert elsewhere.read_text() == "notes"


async def test_a_file_that_cannot_be_written_is_told(running: Controlled) -> None:
    await running.asked("POST", "/v1/tokens/revoke", name=LOCAL)
    (running.data / TOKEN_FILE).unlink()
    (running.data / TOKEN_FILE).mkdir()
    with pytest.raises(ControlError, match=TOKEN_FILE):
        await ensure_one(running.service)
    assert sorted(running.data.glob(f".{TOKEN_FILE}*")) == []
    assert await living(running) == []


async def test_a_start_that_cannot_enroll_tries_again_at_the_next(running: Controlled) -> None:
    await running.asked("POST", "/v1/tokens/revoke", name=LOCAL)
    (running.data / "ledger.db").rename(running.data / "elsewhere.db")
    with pytest.raises(LedgerUnavailable):
        await ensure_one(running.service)
    (running.data / "elsewhere.db").rename(running.data / "ledger.db")
    async with asyncio.timeout(10):
        while not await living_now(running):
            await asyncio.sleep(0.01)
    secret = (running.data / TOKEN_FILE).read_text().strip()
    assert (await running.at_port("GET", "/v1/status", secret))[0] == 200


async def living_now(running: Controlled) -> list[Operator]:
    try:
        await ensure_one(running.service)
        return await living(running)
    except LedgerUnavailable:  # until the store has tried again
        return []


# ---------------------------------------------------------------------------- the routes


async def test_an_operators_token_shows_its_secret_once(running: Controlled) -> None:
    made = await running.asked("POST", "/v1/operators", name="alertmanager", role="pull")
    secret = made.pop("secret")
    answer = await running.asked("GET", "/v1/tokens")
    assert made in answer["operators"]
    assert secret not in str(answer)
    assert made["role"] == "pull"
    (row,) = [row for row in running.rows("operator.enrolled") if "alertmanager" in row["detail"]]
    assert row["actor"] == user_name(os.geteuid())


async def test_a_name_is_one_operators_until_that_one_is_dismissed(running: Controlled) -> None:
    await running.asked("POST", "/v1/operators", name="ci", role="pull")
    again = await running.refused("POST", "/v1/operators", name="ci", role="admin")
    assert (again.status, "dismiss that one first" in str(again)) == (409, True)
    await running.asked("POST", "/v1/tokens/revoke", name="ci")
    await running.asked("POST", "/v1/operators", name="ci", role="admin")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "é", "x" * 257, "a\n"])
async def test_a_name_that_cannot_stand_in_a_record_is_refused(
    running: Controlled, name: str
) -> None:
    error = await running.refused("POST", "/v1/operators", name=name, role="pull")
    assert (error.status, "an operator's name" in str(error)) == (400, True)


async def test_a_role_that_is_none_is_told(running: Controlled) -> None:
    error = await running.refused("POST", "/v1/operators", name="ada", role="root")
    assert error.status == 400
    assert "'view', 'pull', 'release' or 'admin'" in str(error)


async def test_revoking_ends_all_that_goes_by_the_name_or_the_id(running: Controlled) -> None:
    await running.asked("POST", "/v1/tokens", run="ci", tenant="acme")
    made = await running.asked("POST", "/v1/operators", name="ci", role="pull")
    gone = await running.asked("POST", "/v1/tokens/revoke", name="ci")
    assert [each["run"] for each in gone["revoked"]] == ["ci"]
    assert [each["id"] for each in gone["dismissed"]] == [made["id"]]
    made = await running.asked("POST", "/v1/operators", name="ci", role="pull")
    gone = await running.asked("POST", "/v1/tokens/revoke", name=made["id"])
    assert [each["name"] for each in gone["dismissed"]] == ["ci"]
    assert (await running.refused("POST", "/v1/tokens/revoke", name="ci")).status == 404
    assert len(running.rows("operator.dismissed")) == 2


def test_the_secret_of_an_operator_is_not_shown_by_mistake() -> None:
    made = control_operators.Enrolled(Operator("i", "n", "view", "a", 0, None), "the secret")
    assert "the secret" not in repr(made)
