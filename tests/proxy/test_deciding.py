"""Cords that the store cannot take stand all the same, and are stored when it can."""

import asyncio
from contextlib import closing

import pytest

from ledger.errors import LedgerUnavailable
from ledger.sqlite import sqlite3
from policies.verdict import Level, Pull, Scope
from proxy.serve import running
from proxy.settings import Settings

HALT = Pull(Level.HALT, Scope.RUN, "r1", "loops", "ann", 1)
NAME = (Level.HALT, Scope.RUN, "r1")


@pytest.fixture
async def service(tmp_path):
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    settings = Settings(config=tmp_path, data=tmp_path / "data", listen="127.0.0.1:0")
    async with running(settings) as service:
        yield service


def locked(service):
    other = sqlite3.connect(service.settings.data / "ledger.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return closing(other)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_cord_stands_while_it_is_being_stored(service):
    async with service.standing(HALT):
        assert service.decider.pulls == {NAME: HALT}
        assert service.decider.latched == {}
        await service.decider.act(lambda store: store.pull(HALT))
    assert service.decider.latched == {NAME: HALT}


async def test_a_cord_that_cannot_be_stored_stands_on_and_is_stored_when_it_can(service):
    with locked(service):
        with pytest.raises(LedgerUnavailable):
            async with service.standing(HALT):
                await service.decider.act(lambda store: store.pull(HALT))
        assert service.decider.pulls == {NAME: HALT}
        assert service.decider.latched == {}
    await until(lambda: NAME in service.decider.latched)
    await until(lambda: not service._unstored)


async def test_a_cord_that_is_wrong_does_not_stand_on(service):
    with pytest.raises(ZeroDivisionError):
        async with service.standing(HALT):
            raise ZeroDivisionError
    assert service.decider.pulls == {}


async def test_a_signal_on_a_locked_ledger_stands_at_once(service):
    with locked(service):
        service.halt_all("signal:SIGUSR1")
        await until(lambda: (Level.HALT, Scope.GLOBAL, "") in service.decider.pulls)
        assert service.decider.latched == {}
    await until(lambda: (Level.HALT, Scope.GLOBAL, "") in service.decider.latched)


async def test_a_cord_that_was_stored_late_stays_released(service):
    with locked(service), pytest.raises(LedgerUnavailable):
        async with service.standing(HALT):
            await service.decider.act(lambda store: store.pull(HALT))
    lifted = await service.decider.act(
        lambda store: store.release(*NAME, reason="mended", actor="ann", at_us=2)
    )
    assert lifted is not None
    await service.decider.act(lambda store: None, durable=True)
    assert service.decider.latched == {}
    assert service._posted() == []


async def test_a_stricter_cord_is_stored_late_over_a_narrowed_one(service):
    narrowed = Pull(*NAME, "loops", "ann", 1, but_releases=("v2",))
    await service.decider.act(lambda store: store.pull(HALT))
    await service.decider.act(
        lambda store: store.release(
            *NAME, reason="v2 is good", actor="ann", at_us=2, releases=("v2",)
        )
    )
    assert service.decider.latched[NAME].but_releases == narrowed.but_releases
    again = Pull(*NAME, "again", "bob", 3)
    with locked(service):
        with pytest.raises(LedgerUnavailable):
            async with service.standing(again):
                await service.decider.act(lambda store: store.pull(again))
        assert service.decider.pulls[NAME] == again
    await until(lambda: service.decider.latched[NAME].but_releases == ())
