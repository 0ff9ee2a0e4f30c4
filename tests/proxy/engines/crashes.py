"""What only a defect of an engine does: an exception that nobody answers for.

It hangs up on the client, which looks much like an answer that closes, so it is looked for apart.
"""

import logging
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import structlog

from proxy.engines.mitm_client import Handler

PROXY = str(Path(__file__).resolve().parents[3] / "proxy")

ANSWERED = ("engine.hook_failed", "engine.call_failed")
"""Steps that raised, and whose call was refused for it: tests do that on purpose."""


class _Heard(logging.Handler):
    """The loop tells here of callbacks and tasks whose exception nobody took."""

    def __init__(self, crashes: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.crashes = crashes

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and _is_ours(error):
            self.crashes.append("".join(traceback.format_exception(error)))


def _is_ours(error: BaseException) -> bool:
    """Not mitmproxy's, which ends a client by what its task raises."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    mitmproxys = any(file.name.startswith("mitm") for file in files)
    return not mitmproxys and any(str(file).startswith(PROXY) for file in files)


@contextmanager
def watched() -> Iterator[list[str]]:
    """While this lasts each crash of an engine in this process is added to the list."""
    crashes: list[str] = []
    told = Handler.log

    def of_mitmproxy(handler: Handler, message: str, level: int = 20, exc_info: Any = None) -> None:
        if exc_info:
            crashes.append(message)
        told(handler, message, level, exc_info)

    def of_ours(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        name = str(event.get("event"))
        raised = bool(event.get("exc_info")) and name not in ANSWERED
        if name == "engine.crashed" or (name.startswith("engine.") and raised):
            crashes.append(str(event))
        return event

    heard = _Heard(crashes)
    loops = logging.getLogger("asyncio")
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[of_ours, *before])
    loops.addHandler(heard)
    try:
        with patch.object(Handler, "log", of_mitmproxy):
            yield crashes
    finally:
        loops.removeHandler(heard)
        structlog.configure(processors=before)
