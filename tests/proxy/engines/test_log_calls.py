"""Which calls have lines in the log (setting `log_calls`)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.proxy.engines.conftest import Proxy

GET = b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n"


async def asked(proxy: Proxy, host: bytes) -> Sequence[Mapping[str, Any]]:
    """The lines of one call, once it has settled."""
    with capture_logs() as lines:
        await proxy.exchange(GET % (host, host) + proxy.credentials() + b"\r\n")
    return lines


def events(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    return [line["event"] for line in lines if line["event"].startswith("call.")]


@pytest.mark.parametrize(
    "setting, of_one_that_passes",
    [("refused", []), ("all", ["call.decided", "call.settled"])],
)
async def test_a_call_that_passes_has_lines_where_they_are_asked_for(
    upstream: Callable[..., Any],
    serving: Callable[..., Any],
    setting: str,
    of_one_that_passes: list[str],
) -> None:
    made = await upstream(answers)
    async with serving(made.port, log_calls=setting) as proxy:
        assert events(await asked(proxy, b"api.test")) == of_one_that_passes


@pytest.mark.parametrize("setting", ["refused", "all"])
async def test_a_call_that_is_refused_or_fails_has_lines_always(
    upstream: Callable[..., Any], serving: Callable[..., Any], setting: str
) -> None:
    made = await upstream(hangs_up)
    async with serving(made.port, log_calls=setting) as proxy:
        refused = await asked(proxy, b"elsewhere.invalid")
        assert (events(refused), refused[0]["decision"]) == (["call.decided"], "refuse")
        failed = await asked(proxy, b"api.test")
        assert events(failed)[-1] == "call.settled"


async def answers(reader: Any, writer: Any) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


async def hangs_up(reader: Any, writer: Any) -> None:
    await reader.readuntil(b"\r\n\r\n")
