"""The gate without an engine: what it does with a call that cannot be begun."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ledger import queries
from ledger.connection import open_reader
from policies import costs
from policies.call import Request
from proxy import gate as gate_module
from proxy import logs
from proxy.decider import Decider
from proxy.identity import Credentials
from proxy.refuse import Refusal
from tests.proxy.controlled import Controlled, controlled

READ = Request("GET", "https", "mail.example", 443, "/inbox")
WHO = Credentials("r1", "acme")


def failing(*_args: Any, **_more: Any) -> Any:
    raise RecursionError("injected")


async def states(running: Controlled) -> list[tuple[str, str]]:
    """How each call ended, once all that waits is written."""
    await running.service.decider.act(lambda store: None)
    reader = open_reader(running.data)
    try:
        return [(row["state"], row["reason"]) for row in queries.calls(reader)]
    finally:
        reader.close()


@pytest.mark.parametrize("step", ["reads_answer", "decided", "Live"])
async def test_a_call_that_cannot_be_begun_is_refused_and_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    home = {"reads_answer": costs, "decided": logs, "Live": gate_module}[step]
    async with controlled(tmp_path) as running:
        with monkeypatch.context() as patch:
            patch.setattr(home, step, failing)
            refused = await running.gate.ask(READ, WHO, running)
        assert isinstance(refused, Refusal)
        assert refused.status == 503
        assert not running.gate.live
        assert await states(running) == [("not_sent", "policy_failure")]


async def test_a_call_whose_verdict_comes_as_its_asker_leaves_is_settled_as_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver = Decider.deliver
    async with controlled(tmp_path) as running:
        asking = asyncio.ensure_future(running.gate.ask(READ, WHO, running))

        def delivering(self: Decider, told: Any, moved: bool) -> None:
            deliver(self, told, moved)
            asking.cancel()

        with monkeypatch.context() as patch:
            patch.setattr(Decider, "deliver", delivering)
            with pytest.raises(asyncio.CancelledError):
                await asking
        assert await states(running) == [("not_sent", "not_sent")]
