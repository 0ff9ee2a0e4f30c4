"""When the record is sealed: after a while, after many rows, at the end; and by which key."""

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from ledger import trace
from ledger.chain import Head
from ledger.connection import open_file
from ledger.errors import LedgerError
from ledger.seals import PublicKeys, from_line
from ledger.states import EventType
from ledger.store import Store
from ledger.verification import Verified, verify
from proxy import sealing
from proxy.deciding import PolicyFile, deciding
from proxy.operations import vault_key
from proxy.sealing import SEAL_SECONDS, Sealing, public_keys, seal_keys
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


async def test_a_seal_covers_what_the_trace_was_one_seal_before(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may lose the newest messages of the trace, and raises no alarm by that."""
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
    assert found == [(0,), (5,), (9,)]
