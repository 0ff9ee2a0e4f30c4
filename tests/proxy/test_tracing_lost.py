"""What an engine catches for the trace is bounded, and a loss of it is counted and told."""

import asyncio
from typing import Any

import pytest

from ledger.errors import Kind, LedgerUnavailable
from proxy import tracing
from tests.proxy.caught import POLICY, WHO, Place, asked, caught, place, until

__all__ = ["place"]


async def test_without_a_tracer_it_waits_and_then_is_told_as_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.05)
    traced = place.tracing()
    traced.start()
    caught(traced, asked(), b"answer")
    caught(traced, asked(call_id="c2"), b"answer")
    assert traced.behind == 4
    await traced.close()
    ((messages, runs, since_us, until_us, why),) = place.told
    assert (messages, runs, since_us) == (4, ("r1",), 1_000)
    assert until_us > since_us
    assert "ended before" in why


async def test_a_tracer_that_comes_late_gets_all(place: Place) -> None:
    traced = place.tracing()
    traced.start()
    caught(traced, asked(), b"answer")
    await asyncio.sleep(0.05)
    async with place.tracer.listening():
        await until(lambda: traced.behind == 0)
        await traced.close()
    assert len(place.tracer.kept) == 2
    assert place.told == []


async def test_what_a_dying_tracer_had_is_lost_and_the_next_gets_the_rest(place: Place) -> None:
    place.tracer.hangs = True
    traced = place.tracing()
    async with place.tracer.listening():
        traced.start()
        caught(traced, asked(), b"answer")
        await until(lambda: len(traced._sending) == 2)
    await until(lambda: traced.state()["lost"] == 2)
    place.tracer.hangs = False
    place.tracer.path.unlink(missing_ok=True)
    async with place.tracer.listening():
        caught(traced, asked(call_id="c2"), b"answer")
        await until(lambda: traced.behind == 0)
        await traced.close()
    assert [message[0] for message in place.tracer.kept] == ["c2", "c2"]
    assert [loss[0] for loss in place.told] == [2]
    assert traced._held_bytes == 0


async def test_a_tracer_that_ends_between_two_calls_takes_nothing(place: Place) -> None:
    traced = place.tracing()
    async with place.tracer.listening():
        traced.start()
        caught(traced, asked(), b"answer")
        await until(lambda: traced.behind == 0)
    await asyncio.sleep(0.05)
    place.tracer.path.unlink(missing_ok=True)
    async with place.tracer.listening():
        caught(traced, asked(call_id="c2"), b"answer")
        await until(lambda: traced.behind == 0)
        await traced.close()
    assert [message[0] for message in place.tracer.kept] == ["c1", "c1", "c2", "c2"]
    assert place.told == []


async def test_a_trace_that_cannot_be_written_is_a_loss_with_its_reason(place: Place) -> None:
    place.tracer.failure = LedgerUnavailable(Kind.FULL, "/data/trace.db")
    traced = place.tracing()
    async with place.tracer.listening():
        traced.start()
        caught(traced, asked(), b"answer")
        await until(lambda: traced.behind == 0)
        await traced.close()
    ((messages, _, _, _, why),) = place.told
    assert messages == 2
    assert "disk" in why
    assert "trace.db" in why


async def test_a_burst_of_losses_is_one_row(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "LOST_SECONDS", 0.05)
    monkeypatch.setattr(tracing, "HELD_MESSAGES_MAX", 1)
    traced = place.tracing()
    for number in range(20):
        caught(traced, asked(call_id=f"c{number}"), b"answer")
    await until(lambda: len(place.told) == 1)
    assert place.told[0][0] == 39
    caught(traced, asked(), b"answer")
    await traced.close()
    assert [loss[0] for loss in place.told] == [39, 3], "the second is told at the end"


async def test_a_loss_that_cannot_be_recorded_is_told_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "LOST_SECONDS", 0.02)
    monkeypatch.setattr(tracing, "LOST_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(tracing, "HELD_MESSAGES_MAX", 0)
    place.untold = 2
    traced = place.tracing()
    caught(traced, asked(), b"answer")
    await until(lambda: len(place.told) == 1)
    assert place.told[0][0] == 2
    await traced.close()
    assert len(place.told) == 1


async def test_so_many_runs_are_named_however_often_it_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "LOST_SECONDS", 0.02)
    monkeypatch.setattr(tracing, "LOST_AGAIN_SECONDS", 0.02)
    place.untold = 3
    traced = place.tracing()
    for number in range(200):
        traced.lost(f"run-{number}", 1, "it is away")
        if number % 20 == 0:
            await asyncio.sleep(0.01)
    await until(lambda: bool(place.told))
    await traced.close()
    assert {len(loss[1]) for loss in place.told} == {tracing.LOST_RUNS_MAX}
    assert sum(loss[0] for loss in place.told) == 200


async def test_memory_is_bounded_over_all_calls(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "HELD_BYTES_MAX", 100_000)
    traced = place.tracing()
    catches = [
        traced.asked(asked(call_id=f"c{number}"), WHO, POLICY, is_let_through=True)
        for number in range(20)
    ]
    for catch in catches:
        assert catch is not None
        catch.headed(200, ())
        for _ in range(20):
            catch.add(b"x" * 1_000)
    assert traced._held_bytes <= 100_000
    async with place.tracer.listening():
        traced.start()
        for catch in catches:
            assert catch is not None
            catch.settled(200, (), is_first=True, is_over=True)
            assert traced._held_bytes <= 100_000
        await traced.close()
    answers = [message for message in place.tracer.kept if message[1] == "response"]
    assert {message[11] for message in answers} == {20_000}, "how long each was is known"
    assert any(len(message[10]) == 20_000 for message in answers)
    assert any(len(message[10]) < 20_000 for message in answers)
    assert sum(loss[0] for loss in place.told) >= 1
    assert traced._held_bytes == 0


async def test_a_bug_in_catching_does_not_reach_the_call(place: Place) -> None:
    traced = place.tracing()
    broken: Any = object()
    assert traced.asked(broken, WHO, POLICY, is_let_through=True) is None
    assert traced.asked(broken, WHO, POLICY, is_let_through=True) is None
