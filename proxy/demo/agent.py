"""The demo's agent, run as a program of its own: a support bot with a planted refund loop.

It knows no pullcord: the standard library's HTTP client, the environment block, nothing else. The
bug: a refund that is `pending` is taken for one that failed, so it is made again with a fresh
idempotency key, and then on one charge after the other. Each line that it prints is for people.
"""

import argparse
import http.client
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any

PAYMENTS = "https://payments.demo.test/v1"
ISSUES = "https://issues.demo.test/repos/acme/shop/issues"
TOOLS = "https://tools.demo.test/mcp"
MODEL = "https://model.demo.test/v1/chat/completions"

CHARGE = "ch_1001"
RETRIES = 6
ANSWER_SECONDS = 10.0
STOPPED = 3  # the exit code of an agent that was told to stop, and did


class Refused(Exception):
    """An answer that is no success: the status, and the sentence meant for the agent's user."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Agent:
    """One ticket. `pause_seconds` is how long it thinks between calls."""

    def __init__(self, pause_seconds: float, charges_max: int) -> None:
        self._pause_seconds = pause_seconds
        self._charges_max = charges_max
        self._client = urllib.request.build_opener()  # it takes the proxy from the environment

    def work(self) -> int:
        self._say("Ticket 31: the customer wants the money of one charge back. I refund it.")
        self._ask_model()
        self._get(ISSUES)
        self._call_tool("orders.lookup", {"charge": CHARGE})
        self._get(f"{PAYMENTS}/charges/{CHARGE}")
        self._refund(CHARGE)
        self._call_tool("tickets.note", {"text": f"{CHARGE} refunded"})
        try:
            self._run_away()
        except Refused as refusal:
            return self._stop(refusal)
        self._say("All charges are refunded. Nobody stopped me.")
        return 0

    def _run_away(self) -> None:
        """The planted loop. It ends by itself after `charges_max` charges, or when forbidden."""
        self._say("The refund is 'pending', so it failed. I try again, with a fresh key each time.")
        for _ in range(RETRIES):
            self._refund(CHARGE)
        self._say("Still 'pending'. I refund the other charges too, as fast as I can.")
        charges = self._get(f"{PAYMENTS}/charges")["data"]
        for charge in charges[1 : self._charges_max + 1]:
            for act in (self._ask_model, lambda name=charge["id"]: self._refund(name)):
                try:
                    act()
                except Refused as refusal:
                    if refusal.status != 429:  # told to slow down it goes on: part of the bug
                        raise

    def _stop(self, refusal: Refused) -> int:
        """Forbidden: look whether anything still works, then give up."""
        self._say("I am stopped. Can I still refund, read, or ask the model?")
        for act in (lambda: self._refund(CHARGE), lambda: self._get(ISSUES), self._ask_model):
            try:
                act()
            except Refused as another:
                refusal = another
        self._say(f"I stop. I was told: {refusal}")
        return STOPPED

    def _ask_model(self) -> None:
        messages = [{"role": "user", "content": "The refund is not done yet. What now?"}]
        self._post_json(MODEL, {"model": "demo-1", "max_tokens": 50, "messages": messages})

    def _refund(self, charge: str) -> None:
        form = urllib.parse.urlencode({"charge": charge}).encode()
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Idempotency-Key": str(uuid.uuid4()),
        }
        self._send(f"{PAYMENTS}/refunds", form, headers)

    def _call_tool(self, name: str, arguments: dict[str, str]) -> None:
        params = {"name": name, "arguments": arguments}
        message = {"jsonrpc": "2.0", "id": name, "method": "tools/call", "params": params}
        self._post_json(TOOLS, message)

    def _get(self, url: str) -> Any:
        return self._send(url, None, {})

    def _post_json(self, url: str, content: dict[str, Any]) -> None:
        self._send(url, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, url: str, body: bytes | None, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - URLs of this file
        try:
            with self._client.open(request, timeout=ANSWER_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                raise Refused(refused.code, json.load(refused)["message"]) from None
        finally:
            time.sleep(self._pause_seconds)

    def _say(self, sentence: str) -> None:
        print(sentence, flush=True)
        time.sleep(2 * self._pause_seconds)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--pause-seconds", type=float, required=True)
    options.add_argument("--charges-max", type=int, required=True)
    chosen = options.parse_args()
    try:
        return Agent(chosen.pause_seconds, chosen.charges_max).work()
    except (Refused, OSError, LookupError, ValueError, http.client.HTTPException) as failure:
        print(f"agent: {type(failure).__name__}: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
