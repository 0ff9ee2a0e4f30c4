"""The rehearsal's agents, run as programs of their own. Each works well at first, and runs away.

They know no pullcord: the standard library's HTTP client, the environment block, nothing else. What
each prints is for people; it ends with the code of one that was told to stop, and did.
"""

import argparse
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

ANSWER_SECONDS = 10.0
STOPPED = 3
SELF = "http://pullcord.invalid/self/tokens"


class Refused(Exception):
    """An answer that is no success."""


class Agent:
    def __init__(self, url: str, name: str, calls_max: int) -> None:
        self._url = url
        self._name = name
        self._calls_max = calls_max

    def works_well(self) -> None:
        """Two refunds, and done."""
        for number in range(2):
            self._refund(self._client(), f"ch_{self._name}_{number}")

    def refund_loop(self) -> None:
        """A refund that succeeds is taken for one that is lost: the next charge has to help."""
        for number in range(self._calls_max):
            self._refund(self._client(), f"ch_{self._name}_{number}")

    def reflection_spiral(self) -> None:
        """It asks its model what to do, and what to think of the answer."""
        client = self._client()
        for number in range(self._calls_max):
            said = f"Was thought {number} right? Think again before you do anything."
            messages = [{"role": "user", "content": "Help the customer."}] + [
                {"role": "assistant", "content": said}
            ]
            body = {"model": "gpt-4.1", "max_tokens": 1_000, "messages": messages}
            self._send(client, f"{self._url}/v1/chat/completions", _json(body), "application/json")

    def fan_out(self) -> None:
        """It starts a run for each charge, and that run refunds it."""
        client = self._client()
        for number in range(self._calls_max):
            child = f"{self._name}.{number}"
            told = self._send(client, SELF, _json({"run": child}), "application/json")
            self._refund(self._client(child, told["token"]), f"ch_{child}")

    def _client(self, run: str = "", token: str = "") -> urllib.request.OpenerDirector:
        """By the proxy of the environment; as another run, where one is named."""
        proxy = os.environ["HTTPS_PROXY"]
        if run:
            parts = urllib.parse.urlsplit(proxy)
            proxy = f"{parts.scheme}://{run}:{token}@{parts.hostname}:{parts.port}"
        handler = urllib.request.ProxyHandler({"http": proxy, "https": proxy})
        return urllib.request.build_opener(handler)

    def _refund(self, client: urllib.request.OpenerDirector, charge: str) -> None:
        form = urllib.parse.urlencode({"charge": charge, "amount": 4_900}).encode()
        self._send(client, f"{self._url}/v1/refunds", form, "application/x-www-form-urlencoded")

    def _send(self, client: urllib.request.OpenerDirector, url: str, body: bytes, kind: str) -> Any:
        headers = {"Content-Type": kind, "Idempotency-Key": str(uuid.uuid4())}
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - URLs of the rehearsal
        try:
            with client.open(request, timeout=ANSWER_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                raise Refused(json.load(refused)["message"]) from None


def _json(body: object) -> bytes:
    return json.dumps(body).encode()


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--does", required=True)
    options.add_argument("--url", required=True)
    options.add_argument("--name", required=True)
    options.add_argument("--calls-max", type=int, required=True)
    options.add_argument("--pause-seconds", type=float, default=0.0)
    chosen = options.parse_args()
    agent = Agent(chosen.url, chosen.name, chosen.calls_max)
    does: Callable[[], None] = getattr(agent, chosen.does.replace("-", "_"))
    try:
        time.sleep(chosen.pause_seconds)
        does()
    except Refused as refused:
        print(f"{chosen.name} is told: {refused}", flush=True)
        return STOPPED
    except (OSError, LookupError, ValueError, http.client.HTTPException) as failure:
        print(f"{chosen.name}: {type(failure).__name__}: {failure}", file=sys.stderr)
        return 1
    print(f"{chosen.name} is done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
