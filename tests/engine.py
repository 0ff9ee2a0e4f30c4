"""Which engine the tests run over: the environment variable ENGINE; mitmproxy where it is not set.

What not every engine does is marked: `mitmproxy("why")` or `http1("why")`, which `auto` serves by,
too, or `http2("why")`; where it is not done it is skipped. Nothing else of a test may depend on the
engine, unless it asks for `ENGINE` by name.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

import pytest
import uvloop

Engine = Literal["mitmproxy", "http1", "auto"]

ENGINES: Final[tuple[Engine, ...]] = ("mitmproxy", "http1", "auto")
_ASKED = os.environ.get("ENGINE") or "mitmproxy"
_FOUND = [engine for engine in ENGINES if engine == _ASKED]
if not _FOUND:
    raise pytest.UsageError(f"ENGINE={_ASKED}: write one of {', '.join(ENGINES)}")

ENGINE: Final[Engine] = _FOUND[0]
ROOMS: Final = 2 if ENGINE == "auto" else 1
"""How many engines share the room for connections."""

HAS_HTTP2: Final = ENGINE != "http1"
HAS: Final = {
    "mitmproxy": ENGINE == "mitmproxy",
    "http1": ENGINE != "mitmproxy",
    "http2": HAS_HTTP2,
}
"""By marker, whether what it marks is there."""

SETTING: Final[dict[str, Engine]] = {} if ENGINE == "mitmproxy" else {"engine": ENGINE}
"""What is set of the engine; nothing where it is the one that nobody has to ask for."""

LOOPS: Final[dict[Engine, Callable[[], asyncio.AbstractEventLoop]]] = {
    "mitmproxy": asyncio.new_event_loop,
    "http1": uvloop.new_event_loop,
    "auto": uvloop.new_event_loop,
}
"""Which loop the program runs each engine on."""

HTTP2 = pytest.mark.http2("HTTP/2 and gRPC are not spoken by the http1 engine")


def each(ways: Iterable[Any]) -> list[Any]:
    """Parameters, of which those named after HTTP/2 are skipped where it is not spoken."""
    return [pytest.param(way, marks=HTTP2) if _is_http2(way) else pytest.param(way) for way in ways]


def spoken[Way](ways: Iterable[Way]) -> tuple[Way, ...]:
    """Those of the ways that this engine speaks, for tests that take all of them at once."""
    return tuple(way for way in ways if HAS_HTTP2 or not _is_http2(way))


def _is_http2(way: Any) -> bool:
    name = str(way).lower()
    return "http2" in name or "http/2" in name


def skip_of_another_engine(items: Iterable[pytest.Item]) -> None:
    """Marks what another engine alone does as skipped, before its fixtures are made."""
    for item in items:
        for name, is_had in HAS.items():
            mark = item.get_closest_marker(name)
            if mark is not None and not is_had:
                item.add_marker(pytest.mark.skip(reason=mark.args[0]))
