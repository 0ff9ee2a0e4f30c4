"""A real browser without a window, told what to do by the DevTools protocol (version 1.3).

It has no name server and a proxy that nobody serves; what it asks for all the same is counted.
"""

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

STARTED_SECONDS = 60.0
ANSWERED_SECONDS = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--mute-audio"),
    *("--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--disable-domain-reliability", "--metrics-recording-only", "--no-pings"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"),
    *("--remote-debugging-port=0", "--window-size=1200,1000"),
)


def installed() -> str | None:
    """Its path, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Tab:
    """One page. `asked` are the addresses that it has asked for, `said` what it complained of."""

    socket: aiohttp.ClientWebSocketResponse
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    loaded: asyncio.Event = field(default_factory=asyncio.Event)
    _answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _last: int = 0

    async def listen(self) -> None:
        async for message in self.socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            elif told["method"] == "Log.entryAdded":
                self.said.append(told["params"]["entry"]["text"])
            elif told["method"] == "Page.loadEventFired":
                self.loaded.set()

    async def tell(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        future = asyncio.get_running_loop().create_future()
        self._answers[self._last] = future
        await self.socket.send_json({"id": self._last, "method": method, "params": params})
        answer = await asyncio.wait_for(future, ANSWERED_SECONDS)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    async def open(self, page: Path, *, scripts: bool = True) -> None:
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.tell(f"{domain}.enable")
        await self.tell("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.loaded.clear()
        await self.tell("Page.navigate", url=page.as_uri())
        await asyncio.wait_for(self.loaded.wait(), ANSWERED_SECONDS)

    async def value(self, expression: str, *, promised: bool = False) -> Any:
        """Of an expression of ours; it is not the page's, whose policy allows no script. With
        `promised` what its promise came to."""
        told = await self.tell(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=promised
        )
        if "exceptionDetails" in told:
            raise AssertionError(told["exceptionDetails"])
        return told["result"].get("value")

    async def look(self, media: str = "", scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.tell("Emulation.setEmulatedMedia", media=media, features=features)

    async def picture(self, file: Path, *, whole: bool = False) -> bytes:
        told = await self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(told["data"]))
        return file.read_bytes()

    async def print(self) -> bytes:
        told = await self.tell("Page.printToPDF", printBackground=True)
        return base64.b64decode(told["data"])


@asynccontextmanager
async def browsing(program: str, home: Path) -> AsyncIterator[Tab]:
    """A tab of a browser of its own, which ends with the block."""
    process = await asyncio.create_subprocess_exec(
        program, *_OPTIONS, f"--user-data-dir={home}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = await asyncio.wait_for(_port(home / "DevToolsActivePort"), STARTED_SECONDS)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [one for one in await answer.json() if one["type"] == "page"]
            async with session.ws_connect(
                pages[0]["webSocketDebuggerUrl"], max_msg_size=0
            ) as socket:
                tab = Tab(socket)
                listening = asyncio.create_task(tab.listen())
                try:
                    yield tab
                finally:
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
    finally:
        process.kill()
        await process.wait()


async def _port(file: Path) -> int:
    while True:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.05)
