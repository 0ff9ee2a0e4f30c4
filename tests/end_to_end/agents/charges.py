"""An agent that charges again and again: `python charges.py CALLS PARALLEL RETRIES [KEY]`.

With KEY every call carries that idempotency key; without it the SDK makes a fresh one for each.
One line of JSON for each call that ended: the charge's id, or the error in the SDK's words.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import stripe

stripe.api_key = "sk_test_1234567890"
stripe.ca_bundle_path = os.environ["REQUESTS_CA_BUNDLE"]


def charge(key: str | None) -> dict[str, Any]:
    order: Any = {"amount": 500, "currency": "usd", "source": "pm_test"}
    if key is not None:
        order["idempotency_key"] = key
    try:
        made = stripe.Charge.create(**order)
    except stripe.StripeError as error:
        return {"error": str(error), "status": error.http_status}
    replayed = made.last_response.headers.get("idempotent-replayed") if made.last_response else None
    return {"id": made.id, "replayed": replayed == "true"}


if __name__ == "__main__":
    calls, parallel, retries, *keys = sys.argv[1:]
    stripe.max_network_retries = int(retries)
    with ThreadPoolExecutor(int(parallel)) as threads:
        made = [threads.submit(charge, keys[0] if keys else None) for _ in range(int(calls))]
        for done in as_completed(made):
            print(json.dumps(done.result()), flush=True)
