"""Calls in the formats of other programs: valid, harmless, and honest about what is not known."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader

from ledger.connection import open_reader
from ledger.paging import every_call
from ledger.queries import CALL_COLUMNS
from ledger.traced import Kept, Side
from proxy import exports
from proxy.engines.mitm_flows import flows
from proxy.traces import Shown
from tests.ledger.conftest import template, world
from tests.ledger.world import World, a_pull

__all__ = ["template", "world"]

WHEN = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
URL = re.compile(r"https://[^/\s]+/\S*")
PAIRS = [{"name": str, "value": str}]
# What HAR 1.2 requires (http://www.softwareishard.com/blog/har-12-spec/). Lists hold any number.
ENTRY = {
    "startedDateTime": WHEN,
    "time": float,
    "request": {
        "method": str,
        "url": URL,
        "httpVersion": str,
        "cookies": PAIRS,
        "headers": PAIRS,
        "queryString": PAIRS,
        "headersSize": int,
        "bodySize": int,
    },
    "response": {
        "status": int,
        "statusText": str,
        "httpVersion": str,
        "cookies": PAIRS,
        "headers": PAIRS,
        "content": {"size": int, "mimeType": str},
        "redirectURL": str,
        "headersSize": int,
        "bodySize": int,
    },
    "cache": {},
    "timings": {"send": float, "wait": float, "receive": float},
}
HAR = {"log": {"version": str, "creator": {"name": str, "version": str}, "entries": [ENTRY]}}


def check(value: Any, shape: Any, place: str = "") -> None:
    """Members beyond those of the shape may be there; numbers are not below nothing where they
    are times."""
    if isinstance(shape, dict):
        for name, inner in shape.items():
            assert name in value, f"{place} has no {name}"
            check(value[name], inner, f"{place}.{name}")
    elif isinstance(shape, list):
        for number, one in enumerate(value):
            check(one, shape[0], f"{place}[{number}]")
    elif isinstance(shape, re.Pattern):
        assert shape.fullmatch(value), f"{place} is {value!r}"
    elif shape is float:
        assert isinstance(value, int | float), place
        assert value >= 0, place
    else:
        assert isinstance(value, shape), place


def nothing(row: dict[str, Any]) -> Shown:
    """What a trace has that has nothing."""
    return Shown()


ODD_PATHS = ["/a b\x00\x1b[31m", "", "/caf\u00e9/\u202e", "/q?x=1#y", "//evil.example/%zz", "*"]
ODD_HOSTS = ["2001:db8::1", "[redacted:0a1b2c3d].example", "", "x/y", "caf\u00e9.example"]


def rows(world: World) -> list[dict[str, Any]]:
    reader = open_reader(world.data)
    try:
        return list(every_call(reader))
    finally:
        reader.close()


@pytest.fixture
def exported(world: World) -> list[dict[str, Any]]:
    """One call of each kind, and some with odd hosts and paths."""
    world.admit(world.ask("done"), world.read("read"), world.ask("lost", body="l"))
    world.settle("done", status=201)
    world.settle("lost", status=None, complete=False)
    world.decided(world.ask("replayed"))
    for number, target in enumerate(ODD_PATHS):
        world.decided(world.read(f"path{number}", target=target))
    for number, host in enumerate(ODD_HOSTS):
        world.decided(world.read(f"host{number}", host=host))
    world.store.pull(a_pull())
    world.decided(world.ask("refused", body="r"))
    return rows(world)


def test_a_line_of_json_is_a_row_of_the_query(exported: list[dict[str, Any]]) -> None:
    lines = list(exports.jsonl(exported))
    assert [json.loads(line) for line in lines] == exported
    assert all(line.count("\n") == 1 and line.endswith("}\n") for line in lines)


# CSV


def test_a_table_has_a_title_and_every_call(exported: list[dict[str, Any]]) -> None:
    text = "".join(exports.as_csv(exported))
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert tuple(read[0]) == CALL_COLUMNS
    assert len(read) == len(exported) + 1
    assert [cells[0] for cells in read[1:]] == [row["id"] for row in exported]
    assert {len(cells) for cells in read} == {len(CALL_COLUMNS)}
    assert text.isprintable() or set(text) - set(map(chr, range(32, 0x10000))) <= {"\r", "\n"}


@pytest.mark.parametrize(
    "said",
    ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\u00a0=1", "\uff1d1"],
)
def test_no_cell_is_a_formula(said: str) -> None:
    row: dict[str, Any] = dict.fromkeys(CALL_COLUMNS)
    _, line = exports.as_csv([{**row, "agent": said, "latency_ms": 1.5}])
    (cells,) = csv.reader([line])
    assert cells[CALL_COLUMNS.index("agent")].startswith("'")
    assert cells[CALL_COLUMNS.index("latency_ms")] == "1.5"
    assert "\t" not in line
    assert line.count("\r") == 1


def test_what_is_no_formula_stays_as_it_is() -> None:
    row: dict[str, Any] = dict.fromkeys(CALL_COLUMNS)
    _, line = exports.as_csv([{**row, "agent": 'a "b", c=d', "path": "/caf\u00e9"}])
    (cells,) = csv.reader([line])
    assert cells[CALL_COLUMNS.index("agent")] == 'a "b", c=d'
    assert cells[CALL_COLUMNS.index("path")] == "/caf\u00e9"


# HAR


def test_a_har_is_one(exported: list[dict[str, Any]]) -> None:
    made = json.loads("".join(exports.har(exported, nothing, "0.0")))
    check(made, HAR)
    log = made["log"]
    assert log["version"] == "1.2"
    assert "secrets are masked" in log["comment"]
    assert [entry["_pullcord"]["id"] for entry in log["entries"]] == [row["id"] for row in exported]
    by_id = {entry["_pullcord"]["id"]: entry for entry in log["entries"]}
    done = by_id["done"]
    assert (done["request"]["url"], done["response"]["status"], done["time"]) == (
        "https://api.example/v1/charges",
        201,
        1.5,
    )
    assert (done["response"]["statusText"], done["timings"]["wait"]) == ("Created", 1.5)
    assert by_id["lost"]["response"]["status"] == 0
    assert by_id["refused"]["comment"] == "refuse: halted; refused"
    assert "not in the trace" in done["response"]["content"]["comment"]


def test_an_odd_host_or_path_makes_no_other_url(exported: list[dict[str, Any]]) -> None:
    for row in exported:
        parts = urlsplit(exports.url(row))
        assert (parts.scheme, parts.port, parts.query, parts.fragment) == ("https", None, "", "")
        assert parts.netloc == exports.host(row)
        assert parts.path.isascii()
        assert parts.path.isprintable()


def test_a_har_of_nothing_is_one() -> None:
    check(json.loads("".join(exports.har([], nothing, "0.0"))), HAR)


def traced(row: dict[str, Any]) -> Shown:
    """A form, answered with JSON of which the beginning is kept, and two words on a WebSocket."""
    form, answer = "pin=[redacted:0a1b2c3d]&a=1", '{"made": "caf\u00e9'
    sides = [
        (Side.REQUEST, "POST http://api.example:8080/v1/charges?a=1&token=[redacted:0a1b2c3d]",
         "application/x-www-form-urlencoded", form, False),
        (Side.RESPONSE, "201", "application/json", answer, True),
        (Side.UP, "", "", "ping", False),
        (Side.DOWN, "", "", "pong", False),
    ]  # fmt: skip
    headers = (("content-encoding", "gzip"), ("x-caf\u00e9", "\u00e9"), ("location", "/v1/2"))
    kept = [
        Kept(
            *(number, row["id"], side, 1_000_000, start, headers, kind, 100, is_cut, "0a"),
            text=text,
        )
        for number, (side, start, kind, text, is_cut) in enumerate(sides)
    ]
    return Shown(tuple(kept), "beside")


def test_a_har_has_what_was_traced(exported: list[dict[str, Any]]) -> None:
    made = json.loads("".join(exports.har(exported[:1], traced, "0.0")))
    check({"log": {**made["log"], "entries": []}}, HAR)
    (entry,) = made["log"]["entries"]
    check(entry, {**ENTRY, "request": {**ENTRY["request"], "url": str}})  # type: ignore[dict-item]
    request, content = entry["request"], entry["response"]["content"]
    assert request["url"] == "http://api.example:8080/v1/charges?a=1&token=%5Bredacted:0a1b2c3d%5D"
    assert request["queryString"][1] == {"name": "token", "value": "[redacted:0a1b2c3d]"}
    check(request["postData"], {"mimeType": str, "params": PAIRS, "text": str})
    assert request["postData"]["text"] == "pin=[redacted:0a1b2c3d]&a=1"
    assert {"name": "location", "value": "/v1/2"} in entry["response"]["headers"]
    assert entry["response"]["redirectURL"] == "/v1/2"
    assert (content["text"], content["size"]) == ('{"made": "caf\u00e9', 15)
    assert content["comment"] == "only its beginning is kept"
    assert (request["bodySize"], entry["response"]["bodySize"]) == (100, 100)
    assert [one["data"] for one in entry["_webSocketMessages"]] == ["ping", "pong"]
    assert [one["type"] for one in entry["_webSocketMessages"]] == ["send", "receive"]
    assert entry["comment"].endswith("; beside")


def test_a_body_that_is_not_there_says_why(exported: list[dict[str, Any]]) -> None:
    def pruned(row: dict[str, Any]) -> Shown:
        shown = traced(row)
        return Shown(tuple(replace(one, text=None, why="pruned") for one in shown.messages))

    (entry,) = json.loads("".join(exports.har(exported[:1], pruned, "0.0")))["log"]["entries"]
    assert "pruned" in entry["request"]["postData"]["comment"]
    assert "pruned" in entry["response"]["content"]["comment"]
    assert "text" not in entry["response"]["content"]
    (flow,) = FlowReader(io.BytesIO(b"".join(flows(exported[:1], pruned)))).stream()
    assert isinstance(flow, http.HTTPFlow)
    assert flow.request.raw_content is None


def test_a_flow_has_what_was_traced(exported: list[dict[str, Any]]) -> None:
    (flow,) = FlowReader(io.BytesIO(b"".join(flows(exported[:1], traced)))).stream()
    assert isinstance(flow, http.HTTPFlow)
    assert flow.response is not None
    assert flow.websocket is not None
    assert flow.request.port == 8080
    assert flow.request.get_text() == "pin=[redacted:0a1b2c3d]&a=1"
    assert flow.response.get_content() == '{"made": "caf\u00e9'.encode()
    assert "content-encoding" not in flow.response.headers
    assert flow.response.headers["location"] == "/v1/2"
    assert [one.text for one in flow.websocket.messages] == ["ping", "pong"]


# mitmproxy


def mitmdump(path: Path) -> str:
    """What mitmproxy says of a file that it reads."""
    program = "from mitmproxy.tools.main import mitmdump; mitmdump()"
    words = ("-nr", str(path), "--set", "confdir=" + str(path.parent / "conf"))
    read = subprocess.run(
        [sys.executable, "-c", program, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert read.returncode == 0, read.stderr
    return read.stdout + read.stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", ["flows", "har"])
def test_mitmproxy_opens_it(exported: list[dict[str, Any]], tmp_path: Path, form: str) -> None:
    """About 2 seconds each."""
    path = tmp_path / f"calls.{form}"
    if form == "flows":
        path.write_bytes(b"".join(flows(exported, nothing)))
    else:
        path.write_text("".join(exports.har(exported, nothing, "0.0")))
    shown = mitmdump(path)
    assert "POST https://api.example/v1/charges" in shown
    assert "201" in shown
    assert shown.count("https://") == len(exported)
    assert "Error" not in shown.replace("HTTP/1.1", "")


def read_back(exported: list[dict[str, Any]]) -> list[http.HTTPFlow]:
    reader = FlowReader(io.BytesIO(b"".join(flows(exported, nothing))))
    found = list(reader.stream())
    assert all(isinstance(each, http.HTTPFlow) for each in found)
    return found  # type: ignore[return-value]


def test_a_flow_is_what_is_known_of_a_call(exported: list[dict[str, Any]]) -> None:
    found = {flow.id: flow for flow in read_back(exported)}
    assert list(found) == [row["id"] for row in exported]
    done, lost = found["done"], found["lost"]
    assert (done.request.method, done.request.pretty_url) == (
        "POST",
        "https://api.example/v1/charges",
    )
    assert done.response is not None
    assert done.response.status_code == 201
    assert (done.request.raw_content, done.response.raw_content) == (None, None)
    assert done.response.timestamp_end is not None
    assert round(done.response.timestamp_end - done.request.timestamp_start, 4) == 0.0015
    assert lost.response is None
    assert lost.error is not None
    assert lost.error.msg.startswith("unknown: ")
    assert "run r1" in done.comment
    assert done.metadata["tool"] == "pay"


# Streams


@pytest.mark.parametrize("form", ["jsonl", "csv", "har", "flows"])
def test_rows_go_through_one_at_a_time(exported: list[dict[str, Any]], form: str) -> None:
    """No row is asked for before what was made of those before it is taken."""
    asked: list[str] = []

    def rows() -> Iterator[dict[str, Any]]:
        for row in exported:
            asked.append(row["id"])
            yield row

    made: Iterator[Any] = {
        "jsonl": exports.jsonl,
        "csv": exports.as_csv,
        "har": lambda rows: exports.har(rows, nothing, "0.0"),
        "flows": lambda rows: flows(rows, nothing),
    }[form](rows())
    for taken, _ in enumerate(made, 1):
        assert len(asked) <= taken
    assert len(asked) == len(exported)
