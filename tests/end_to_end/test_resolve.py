"""A write of unknown outcome through the real program, and the person who says how it ended; the
ledger copied, checked and exported beside it. About 60 seconds.
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end import origin
from tests.end_to_end.line import Told, asked
from tests.end_to_end.origin import Origin
from tests.end_to_end.running import Proxy

POLICY = """\
version: 1
tools:
  seen:
    match: {host: localhost, port: PORT, method: GET}
    effect: read
    allow_addresses: [127.0.0.0/8, "::1"]
  things:
    match: {host: api.origin.example}
    allow_addresses: [127.0.0.0/8]
    verify: {tool: seen, path: "/seen/{call}", query: {run: "{run}"}, auth: ops}
"""
PATH = "/dropped/charge"  # the upstream takes it and hangs up

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with origin.serving(tmp_path_factory.mktemp("origin")) as served:
        yield served


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def proxy(
    request: pytest.FixtureRequest, upstream: Origin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    policy = POLICY.replace("PORT", str(upstream.routes[f"{origin.HOST}:443"]))
    made = Proxy(folder, policy, upstream.ca, upstream.routes, workers=request.param)
    made.start()
    yield made
    if made.process is not None:
        made.end(signal.SIGKILL)


def resolve(proxy: Proxy, call: str, state: str) -> str:
    words = ("ledger", "resolve", call, "--as", state, "--reason", "it is on the invoice")
    return proxy.cli(*words)


def told(answer: Told) -> tuple[int, str | None]:
    return answer.status, answer.reason


def test_what_was_done_is_not_made_again_and_what_was_not_sent_is(
    proxy: Proxy, upstream: Origin
) -> None:
    run, start = proxy.mint(), len(upstream.arrived)

    def charge(body: str) -> tuple[int, str | None]:
        return told(asked(run, "POST", PATH, body, tls=True))

    assert charge("1") == charge("1") == charge("2") == (504, "outcome_unknown")
    assert len(upstream.paths(start)) == 2
    first, repeat, second = proxy.calls(run, at_least=3)
    states = [(row["state"], row["reason"]) for row in (first, repeat, second)]
    assert states == [
        ("unknown", "outcome_unknown"),
        ("refused", "outcome_unknown"),
        ("unknown", "outcome_unknown"),
    ]
    refused = ("ledger", "resolve", repeat["id"], "--as", "done", "--reason", "x")
    assert proxy.cli(*refused, code=2) == ""
    assert "resolved as done: it is on the invoice" in resolve(proxy, first["id"], "done")
    assert charge("1") == (409, "done_but_not_stored")
    proxy.stop()  # the word is in the ledger, whoever takes it
    assert "the same write may be made again" in resolve(proxy, second["id"], "not_sent")
    proxy.start()
    assert charge("1") == (409, "done_but_not_stored")
    assert charge("2") == (504, "outcome_unknown")
    assert len(upstream.paths(start)) == 3
    left = proxy.calls(run, "state:unknown")
    assert len(left) == 1
    assert proxy.broken() == []


def test_the_upstream_is_asked_before_a_person_says_how_it_ended(
    proxy: Proxy, upstream: Origin
) -> None:
    run = proxy.mint()
    asked(run, "POST", PATH, "3", tls=True)
    (row,) = proxy.calls(run, "state:unknown")
    look = ("ledger", "resolve", row["id"], "--verify")
    entries = proxy.folder / "data" / "credentials.yaml"
    told = proxy.cli(*look, code=3)
    assert "there is no /" in told
    assert "/data/credentials.yaml; write there" in told
    entries.write_text("ops: {hosts: [localhost], bearer: opaque-operators-key}\n")
    entries.chmod(0o644)
    proxy.cli(*look, code=2)
    entries.chmod(0o600)
    start = len(upstream.arrived)
    shown = proxy.cli(*look)
    (arrived,) = upstream.arrived[start:]
    assert arrived.path == f"/seen/{row['id']}?run={run.name}"
    assert arrived.headers["authorization"] == "Bearer opaque-operators-key"
    assert f'  |   "path": "/seen/{row["id"]}?run={run.name}"' in shown
    proxy.cli("halt", "run", run.name)  # what stands over the run does not stop who looks
    proxy.cli(*look)
    proxy.cli("halt", "global")
    assert "stops operators, too" in proxy.cli(*look, code=3)
    proxy.cli("resume", "global", "--reason", "looked")
    proxy.cli("resume", "run", run.name, "--reason", "looked")
    done = proxy.cli(*look, "--as", "done", "--reason", "it is there")
    assert "resolved as done: it is there" in done
    assert len(upstream.arrived) == start + 3
    told = json.loads(proxy.cli("ledger", "show", row["id"], "--json"))
    kinds = [event["type"] for event in told["events"]]
    assert kinds[-5:] == [*["call.verified"] * 4, "call.resolved"]
    kept = b"".join(path.read_bytes() for path in (proxy.folder / "data").glob("*.db*"))
    assert b"opaque-operators-key" not in kept
    assert "opaque-operators-key" not in proxy.log() + shown + done
    assert proxy.broken() == []


def test_the_ledger_is_copied_checked_and_exported_while_it_is_in_use(
    proxy: Proxy, upstream: Origin
) -> None:
    run = proxy.mint()
    for number in range(20):
        asked(run, "POST", f"/things/{number}", str(number), tls=True)
    asked(run, "POST", PATH, "1", tls=True)
    rows = proxy.calls(run, at_least=21)
    proxy.cli("ledger", "backup", "copy.db")
    assert "WRONG" not in proxy.cli("ledger", "check", "copy.db")
    assert "WRONG" not in proxy.cli("ledger", "check")
    archive = json.loads(proxy.cli("ledger", "export", "--format", "har", f"run:{run.name}"))
    ids = [entry["_pullcord"]["id"] for entry in archive["log"]["entries"]]
    assert ids == [row["id"] for row in rows]
    assert told(asked(run, "POST", PATH, "1", tls=True)) == (504, "outcome_unknown")
    went_back(proxy)
    assert told(asked(run, "POST", PATH, "1", tls=True)) == (504, "outcome_unknown")
    answer = asked(run, "POST", "/things/7", "7", tls=True)
    assert (told(answer), answer.headers["idempotent-replayed"]) == ((200, "replayed"), "true")


def went_back(proxy: Proxy) -> None:
    """To the copy, as README says: an empty directory, the file, the keys beside it."""
    proxy.stop()
    data = proxy.folder / "data"
    for path in [path for path in data.iterdir() if path.name.startswith("ledger.db")]:
        path.unlink()
    Path(proxy.folder / "copy.db").rename(data / "ledger.db")
    proxy.start()
