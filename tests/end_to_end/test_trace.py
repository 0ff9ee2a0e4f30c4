"""The trace by the real program: what agents said and were answered can be read afterwards.

By every way in and in every kind of call; a trace that cannot be kept is told, and stops nothing.
"""

import json
import random
import ssl
import time
from contextlib import closing
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import requests
from mitmproxy.io import FlowReader
from websockets.sync.client import connect

from tests.end_to_end.origin import HOST
from tests.end_to_end.running import Proxy, Upstreams
from tests.end_to_end.traced import (
    WAYS,
    Start,
    ask,
    called,
    shown,
    start,
    trace,
    until,
    upstream,
    whole,
)  # fmt: skip

__all__ = ["start", "upstream"]


@pytest.fixture(scope="module", params=[1, 2])
def proxy(request: pytest.FixtureRequest, start: Start) -> Proxy:
    return start(workers=request.param)


@pytest.fixture(scope="module")
def alone(start: Start) -> Proxy:
    return start()


def header(message: dict[str, Any], name: str) -> str | None:
    return next((value for key, value in message["headers"] if key.lower() == name), None)


# What is kept


@pytest.mark.parametrize("way", WAYS)
def test_a_call_can_be_read_afterwards(proxy: Proxy, way: str) -> None:
    run = proxy.mint()
    body = json.dumps({"customer": "nadia", "note": f"by {way}"})
    assert ask(way, run, "POST", f"/orders/7?way={way}", body).status == 200
    request, response = whole(proxy, called(proxy, run)["id"])
    scheme = "http" if way == "plain" else "https"
    assert request["start"] == f"POST {scheme}://{HOST}/orders/7?way={way}"
    assert json.loads(request["text"]) == {"customer": "nadia", "note": f"by {way}"}
    assert request["bytes"] == len(body)
    assert header(request, "host") == HOST or way == "http2"
    assert header(request, "proxy-authorization") is None
    assert response["start"] == "200"
    assert response["media_type"] == "application/json"
    assert json.loads(response["text"])["path"] == f"/orders/7?way={way}"
    assert not response["cut"]


@pytest.mark.parametrize("way", WAYS)
def test_calls_are_found_by_their_words(alone: Proxy, way: str) -> None:
    run = alone.mint()
    word = f"zebra{way}"
    ask(way, run, "POST", "/orders/1", json.dumps({"animal": word}))
    ask(way, run, "POST", "/orders/2", json.dumps({"animal": "horse"}))
    first, _ = alone.calls(run, at_least=2)
    whole(alone, first["id"])
    assert [row["id"] for row in alone.ledger(f"text:{word}")] == [first["id"]]
    assert [row["id"] for row in alone.ledger(f"run:{run.name}", f"-text:{word}")] != []
    assert alone.ledger(f"text:{word}", "tool:echo") == []
    lines = alone.cli("ledger", "export", "--format", "jsonl", f"text:{word}").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [first["id"]]


def test_a_models_stream_is_put_together(proxy: Proxy, upstreams: Upstreams) -> None:
    run = proxy.mint()
    upstreams.gate(run.name).touch()
    asked = {"model": "gpt-5.1", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with run.session() as session:
        url = "https://api.openai.com/v1/chat/completions"
        assert "[DONE]" in session.post(url, json=asked).text
    row = called(proxy, run)
    assert (row["input_tokens"], row["output_tokens"]) == (3, 2)
    request, response = whole(proxy, row["id"])
    assert json.loads(request["text"]) == asked, "what pullcord asked beside is not the agent's"
    assert "Hello" in response["text"]


def test_a_websocket_is_kept_message_by_message(proxy: Proxy) -> None:
    run = proxy.mint()
    trusted = ssl.create_default_context(cafile=run.environment["SSL_CERT_FILE"])
    url = "wss://api.echo.example/socket/1"
    with connect(url, proxy=run.proxy_url, ssl=trusted) as socket:
        for word in ("first", "second"):
            socket.send(word)
            assert socket.recv() == f"echo {word}"
    kept = trace(proxy, called(proxy, run)["id"], "request", "response", "message_down")
    told = [(message["side"], message["text"]) for message in kept if message["text"]]
    assert told == [
        ("message_up", "first"),
        ("message_down", "echo first"),
        ("message_up", "second"),
        ("message_down", "echo second"),
    ]
    assert [message["start"] for message in kept if message["side"] == "response"] == ["101"]


def test_what_came_zipped_can_be_read(alone: Proxy) -> None:
    run = alone.mint()
    with run.session() as session:
        session.post("https://api.echo.example/zipped/1", data="in plain words")
    request, response = whole(alone, called(alone, run)["id"])
    assert request["text"] == "in plain words"
    assert json.loads(response["text"])["body"] == "in plain words"


@pytest.mark.parametrize("way", ["plain", "tls"])
def test_of_an_upload_that_streams_the_beginning_is_kept(alone: Proxy, way: str) -> None:
    run = alone.mint()
    words = "words of a file " * 100_000
    assert ask(way, run, "PUT", "/upload/1", words).status == 200
    request, _ = whole(alone, called(alone, run)["id"])
    assert request["bytes"] == len(words)
    assert request["cut"]
    assert request["text"].startswith("words of a file words of a file ")
    assert len(request["text"]) > 900_000


def test_a_refused_call_is_kept_too(alone: Proxy) -> None:
    run = alone.mint()
    assert ask("tls", run, "POST", "/frozen/1", '{"refund": "all"}').status == 403
    (request,) = trace(alone, called(alone, run)["id"], "request")
    assert json.loads(request["text"]) == {"refund": "all"}


def test_a_replay_names_the_call_whose_answer_it_got(alone: Proxy) -> None:
    run = alone.mint()
    for _ in range(2):
        assert ask("tls", run, "POST", "/orders/3", '{"twice": 1}').status == 200
    first, second = alone.calls(run, at_least=2)
    whole(alone, first["id"])
    (request,) = trace(alone, second["id"], "request")
    assert json.loads(request["text"]) == {"twice": 1}
    told = alone.cli("ledger", "show", second["id"])
    assert f"pullcord ledger show {first['id']}" in told


def test_a_person_reads_it_on_a_terminal(alone: Proxy) -> None:
    run = alone.mint()
    ask("plain", run, "POST", "/orders/4", '{"note": "esc \\u001b[31m and \x1b[32m"}')
    row = called(alone, run)
    whole(alone, row["id"])
    told = alone.cli("ledger", "show", row["id"])
    assert f"> POST http://{HOST}/orders/4" in told
    assert "< 200" in told
    assert "\x1b" not in told


def test_nothing_of_a_stranger_is_kept(alone: Proxy) -> None:
    answer = requests.get(
        f"http://{HOST}/stranger",
        proxies={"http": f"http://nobody:wrong@127.0.0.1:{alone.port}"},
        timeout=10,
    )
    assert answer.status_code == 407
    (row,) = alone.ledger("reason:credentials_invalid")
    assert shown(alone, row["id"])["trace"] == []


# What is left out


@pytest.mark.parametrize("way", WAYS)
def test_the_policy_keeps_a_tool_out_of_the_trace(alone: Proxy, way: str) -> None:
    run = alone.mint()
    ask(way, run, "POST", f"/silent/{way}", '{"quiet": "please"}')
    ask(way, run, "POST", f"/digest/{way}", '{"quiet": "a little"}')
    silent, digest = alone.calls(run, at_least=2)
    for message in whole(alone, digest["id"]):
        assert message["text"] is None
        assert message["bytes"] > 0
        assert message["digest"]
        assert message["why"] == "digest"
    found = shown(alone, silent["id"])
    assert found["trace"] == []
    assert "trace: none" in found["trace_note"]
    trace_files = b"".join(path.read_bytes() for path in (alone.folder / "data").glob("trace.db*"))
    assert f"/silent/{way}".encode() not in trace_files


@pytest.mark.slow
def test_a_long_body_is_cut_in_every_way_in(start: Start) -> None:
    """Some 5 seconds."""
    proxy = start(trace_body_bytes_max=1024)
    for way in WAYS:
        run = proxy.mint()
        ask(way, run, "POST", f"/orders/{way}", json.dumps({"long": "abc " * 1000}))
        for message in whole(proxy, called(proxy, run)["id"]):
            assert message["cut"]
            assert message["bytes"] > 4000
            assert len(message["text"]) <= 1100


@pytest.mark.slow
def test_with_trace_none_there_is_no_trace_by_any_way_in(start: Start) -> None:
    """Some 5 seconds."""
    proxy = start(2, trace="none")
    for way in WAYS:
        run = proxy.mint()
        ask(way, run, "POST", f"/orders/{way}", "{}")
        assert shown(proxy, called(proxy, run)["id"])["trace"] == []
    assert not (proxy.folder / "data" / "trace.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kept", [{"trace_keep_days": 0.00001}, {"trace_keep_bytes": 1024**2}])
def test_what_is_too_old_or_too_much_is_given_up(start: Start, kept: dict[str, Any]) -> None:
    """Some 8 seconds each."""
    proxy = start(**kept)
    run = proxy.mint()
    for way in WAYS:
        ask(way, run, "POST", f"/orders/{way}", json.dumps({"word": way}))
    rows = proxy.calls(run, at_least=3)
    for row in rows:
        whole(proxy, row["id"])
    if "trace_keep_bytes" in kept:
        for number in range(3):  # of which no two are alike
            words = " ".join("".join(random.choices(ascii_lowercase, k=7)) for _ in range(100_000))
            assert ask("plain", run, "PUT", f"/orders/{number}", words).status == 200
            whole(proxy, proxy.calls(run, at_least=4 + number)[-1]["id"])
    proxy.stop()
    time.sleep(1.0)
    proxy.start()  # it is looked when a tracer starts, and each minute
    ask("tls", run, "GET", "/orders/again")

    def pruned() -> bool:
        return not shown(proxy, rows[0]["id"])["trace"]

    assert until(pruned), shown(proxy, rows[0]["id"])["trace"]
    assert "pruned" in proxy.cli("ledger", "show", rows[0]["id"])
    assert "ok       all of it" in proxy.cli("ledger", "verify")


# Other programs


def test_it_goes_into_har_and_flow_files(alone: Proxy, tmp_path: Path) -> None:
    run = alone.mint()
    body = json.dumps({"for": "export"})
    ask("tls", run, "POST", "/orders/9?a=1", body)
    row = called(alone, run)
    whole(alone, row["id"])
    har = json.loads(alone.cli("ledger", "export", "--format", "har", f"run:{run.name}"))
    (entry,) = har["log"]["entries"]
    assert entry["request"]["url"] == f"https://{HOST}/orders/9?a=1"
    assert entry["request"]["queryString"] == [{"name": "a", "value": "1"}]
    assert entry["request"]["postData"]["text"] == body
    assert json.loads(entry["response"]["content"]["text"])["was"] == body
    assert entry["response"]["content"]["mimeType"] == "application/json"
    path = tmp_path / "calls.flows"
    alone.cli("ledger", "export", "--format", "flows", "--output", str(path), f"run:{run.name}")
    with closing(path.open("rb")) as file:
        (flow,) = FlowReader(file).stream()
    assert flow.request.get_text() == body  # type: ignore[attr-defined]
    assert flow.response.json()["was"] == body  # type: ignore[attr-defined]
