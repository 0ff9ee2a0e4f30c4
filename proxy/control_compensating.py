"""The route of the control API by which the write of an incident is undone."""

from aiohttp import web
from pydantic import Field

from proxy import compensating
from proxy.compensating import Wish
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, Body, read


class CompensateBody(Body):
    """`incident` is an id or the start of one, `call` an id. `given` are values of places that the
    person knows, such as `response.id`."""

    incident: str
    call: str
    reason: str = ""
    given: dict[str, str] = Field(default_factory=dict)


async def _compensate(request: web.Request) -> web.Response:
    body = await read(request, CompensateBody)
    wish = Wish(body.incident, body.call, actor(request), body.reason, body.given)
    return web.json_response(await compensating.compensated(request.app[SERVICE], wish))


ROUTES = (Route("POST", "/v1/incidents/compensate", _compensate, Role.RELEASE),)
"""Each undoes one write: so that whoever asks for many may stop between two."""
