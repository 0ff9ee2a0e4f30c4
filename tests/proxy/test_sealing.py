"""When the record is sealed: after a while, after many rows, at the end; and by which key."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger import trace
from ledger.chain import Head
from ledger.connection import open_file
from ledger.errors import LedgerError
from ledger.seals import PublicKeys, from_line
from ledger.states import EventType
from ledger.store import Store
from ledger.trace import TraceStore
from ledger.verification import Verified, verify
from proxy import seal_copies, sealing
from proxy.deciding import PolicyFile, deciding
from proxy.sealing import SEAL_SECONDS, Sealing, public_keys, seal_keys, trace_head
from proxy.secret_keys import vault_key
from proxy.settings import Settings
from tests.proxy.controlled import POLICY, Controlled, FakeClock, controlled


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


def looked_at(data: Path, copies: list[bytes] | None = None) -> Verified:
    with closing(open_file(data / "ledger.db")) as reader:
        return verify(reader, public_keys(data / "private" / "seal.pub"), copies=copies)


# The key


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    keys = seal_keys(tmp_path / "data")
    private = tmp_path / "data" / "private"
    assert stat.S_IMODE((private / "seal.key").stat().st_mode) == 0o600
    assert (private / "seal.pub").read_bytes() == keys.signer.pem
    assert stat.S_IMODE((private / "seal.pub").stat().st_mode) == 0o644
    assert sorted(path.name for path in private.iterdir()) == ["seal.key", "seal.pub"]
    assert seal_keys(tmp_path / "data").signer.key_id == keys.signer.key_id


def test_the_public_keys_of_before_stay(tmp_path: Path) -> None:
    first = seal_keys(tmp_path)
    (tmp_path / "private" / "seal.key").unlink()
    second = seal_keys(tmp_path)
    assert second.public.ids == (first.signer.key_id, second.signer.key_id)
    assert seal_keys(tmp_path).public.ids == second.public.ids


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    seal_keys(tmp_path)
    (tmp_path / "private" / "seal.key").chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        seal_keys(tmp_path)


@pytest.mark.parametrize("text, why", [("no key", "no public key in PEM"), ("", "")])
def test_what_is_no_public_key_is_told(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "pub").write_text(text)
    if why:
        with pytest.raises(LedgerError, match=why):
            public_keys(tmp_path / "pub")
    else:
        assert public_keys(tmp_path / "pub").ids == ()
    with pytest.raises(LedgerError, match="cannot read"):
        public_keys(tmp_path / "none")


def test_another_kind_of_key_is_told() -> None:
    broken = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    with pytest.raises(LedgerError, match="this is no public key"):
        PublicKeys(broken)


# When


async def test_rows_are_sealed_after_a_while_and_not_before(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "LOOK_SECONDS", 0.001)
    made = running.service.sealing
    going = asyncio.create_task(made.run(running.service.decider.act))
    await running.called("r1")
    running.service.decider.flush()
    rows = made.unsealed
    assert rows > 0
    running.clock.us += round((SEAL_SECONDS - 1) * 1e6)
    await asyncio.sleep(0.02)
    assert (made.unsealed, looked_at(running.data).seals) == (rows, 0)
    running.clock.us += 2_000_000
    async with asyncio.timeout(5):
        while made.unsealed:
            await asyncio.sleep(0.001)
    assert looked_at(running.data).seals == 1
    running.clock.us += 10 * round(SEAL_SECONDS * 1e6)
    await asyncio.sleep(0.02)
    assert looked_at(running.data).seals == 1  # nothing is new
    going.cancel()
    assert looked_at(running.data).problems == []


async def test_many_rows_are_sealed_at_once(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(sealing, "SEAL_ROWS_MAX", running.service.sealing.unsealed + 2)
    going = asyncio.create_task(running.service.sealing.run(running.service.decider.act))
    await asyncio.sleep(0.02)
    assert looked_at(running.data).seals == 0
    for number in range(2):
        await running.called(f"r{number}")
    async with asyncio.timeout(5):
        while running.service.sealing.unsealed:
            await asyncio.sleep(0.001)
    going.cancel()
    assert looked_at(running.data).seals == 1


async def test_all_is_sealed_at_the_end_and_the_next_start_goes_on(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY, "utf-8")
    copies = tmp_path / "copies"
    settings = Settings(config=tmp_path, data=tmp_path / "data", seals=(str(copies),))
    lines: list[bytes] = []
    for starts in (1, 2):
        policy = PolicyFile(settings.policy_file, "keep")
        async with deciding(settings, FakeClock(), policy, supervised=False):
            assert looked_at(settings.data).seals == starts - 1
        lines = copies.read_bytes().splitlines()
        found = looked_at(settings.data, lines)
        assert (found.problems, found.seals, found.unsealed, found.copies) == (
            [],
            starts,
            0,
            starts,
        )
    assert from_line(lines[0])[1].signature == from_line(lines[1])[1].previous
    assert stat.S_IMODE(copies.stat().st_mode) == 0o600


async def test_a_record_that_was_cut_off_is_not_sealed_and_told(running: Controlled) -> None:
    service = running.service
    await running.called("r1")
    await service.sealing.seal(service.decider.act)
    await service.decider.act(lambda store: store._conn.execute("DELETE FROM event").rowcount)
    newest = service.sealing.unsealed
    assert newest == 0
    await service.decider.act(
        lambda store: store._conn.execute("UPDATE seal SET seq = seq + 100").rowcount
    )
    await running.called("r2")
    await service.sealing.seal(service.decider.act)
    (warning,) = service.sealing.warnings
    assert warning.startswith("the record is not sealed: the record ends with row")


# What is told


async def test_status_tells_of_seals(running: Controlled) -> None:
    told = (await running.asked("GET", "/v1/status"))["seals"]
    assert (told["last"], told["error"], told["copies"]) == (None, None, [])
    assert told["key"] == seal_keys(running.data).signer.key_id
    await running.called("r1")
    await running.service.sealing.seal(running.service.decider.act)
    told = (await running.asked("GET", "/v1/status"))["seals"]
    assert told["unsealed"] == 0
    assert told["last"]["at"] == "2027-01-15T08:00:00.000Z"


async def test_a_copy_that_fails_is_told_and_stops_nothing(
    running: Controlled, tmp_path: Path
) -> None:
    place = tmp_path / "none" / "seals"
    store = Store.open(tmp_path / "own", vault_key(tmp_path / "own"), running.clock.now_us)
    store.note(EventType.CLOCK, actor="ann", at_us=1, detail="x")
    made = Sealing(tmp_path / "own", [str(place)], running.clock, store)
    await made.close()
    (warning,) = made.warnings
    assert f"seals are not copied to {place}" in warning
    assert made.as_json()["copies"] == [
        {"to": str(place), "waiting": 1, "error": warning.partition(": ")[2]}
    ]
    assert made.unsealed == 0
    store.close()
    running.service.sealing = made
    ready = await running.asked("GET", "/readyz")
    assert ready == {"ready": True, "warnings": [warning]}
    secret = await running.enrolled("view")
    for token, known in ((None, {"ready": True}), (secret, ready)):
        status, answer, _ = await running.at_port("GET", "/readyz", token)
        assert (status, answer) == (200, known)


async def test_a_seal_covers_what_the_trace_is(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = iter([5, 9, 12])

    def head(data: Path) -> Head:
        return Head(next(heads), b"h" * 32)

    monkeypatch.setattr(trace, "head", head)
    service = running.service
    for _ in range(3):
        await running.called("r1")
        await service.sealing.seal(service.decider.act)
    with closing(open_file(running.data / "ledger.db")) as reader:
        found = reader.execute("SELECT trace_seq FROM seal ORDER BY seq").fetchall()
    assert found == [(5,), (9,), (12,)]


async def test_what_is_sealed_of_the_trace_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut would look as if somebody had cut it off."""
    store = TraceStore.open(tmp_path, b"k" * 32, lambda: 1)
    wal = (tmp_path / "trace.db-wal").stat().st_ino
    synced = []
    fsync = os.fsync

    def told(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", told)
    assert trace_head(tmp_path) == Head()
    assert synced == [wal, tmp_path.stat().st_ino]
    store.close()


# The newest seal, beside the keys


async def started(settings: Settings) -> dict[str, Any]:
    """Start, end, and what status told of seals in between."""
    policy = PolicyFile(settings.policy_file, "keep")
    async with deciding(settings, FakeClock(), policy, supervised=False) as service:
        return service.sealing.as_json()


async def test_an_older_ledger_that_was_put_back_says_so_loudly_and_for_good(
    tmp_path: Path,
) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY, "utf-8")
    settings = Settings(config=tmp_path, data=tmp_path / "data")
    data = settings.data
    assert (await started(settings))["behind"] is None
    last = data / "private" / "seal.last"
    assert stat.S_IMODE(last.stat().st_mode) == 0o600
    backup = (data / "ledger.db").read_bytes()
    assert not list(data.glob("ledger.db-wal"))
    assert (await started(settings))["behind"] is None
    newest = from_line(last.read_bytes())[1]
    (data / "ledger.db").write_bytes(backup)
    told = await started(settings)
    assert f"over row {newest.seq}, and the record is cut off after row" in told["behind"]
    found = looked_at(data)
    assert (found.problems, len(found.behind)) == ([], 1)
    assert (await started(settings))["behind"] is None  # it is sealed, and stays told
    assert len(looked_at(data).behind) == 1


async def test_readyz_warns_of_a_ledger_behind_its_seal(running: Controlled) -> None:
    running.service.sealing.behind = "cut"
    ready = await running.asked("GET", "/readyz")
    assert ready["warnings"] == ["at the start the ledger was behind its newest seal: cut"]


async def test_two_seals_at_once_wait_for_each_other(running: Controlled) -> None:
    service = running.service
    await running.called("r1")
    await service.sealing.seal(service.decider.act)
    await running.called("r1")
    failed = []

    async def act(what: Callable[[Store], Any]) -> Any:
        try:
            return await service.decider.act(what)
        except LedgerError as error:
            failed.append(str(error))
            raise

    await asyncio.gather(*(service.sealing.seal(act) for _ in range(3)))  # type: ignore[arg-type]
    assert (failed, looked_at(running.data).seals) == ([], 2)


# Copies that were not sent


async def test_copies_that_were_not_sent_are_sent_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY, "utf-8")
    place = tmp_path / "later" / "copies"
    settings = Settings(config=tmp_path, data=tmp_path / "data", seals=(str(place),))
    place.parent.mkdir()
    await started(settings)
    place.parent.rename(tmp_path / "away")
    await started(settings)
    await started(settings)
    (tmp_path / "away").rename(place.parent)
    await started(settings)
    lines = place.read_bytes().splitlines()
    found = looked_at(settings.data, lines)
    assert (found.problems, found.seals, found.copies) == ([], 4, 4)
    told = (settings.data / "private" / "seal.sent").read_text()
    assert (str(found.last.seq) in told, str(place) in told) == (True, False)


async def test_a_place_that_is_new_gets_the_newest_seal_first(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY, "utf-8")
    settings = Settings(config=tmp_path, data=tmp_path / "data")
    for _ in range(3):
        await started(settings)
    place = tmp_path / "copies"
    await started(settings.model_copy(update={"seals": (str(place),)}))
    found = looked_at(settings.data, place.read_bytes().splitlines())
    assert (found.problems, found.seals, found.copies) == ([], 4, 2)


async def test_a_url_that_is_slow_holds_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "END_SECONDS", 0.05)
    (tmp_path / "policy.yaml").write_text(POLICY, "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        settings = Settings(config=tmp_path, data=tmp_path / "data", seals=(url,))
        async with asyncio.timeout(seal_copies.COPY_SECONDS - 1):
            told = await started(settings)
    assert told["error"] is None
    assert not (settings.data / "private" / "seal.sent").exists()
