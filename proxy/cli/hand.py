"""By which a recovery does its acts: the running proxy or, where none runs, its ledger."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.cli import acting
from proxy.cli.reading import reader
from proxy.control_client import PortUnreachable, Unreachable, ask

if TYPE_CHECKING:
    from ledger.sqlite import sqlite3
    from policies.policy import Policy
    from policies.verdict import Pull
    from proxy.clock import Clock
    from proxy.recovery import Directly

Told = dict[str, Any]


class Hand:
    """One data directory; `config` is where the policy is. As `proxy.recovery.Hand` has it."""

    def __init__(self, data: Path, config: str | None) -> None:
        self.data = data
        self.config = config

    def pull(self, body: Told, wanted: "Callable[[Clock, str], Pull]") -> Told:
        return acting.pull(self.data, body, wanted)

    def act(self, path: str, body: Told, directly: "Directly") -> Told:
        return acting.act(self.data, path, body, directly)

    def release(self, body: Told) -> Told:
        def alone(clock: "Clock", actor: str) -> Told:
            from policies.verdict import Level, Scope
            from proxy.pulling import release_on_store

            name = Level(body["level"]), Scope(body["scope"]), body["subject"]
            why = {name: body[name] for name in ("reason", "releases", "after_seq")}
            return release_on_store(self.data, name, self.policy(), clock, actor=actor, **why)

        return acting.act_alone(self.data, "/v1/release", body, alone)

    def through_proxy(self, path: str, body: Told) -> Told | None:
        try:
            answer: Told = ask(self.data, "POST", path, body)
        except (Unreachable, PortUnreachable):
            return None
        return answer

    def has_proxy(self) -> bool:
        try:
            ask(self.data, "GET", "/healthz", timeout_seconds=acting.PROBE_SECONDS)
        except (Unreachable, PortUnreachable):
            return False
        return True

    def policy(self) -> "Policy | None":
        return acting.policy_or_none(self.config)

    def reader(self) -> "AbstractContextManager[sqlite3.Connection]":
        return reader(self.data)
