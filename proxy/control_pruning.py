"""The route of the control API by which old rows are taken out of the record."""

import structlog
from aiohttp import web

from proxy import pruning
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, Body, read

log = structlog.get_logger()


class PruneBody(Body):
    """Times as the command takes them: `90d`, or a moment; a size as `2GB`."""

    older_than: str
    trace_older_than: str | None = None
    trace_max: str | None = None
    dry_run: bool = False


async def _prune(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, PruneBody)
    wanted = pruning.wanted(
        body.older_than,
        body.trace_older_than,
        body.trace_max,
        body.dry_run,
        service.clock.now_us(),
    )
    who = actor(request)
    answer = await pruning.pruned(service, wanted, who)
    if not body.dry_run:
        rows, calls = answer["rows"], answer["calls"]
        log.info("ledger.pruned", rows=rows, calls=calls, before=answer["before"], actor=who)
    return web.json_response(answer)


ROUTES = (Route("POST", "/v1/prune", _prune, Role.ADMIN),)
