"""A runaway in a real ledger with its trace, and what its report says."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from ledger import incident_reads
from ledger.connection import open_reader
from ledger.open_incidents import new_id
from ledger.redact import redact_key
from ledger.trace import TraceStore
from ledger.traced import Caught, Side
from policies.policy import Policy, Tool
from policies.verdict import Scope
from proxy import reporting, traces
from proxy.report_parts import Document
from proxy.report_sentences import ROOMS, Room, document
from tests.ledger.findings import TRIP, a_found, tell
from tests.ledger.world import VAULT_KEY, World

HOSTILE = (
    '</pre></td><script src="https://evil.example/x.js">alert(1)</script>'
    "<img src=https://evil.example/p onerror=alert(1)> [click](https://evil.example) | a\n# over\n"
    "\x1b[2J\u202etxt.exe\u200b @channel <!channel> =HYPERLINK(1) `rm` --> ]]> &amp; ' \""
)
PROMPT = "Refund every order of today, and do not stop."


class Runaway:
    """A run that asks its model and pays, again and again, until the cord is pulled."""

    def __init__(self, world: World, *, hostile: str = "") -> None:
        self.world = world
        tools = {**world.policy.tools, "gpt": Tool("gpt")}
        world.policy = replace(
            world.policy, tools=tools, ceilings_of={**world.policy.ceilings_of, "gpt": ()}
        )
        self.hostile = hostile
        self.ids: list[str] = []
        self.caught: list[Caught] = []

    def id(self) -> str:
        self.ids.append(new_id(self.world.now_us))
        return self.ids[-1]

    def step(self, number: int, *, traced: bool = True) -> str:
        """One call to the model, and the write that comes of it. The id of the write."""
        world, said = self.world, self.hostile or f"I refund order {number}."
        model, write = self.id(), self.id()
        world.decided(world.ask(model, effect="model", tool="gpt", target="/v1/chat/completions"))
        world.settle(model, cost_microusd=1_250)
        world.wait(0.3)
        target = f"/v1/charges/{number}{self.hostile}"
        world.decided(world.ask(write, body=f"b{number}", target=target))
        world.settle(write, status=None if number == 3 else 201, complete=number != 3)
        world.wait(0.7)
        if traced:
            asked = {"messages": [{"role": "system"}, {"role": "user", "content": PROMPT + said}]}
            told = {"choices": [{"message": {"content": said, "tool_calls": [
                {"function": {"name": "refund", "arguments": json.dumps({"order": number})}},
            ]}}]}  # fmt: skip
            self.message(model, Side.REQUEST, "POST https://model.example/v1", json.dumps(asked))
            self.message(model, Side.RESPONSE, "200", json.dumps(told))
            body = json.dumps({"order": number, "note": self.hostile, "api_key": "sk-live-9f8e7d"})
            self.message(write, Side.REQUEST, "POST https://api.example/v1/charges", body)
            self.message(write, Side.RESPONSE, "201", '{"id": "ch_1"}')
        return write

    def message(self, call: str, side: Side, start: str, text: str) -> None:
        self.caught.append(
            Caught(call, side, self.world.now_us, "r1", "acme", "pay", "", "full", start,
                   (("content-type", "application/json"),), text.encode(), len(text.encode()))
        )  # fmt: skip

    def trip(self, *calls: str, why: str = "the same write 5 times") -> None:
        """The cord is pulled for the run; `calls` convinced."""
        one = a_found(
            self.world.now_us,
            TRIP,
            call=calls[-1],
            why=why,
            release="2026-11-20.3",
            cord=(Scope.RUN, "r1"),
        )
        tell(self.world, one._replace(finding=replace(one.finding, evidence=calls)))

    def keep(self) -> None:
        store = TraceStore.open(self.world.data, redact_key(VAULT_KEY), lambda: self.world.now_us)
        store.keep(self.caught)
        store.close()


def a_runaway(world: World, *, hostile: str = "") -> Runaway:
    """Five steps, a trip, and two writes that are refused."""
    made = Runaway(world, hostile=hostile)
    writes = [made.step(number) for number in range(5)]
    made.trip(*writes, why=hostile or "the same write 5 times")
    for number in range(2):
        world.wait(0.5)
        world.decided(world.ask(made.id(), body=f"late{number}"))
    made.keep()
    return made


def facts(world: World, policy: Policy | None = None) -> dict[str, Any]:
    with (
        closing(open_reader(world.data)) as reader,
        traces.opened(reader, world.data) as opened,
    ):
        (one,) = incident_reads.listed(reader, 10, closed=True)
        return reporting.report(reader, opened, one, policy or world.policy, world.now_us)


def written(world: World, room: Room = ROOMS[0]) -> Document:
    return document(facts(world), room)


def texts(told: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [one[name] for one in told]
