"""What every handler of the control API works with: the service behind it, the body.

Who may ask for what is decided in control_access.py.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from policies.prices import Prices
from policies.verdict import Pull
from proxy import pulling
from proxy.drilling import Drilling
from proxy.metrics import Metrics
from proxy.notifying import Notifying
from proxy.sealing import Sealing
from proxy.tracing import Tracing

BODY_BYTES_MAX = 64 * 1024  # the longest request is a reason and a list of tools
BODY_SECONDS = 5.0  # a body comes at once from this machine


class Service(pulling.Service, Protocol):
    """The running proxy as this API needs it."""

    @property
    def drill(self) -> Drilling: ...
    @property
    def sealing(self) -> Sealing: ...
    @property
    def notifying(self) -> Notifying: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def tracing(self) -> Tracing | None: ...

    def standing(self, cord: Pull) -> AbstractAsyncContextManager[None]:
        """A cord that stands while it is being stored, and on when that fails."""

    @property
    def proxy_pid(self) -> int:
        """The process by which all of the proxy is ended and signalled."""

    @property
    def started_us(self) -> int:
        """When it was started, UTC microseconds."""

    @property
    def listening(self) -> str | None:
        """HOST:PORT at which agents reach it; None until the engine listens."""

    @property
    def policy_error(self) -> str | None:
        """Why the policy file as it is now does not load; None while it does."""

    @property
    def prices(self) -> Prices:
        """What model calls are priced by."""


SERVICE: web.AppKey[Service] = web.AppKey("service")

act = pulling.acted


class Body(BaseModel):
    """A body of ours: what it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid")


async def read[Model: BaseModel](
    request: web.Request, model: type[Model], bytes_max: int = BODY_BYTES_MAX
) -> Model:
    """The body as this model. Raises pydantic's ValidationError, and aiohttp's 408 and 413."""
    size_bytes = request.content_length or 0
    try:
        if size_bytes <= bytes_max:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
            size_bytes = len(body)
            if size_bytes <= bytes_max:
                return model.model_validate_json(body)
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    raise web.HTTPRequestEntityTooLarge(max_size=bytes_max, actual_size=size_bytes)
