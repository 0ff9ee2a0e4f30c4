"""What the tests of `ledger resolve --verify` stand on: a policy that names a read, a ledger with
an unknown write, and short ways to type."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger.store import Store
from proxy import environment, secret_keys
from proxy.cli.main import cli
from proxy.credentials import FILE
from tests.ledger.world import World
from tests.proxy.looked_at import Service

SECRET = "opaque-key-of-the-operators"
POLICY = """\
version: 1
tools:
  look:
    match: {host: localhost, port: PORT, method: GET}
    effect: read
    allow_addresses: [127.0.0.0/8, "::1"]
  pay:
    match: {host: api.example, method: POST}
    verify:
      tool: look
      path: /v1/charges
      query: {run: "{run}", "created[gte]": "{at_seconds}"}
      headers: {X-Asks: "about {call}"}
      auth: ops
  mail.send: {match: {host: mail.example, method: POST}, verify: {tool: look, path: /sent}}
  blind: {match: {host: blind.example}}
"""
CREDENTIALS = f"ops: {{hosts: [localhost], bearer: {SECRET}}}\n"


def unknown(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with the unknown write `lost`, where no proxy runs."""
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    data = tmp_path / "data"
    monkeypatch.setenv("PULLCORD_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "pullcord.yaml").write_text(f"upstream_ca: {service.ca}\n")
    written(tmp_path, POLICY, service)
    world = World(data)
    world.admit(
        world.ask("lost"), world.ask("made", body="m"), world.ask("dim", tool="mail", body="d")
    )
    world.settle("lost", status=None, complete=False, reason="outcome_unknown")
    world.settle("made")
    world.settle("dim", status=None, complete=False)
    world.store.close()
    Store.open(data, secret_keys.vault_key(data), lambda: world.now_us).close()
    entries(data, CREDENTIALS)
    return data


def written(folder: Path, policy: str, service: Service) -> None:
    (folder / "config" / "policy.yaml").write_text(policy.replace("PORT", str(service.port)))


def entries(data: Path, text: str, mode: int = 0o600) -> None:
    (data / FILE).write_text(text)
    (data / FILE).chmod(mode)


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ("ledger", "resolve", *words))


def record(call: str = "lost") -> dict[str, Any]:
    told = CliRunner().invoke(cli, ("ledger", "show", call, "--json"))
    row: dict[str, Any] = json.loads(told.stdout)
    return row


def rows_about(call: str = "lost") -> list[str]:
    """What the record says of asking: that it is asked, then what was said."""
    return [row["detail"] for row in record(call)["events"] if row["type"] == "call.verified"]
