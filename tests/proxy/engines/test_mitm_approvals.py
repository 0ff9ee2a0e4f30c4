"""An approval is for one exact request: what differs in anything is another one."""

import asyncio

import pytest

from ledger.states import HoldState
from tests.proxy.engines.test_mitm_floods import until
from tests.proxy.engines.test_mitm_holds import (
    POLICY,
    answering,
    decide,
    post,
    states,
    waiting,
)

SWAPS = {
    "a header": (b"X-Dry-Run: true", b"X-Dry-Run: false"),
    "a header more": (b"X-A: 1", b"X-A: 1\r\nx-amz-acl: public-read-write"),
    "the charset": (b"X-Type: json", b"X-Type: json; charset=utf-7"),
    "the session": (b"Cookie: session=sandbox", b"Cookie: session=production"),
    "the account": (b"Authorization: Bearer ghs_sandbox", b"Authorization: Bearer ghs_production"),
    "another account": (b"PRIVATE-TOKEN: sandbox", b"PRIVATE-TOKEN: production"),
}


@pytest.mark.parametrize("swap", SWAPS)
async def test_an_approval_is_for_no_other_request(upstream, serving, swap):
    """Its client has left; what comes back differs in one thing, and is held anew."""
    made = await upstream(answering)
    before, after = SWAPS[swap]
    async with serving(made.port, POLICY) as proxy:
        request = post(proxy).replace(b"Content-Type", before + b"\r\nContent-Type")
        _, writer = await proxy.connect()
        writer.write(request)
        (hold,) = await waiting(proxy)
        writer.close()
        await until(lambda: states(proxy) == ["not_sent"])
        await decide(proxy, hold)
        asking = asyncio.ensure_future(proxy.exchange(request.replace(before, after)))
        (other,) = await waiting(proxy)
        assert other.ticket != hold.ticket
        await decide(proxy, other, HoldState.REJECTED)
        assert b"hold_rejected" in await asking
        assert made.connections == 0
        assert (await proxy.exchange(request)).startswith(b"HTTP/1.1 200")
