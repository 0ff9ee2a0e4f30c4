"""localstripe: Stripe's API without its idempotency keys, so that it does every duplicate.

A charge can be held: it is written down, and answered when the file `gates/hold-charges` is gone.
"""

from typing import Any

from aiohttp import web
from localstripe import resources, server

from tests.end_to_end.upstreams.serving import hold

PAYMENT_METHOD = "pm_test"


@web.middleware
async def held(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.method == "POST" and request.path == "/v1/charges":
        await hold("hold-charges")
    return await handler(request)


def app() -> web.Application:
    # It writes everything it knows to a fixed file in /tmp after each change.
    type(resources.store).dump_to_disk = lambda self: None
    card = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2030, "cvc": "123"}
    method = resources.PaymentMethod(type="card", card=card)
    method.id = PAYMENT_METHOD
    resources.store[f"payment_method:{PAYMENT_METHOD}"] = method
    server.app.middlewares.insert(0, held)
    return server.app
