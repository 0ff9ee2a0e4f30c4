"""The notifying of a running proxy, moved by hand, and channels to a local receiver."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from ledger import deliveries
from ledger.connection import open_reader
from ledger.store import Store
from proxy.channels import AnyChannel, Webhook
from proxy.notifying import Notifying
from tests.proxy.controlled import Controlled
from tests.proxy.receiver import Receiver

SECRET = "whsec-of-the-test-0123456789"
KEY = "0123456789abcdef0123456789abcdef"


class Alerts:
    """The notifying of a running proxy, moved by hand."""

    def __init__(self, running: Controlled, *channels: AnyChannel) -> None:
        self.running = running
        self.act = running.service.decider.act
        self.notifying = Notifying(channels, running.data, None, running.clock, lambda: 1.0)

    async def made(self, make: Callable[..., Any], *given: Any, **changes: Any) -> None:
        def acted(store: Store) -> None:
            make(store._conn, *given, **changes)

        await self.act(acted)

    async def look(self, seconds: float = 0.0) -> None:
        """One look after some time, and all that is sent because of it."""
        self.running.clock.us += round(seconds * 1e6)
        await self.notifying.look(self.act)
        await self.idle()

    async def idle(self) -> None:
        while tasks := [task for each in self.notifying._states for task in each.going.values()]:
            await asyncio.wait(tasks)

    @property
    def failing(self) -> dict[str, str]:
        told = self.notifying.as_json()
        return {each["channel"]: each["error"] for each in told if each["error"]}

    def rows(self, incident: str = "i1") -> list[tuple[str, str, bool, int]]:
        with closing(open_reader(self.running.data)) as reader:
            return [
                (each.channel, each.event, each.sent, each.tries)
                for each in deliveries.told(reader, incident)
            ]


def keep_secrets(data: Path, **urls: str) -> None:
    path = data / "credentials.yaml"
    text = f"hook: {{secret: {SECRET}}}\npager: {{secret: {KEY}}}\n"
    text += "".join(f'{name}: {{url: "{url}"}}\n' for name, url in urls.items())
    path.write_text(text)
    path.chmod(0o600)


@asynccontextmanager
async def alerts(running: Controlled, *channels: AnyChannel) -> AsyncIterator[Alerts]:
    made = Alerts(running, *channels)
    try:
        yield made
    finally:
        await made.notifying.close()


def a_webhook(receiver: Receiver) -> Webhook:
    return Webhook(kind="webhook", url=f"{receiver.url}/hook", secret="hook")
