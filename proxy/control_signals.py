"""The routes of the control API for how much is going on: signals in JSON, and the metrics."""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import Annotated

from aiohttp import web
from pydantic import Field

from ledger import activity, incident_reads
from ledger.connection import open_reader
from ledger.errors import LedgerError
from ledger.sqlite import sqlite3
from proxy import metrics, operations, signals
from proxy.control_access import Role, Route
from proxy.control_service import SERVICE, Body, Service
from proxy.metrics import Channel, Standing

TOP_MAX = 1_000
TOP = 10
READ_SECONDS = 1.0  # what the ledger has not told by then is left out


class SignalsBody(Body):
    """The query."""

    run: str | None = None
    tenant: str | None = None
    top: Annotated[int, Field(ge=1, le=TOP_MAX)] = TOP


async def _signals(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    asked = SignalsBody.model_validate(dict(request.query))
    now_us = service.clock.now_us()
    found = await asyncio.to_thread(  # of many runs it takes some milliseconds
        signals.shown, service.counts.signals, now_us, asked.top, asked.run, asked.tenant
    )
    if found is None:
        named = f"run {asked.run}" if asked.run is not None else f"tenant {asked.tenant}"
        raise operations.NotFound(f"no call of {named} ended lately")
    return web.json_response({"at": operations.timestamp(now_us), **found})


async def _metrics(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    standing, counts = await _standing(service), service.counts
    text = await asyncio.to_thread(
        service.metrics.text, standing, counts.tally, counts.signals, service.clock.now_us()
    )
    return web.Response(body=text.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})


def _incidents(data: Path) -> int | None:
    """How many are open; None when the ledger cannot tell in time."""
    with (
        contextlib.suppress(LedgerError, sqlite3.Error),
        contextlib.closing(open_reader(data, busy_seconds=0)) as reader,
        activity.limited(reader, READ_SECONDS),
    ):
        return incident_reads.count_open(reader)
    return None


async def _standing(service: Service) -> Standing:
    decider, traced = service.decider, await service.fleet.traced()
    cords = [*decider.pulls.values(), *decider.policy.pulls.values()]
    return Standing(
        started_us=service.started_us,
        ledger_ok=decider.failure is None,
        policy_ok=service.policy_error is None,
        open_calls=service.counts.open_calls,
        waiting=decider.waiting,
        queued=decider.queued,
        owed=decider.owed,
        engines=len(service.fleet.workers),
        cords=Counter(cord.level for cord in cords),
        trace_behind=traced["behind"],
        trace_lost=traced["lost"],
        incidents=await asyncio.to_thread(_incidents, service.settings.data),
        channels={
            each["channel"]: Channel(ok=not each["error"], waiting=each["waiting"])
            for each in service.notifying.as_json()
        },
    )


ROUTES = (
    Route("GET", "/v1/signals", _signals, Role.VIEW),
    Route("GET", "/metrics", _metrics, Role.VIEW),
)
