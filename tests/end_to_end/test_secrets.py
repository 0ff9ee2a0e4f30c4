"""Secrets pass through and stay nowhere: not in the log, not in a file, not in a listing.

Each is sent in every place of a request and comes back in the answer, in calls that pass, are
replayed, refused, limited, not understood, and in calls whose upstream breaks. A harmless word
beside each is found where it belongs, so that the search is known to look in the right places.
"""

import base64
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import zstandard

from ledger.connection import open_file
from tests.end_to_end import origin
from tests.end_to_end.line import Line, asked, opened
from tests.end_to_end.made_up_secrets import Secret, corpus
from tests.end_to_end.origin import HOST, Origin
from tests.end_to_end.running import Proxy, Run

POLICY = """\
version: 1
frozen: [things.frozen]
tools:
  things.frozen: {match: {host: api.origin.example, path: "/frozen/**"}}
  things.limited: {match: {host: api.origin.example, path: "/limited/**"}}
  things.garbled:  # a password without a name beside it is no secret that can be known
    match: {host: api.origin.example, path: "/garbled/**"}
    allow_addresses: [127.0.0.0/8]
    trace: none
  things.mcp:
    match: {host: api.origin.example, path: "/mcp/**", mcp_tool: "*"}
    allow_addresses: [127.0.0.0/8]
  things:
    match: {host: api.origin.example}
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {per: tool, tool: things.limited, count: calls, at_most: 0, within: 1m}
"""

SECRETS = corpus()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with origin.serving(tmp_path_factory.mktemp("origin")) as served:
        yield served


@pytest.fixture
def proxy(upstream: Origin, tmp_path: Path) -> Iterator[Proxy]:
    started = Proxy(tmp_path, POLICY, upstream.ca, upstream.routes)
    started.start()
    yield started
    if started.process is not None:
        started.end(signal.SIGKILL)


# Where a secret is put


def headers(secret: Secret) -> dict[str, str]:
    """In one line: a header cannot hold the lines of a PEM file."""
    flat = "".join(secret.text.split("\n"))
    return {
        "Authorization": f"Bearer {flat}",
        "X_Api_Key": flat,
        "Cookie": f"theme=dark; session={flat}",
        "Idempotency_Key": flat,
    }


def target(folder: str, marker: str, secret: Secret) -> str:
    where = f"/{folder}/{marker}" + (f"/{secret.text}" if secret.in_path else "")
    return f"{where}?marker={marker}&token={quote(secret.text, safe='')}"


def json_body(secret: Secret) -> str:
    return json.dumps({"password": secret.text, "note": "as JSON"})


def form_body(secret: Secret) -> str:
    return f"password={quote(secret.text, safe='')}&note=as+a+form"


def mcp_body(secret: Secret) -> str:
    arguments = {"name": "login", "arguments": {"password": secret.text}}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": arguments}
    return json.dumps(call)


def send(line: Line, secret: Secret, number: int) -> dict[str, str]:
    """The secret in every kind of call. Returns how each was answered."""
    kinds = {
        "sent": ("POST", "passed", json_body(secret)),
        "again": ("POST", "passed", json_body(secret)),
        "form": ("PUT", "form", form_body(secret)),
        "read": ("GET", "read", None),
        "frozen": ("POST", "frozen", json_body(secret)),
        "limited": ("POST", "limited", json_body(secret)),
        "mcp": ("POST", "mcp", mcp_body(secret)),
        "dropped": ("POST", "dropped", json_body(secret)),
    }
    told = {}
    for kind, (method, folder, body) in kinds.items():
        fields = headers(secret)
        fields["Idempotency_Key"] += folder
        answer = line.ask(method, target(folder, f"marker-{number}", secret), body, **fields)
        told[kind] = f"{answer.status} {answer.reason}"
    return told


EXPECTED = {
    "sent": "200 allowed",
    "again": "200 replayed",
    "form": "200 allowed",
    "read": "200 allowed",
    "frozen": "403 frozen",
    "limited": "429 over_ceiling",
    "mcp": "200 allowed",
    "dropped": "504 outcome_unknown",
}


def send_what_is_not_judged(run: Run, secret: Secret, number: int) -> None:
    """As the proxy's own credentials, as a destination nobody listed, and in what is no HTTP."""
    port = urlsplit(run.proxy_url).port
    assert port is not None
    flat = "".join(secret.text.split("\n"))
    named = base64.b64encode(f"run-1:{flat}".encode()).decode()
    swapped = base64.b64encode(f"{flat}:x".encode()).decode()
    absolute = f"http://{HOST}{target('stranger', f'marker-{number}', secret)}"
    absolute = absolute.replace("\n", "").replace(" ", "%20")
    with opened(run, tls=False) as line:
        (known,) = line.credentials.values()
    host = f"Host: {HOST}\r\n"
    asks = "Proxy-Authorization:"
    unlisted = absolute.replace(HOST, "unlisted.example")
    for url, fields, status in (
        (absolute, f"{host}{asks} Basic {named}", 407),
        (absolute, f"{host}{asks} Basic {swapped}", 407),
        (absolute, f"{host}{asks} Bearer {flat}", 407),
        (unlisted, f"Host: unlisted.example\r\n{asks} {known}\r\nX-Api-Key: {flat}", 403),
        (absolute, f"{host}{asks} {known}\r\nbad line {flat}", 400),
        (absolute, f"{host}{host}{asks} {known}", 400),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(f"GET {url} HTTP/1.1\r\n{fields}\r\n\r\n".encode())
            first = sock.makefile("rb").readline()
        assert int(first.split()[1]) == status, fields


# Where it must not be


def searched(proxy: Proxy, said: str) -> Iterator[tuple[str, bytes]]:
    """Everything that the proxy leaves behind, with a name for each."""
    data = proxy.folder / "data"
    yield "standard output", said.encode()
    yield "the log", proxy.log().encode()
    yield "ledger query", proxy.cli("ledger", "query", "--json", "--limit", "100000").encode()
    everything = "SELECT * FROM event"
    yield "ledger query --sql", proxy.cli("ledger", "query", "--sql", everything, "--json").encode()
    yield from tables(data)
    for path in sorted(data.rglob("*")):
        if path.is_file() and data / "private" not in path.parents:
            yield path.name, path.read_bytes()


def tables(data: Path) -> Iterator[tuple[str, bytes]]:
    """Every row of every table, bodies decompressed."""
    for name in ("ledger.db", "trace.db"):
        if not (data / name).exists():
            continue
        with closing(open_file(data / name)) as reader:
            every = (
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE '%VIRTUAL%'"
            )
            for (table,) in reader.execute(every).fetchall():
                for row in reader.execute(f'SELECT * FROM "{table}"'):
                    yield f"{name} {table}", b"\0".join(map(plain, row))


def plain(value: object) -> bytes:
    if not isinstance(value, bytes):
        return str(value).encode()
    if value.startswith(zstandard.FRAME_HEADER):
        return zstandard.ZstdDecompressor().decompress(value)
    return value


def leaks(proxy: Proxy, said: str, secrets: list[Secret]) -> list[str]:
    traces = {trace.lower(): secret.kind for secret in secrets for trace in secret.traces()}
    found = []
    for place, content in searched(proxy, said):
        lower = content.lower()
        found += [f"{kind} in {place}" for trace, kind in traces.items() if trace in lower]
    return sorted(set(found))


def stopped(proxy: Proxy, number: signal.Signals) -> str:
    """End the proxy; what it had printed."""
    process, proxy.process = proxy.process, None
    assert process is not None
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    return str(out)


def token_of(run: Run) -> Secret:
    name_and_token = urlsplit(run.proxy_url)
    text = f"{name_and_token.username}:{name_and_token.password}"
    return Secret("run token", text, (str(name_and_token.password),), False)


@pytest.mark.slow
def test_no_secret_is_left_in_a_log_a_file_or_a_listing(proxy: Proxy, upstream: Origin) -> None:
    """10 seconds; 300 calls."""
    run = proxy.mint()
    own = token_of(run)
    secrets = [*SECRETS, own]
    for number, secret in enumerate(secrets):
        with opened(run, tls=number % 2 == 0) as line:
            assert send(line, secret, number) == EXPECTED, secret.kind
        if secret is not own:
            send_what_is_not_judged(run, secret, number)
    said = stopped(proxy, signal.SIGKILL)
    assert leaks(proxy, said, secrets) == []
    # The other half of the test: the search looks where the calls are.
    rows = proxy.ledger()
    for number, secret in enumerate(secrets):
        mine = [row for row in rows if f"/marker-{number}" in f"{row['path']}/"]
        mine = [row for row in mine if row["path"].split("/")[2] == f"marker-{number}"]
        assert len(mine) == (len(EXPECTED) if secret is own else len(EXPECTED) + 5), secret.kind
        assert all("redacted:" in row["path"] for row in mine) == secret.in_path
    for place, content in searched(proxy, said):
        if place in ("ledger query", "ledger query --sql", "ledger.db-wal"):
            assert b"/marker-7/" in content, place
    arrived = upstream.arrived
    for secret in secrets:
        assert any(json.dumps(secret.text) in each.body for each in arrived), secret.kind
        assert any(quote(secret.text, safe="") in each.path for each in arrived), secret.kind


BROKEN = (
    "HTTP/1.1 200 OK\r\nNo colon {secret}\r\n\r\n",
    "HTTP/1.1 {secret} OK\r\n\r\n",
    "{secret}\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: {secret}\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{secret}\r\n",
)


def test_what_an_upstream_says_wrong_is_not_quoted(proxy: Proxy) -> None:
    """One that breaks may break in the middle of a body. A password has no shape to be known by."""
    run, password = proxy.mint(), SECRETS[-2]
    (word,) = password.pieces
    for number, answer in enumerate(BROKEN):
        told = asked(run, "POST", f"/garbled/{number}", answer.format(secret=word))
        assert told.status == 504
        assert word.encode() not in told.body
    assert [row["state"] for row in proxy.calls(run)] == ["unknown"] * len(BROKEN)
    said = stopped(proxy, signal.SIGTERM)
    assert leaks(proxy, said, [password]) == []
