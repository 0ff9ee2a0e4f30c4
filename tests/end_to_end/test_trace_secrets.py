"""Fifty secrets of all kinds, in every place of a call, and none is left in the trace or anywhere.

A harmless word beside each is found, so that the trace is known to hold what was said.
"""

import json
import os
import signal
import ssl
from contextlib import closing
from urllib.parse import quote

import pytest
import requests
from websockets.sync.client import connect

from ledger.trace import messages, open_trace
from tests.end_to_end.line import opened
from tests.end_to_end.made_up_secrets import Secret, fifty
from tests.end_to_end.running import Proxy, Run, Upstreams
from tests.end_to_end.test_secrets import (
    form_body,
    headers,
    leaks,
    send_what_is_not_judged,
    target,
    token_of,
)  # fmt: skip
from tests.end_to_end.traced import Start, start, status, the_tracer, tracers, until, upstream

__all__ = ["start", "upstream"]

CALLS = 5  # of each secret, beside the WebSocket's


def json_body(secret: Secret, number: int) -> str:
    return json.dumps({"password": secret.text, "note": f"marker{number}json"})


def send(run: Run, secret: Secret, number: int) -> None:
    """In URL, headers, JSON, a form, and in a call that is refused."""
    with opened(run, tls=number % 2 == 0) as line:
        fields = headers(secret)
        where = target("passed", f"marker{number}url", secret)
        assert line.ask("POST", where, json_body(secret, number), **fields).status == 200
        form = f"{form_body(secret)}&marker=marker{number}form"
        fields["Idempotency_Key"] += "form"
        fields["Content-Type"] = "application/x-www-form-urlencoded"
        assert line.ask("PUT", target("form", "x", secret), form, **fields).status == 200
        refused = json.dumps({"token": secret.text, "note": f"marker{number}refused"})
        assert line.ask("POST", target("frozen", "x", secret), refused).status == 403


def stream(session: requests.Session, secret: Secret, number: int) -> None:
    """A model says it, a few letters at a time."""
    body = {
        "model": "gpt-5.1",
        "stream": True,
        "messages": [{"role": "user", "content": f"marker{number}prompt"}],
        "say": f"the password is: {secret.text} marker{number}output",
        "password": secret.text,
    }
    url = "https://api.openai.com/v1/chat/completions"
    answer = session.post(url, json=body, headers={"Authorization": f"Bearer {quote(secret.text)}"})
    assert "[DONE]" in answer.text


def talk(run: Run, secrets: list[Secret]) -> None:
    trusted = ssl.create_default_context(cafile=run.environment["SSL_CERT_FILE"])
    url = "wss://api.echo.example/socket/1"
    with connect(url, proxy=run.proxy_url, ssl=trusted) as socket:
        for number, secret in enumerate(secrets):
            socket.send(json.dumps({"password": secret.text, "note": f"marker{number}socket"}))
            assert secret.text[:4] in str(socket.recv())


PLACES = ("json", "url", "form", "refused", "prompt", "output", "socket")


@pytest.mark.slow
def test_of_fifty_secrets_none_is_left_anywhere(start: Start, upstreams: Upstreams) -> None:
    """Some 30 seconds; 250 calls."""
    proxy = start()
    run, secrets = proxy.mint(), fifty()
    with run.session() as session:
        for number, secret in enumerate(secrets):
            send(run, secret, number)
            send_what_is_not_judged(run, secret, number)
            stream(session, secret, number)
    talk(run, secrets)
    assert until(lambda: status(proxy)["trace"]["behind"] == 0)
    assert status(proxy)["trace"]["lost_per_hour"] == 0
    process, proxy.process = proxy.process, None
    assert process is not None
    tracer = the_tracer(proxy)
    os.kill(tracer, signal.SIGSTOP)  # so that it leaves its log behind
    for pid in (process.pid, tracer):
        os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=20)
    assert until(lambda: not tracers(proxy))
    assert (proxy.folder / "data" / "trace.db-wal").stat().st_size > 0, "it is searched, too"
    assert leaks(proxy, str(said), [*secrets, token_of(run)]) == []
    kept = text_of(proxy)
    missing = [
        f"marker{number}{place}"
        for number in range(len(secrets))
        for place in PLACES
        if f"marker{number}{place}" not in kept
    ]
    assert missing == []


def text_of(proxy: Proxy) -> str:
    """All that the trace tells."""
    trace = open_trace(proxy.folder / "data")
    assert trace is not None
    with closing(trace):
        calls = [row[0] for row in trace.execute("SELECT DISTINCT call_id FROM message")]
        return "\n".join(
            f"{one.start} {one.headers} {one.text}"
            for call in calls
            for one in messages(trace, call)
        )
