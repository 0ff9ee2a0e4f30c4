"""`policy check|explain|schema`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger.store import Store
from policies.call import Effect, Request
from policies.verdict import Reason
from proxy import environment, own, secret_keys
from proxy.cli.main import cli
from proxy.sentences import detail_of

POLICY = """\
version: 1
frozen: [mail.send]
tools:
  mail.send: {match: {host: mail.example, method: POST}, effect: write}
  mail.read: {match: {host: mail.example, method: GET}, effect: read}
  local: {match: {host: 127.0.0.1}, allow_addresses: [127.0.0.0/8]}
ceilings:
  - {per: run, count: calls, at_most: 60, within: 1m, then: throttle}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a person who has a policy and no settings, and runs no proxy."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "policy.yaml").write_text(POLICY, "utf-8")
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("command", [("up", "--listen", "127.0.0.1:0"), ("policy", "check")])
def test_a_policy_that_is_no_plain_file_is_told_as_such(
    root: Path, command: tuple[str, ...]
) -> None:
    (root / "config" / "policy.yaml").unlink()
    os.mkfifo(root / "config" / "policy.yaml")
    told = typed(*command).output
    assert "config/policy.yaml: is a pipe; it must be a plain file" in told
    assert "there is no" not in told


def test_policy_check_tells_each_mistake_and_exits_with_3(root: Path) -> None:
    assert typed("policy", "check").exit_code == 0
    (root / "bad.yaml").write_text("version: 1\ntols: {}\nunlisted: maybe\n", "utf-8")
    result = typed("policy", "check", "bad.yaml")
    assert result.exit_code == 3
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        "bad.yaml:2:1",
        "bad.yaml:3:11",
    ]


def test_policy_explain_tells_the_tool_the_effect_and_the_line_that_decides(root: Path) -> None:
    (told,) = objects(typed("policy", "explain", "--json", "post", "https://mail.example/send?a"))
    assert (told["tool"], told["effect"], told["line"]) == ("mail.send", Effect.WRITE, 4)
    assert (told["decision"], told["rule"]) == ("refuse", "freeze:tool:mail.send")
    assert told["ceilings"][0]["at_most"] == 60
    words = typed("policy", "explain", "GET", "https://nowhere.example").stdout
    assert "destination_unlisted" in words
    assert "to allow" not in typed("policy", "explain", "GET", "https://mail.example").stdout


@pytest.mark.parametrize("unlisted, method", [("refuse", "GET"), ("read_only", "POST")])
def test_policy_explain_of_an_unlisted_host_prints_what_the_refusal_does(
    root: Path, unlisted: str, method: str
) -> None:
    policy = root / "config" / "policy.yaml"
    policy.write_text(POLICY.replace("frozen", f"unlisted: {unlisted}\nfrozen"), "utf-8")
    told = typed("policy", "explain", method, "https://nowhere.example:8443/a").stdout
    entry = told.partition("to allow it, add:\n")[2]
    request = Request(method, "https", "nowhere.example", 8443, "/a")
    reason = Reason.DESTINATION_UNLISTED if unlisted == "refuse" else Reason.DESTINATION_READ_ONLY
    assert detail_of("", reason, request) == f"\n{entry.rstrip()}"
    policy.write_text(POLICY.replace("tools:\n", entry), "utf-8")
    assert (
        "allow: allowed"
        in typed("policy", "explain", method, "https://nowhere.example:8443/a").stdout
    )


def test_policy_explain_of_a_call_whose_body_decides_asks_for_the_body(root: Path) -> None:
    crm = "  crm: {match: {host: mcp.example, mcp_tool: 'contacts.*'}}\n"
    (root / "config" / "policy.yaml").write_text(POLICY.replace("tools:\n", f"tools:\n{crm}"))
    explain = ("policy", "explain", "POST", "https://mcp.example/mcp")
    assert "what mcp call it is: --body FILE" in typed(*explain).stdout
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "contacts.add"}}
    (root / "call.json").write_text(json.dumps(call))
    told = typed(*explain, "--body", "call.json", "--header", "content-type: application/json")
    assert "allow: allowed, by tool:crm" in told.stdout
    assert "--body" not in told.stdout


GUARDED = """\
version: 1
tools:
  refunds:
    match: {host: pay.example, method: POST}
    where: {amount: {at_most: 5000}}
    body_bytes_max: 100
    hold: true
    hold_seconds: 600
tenants:
  acme: {allow: [{tool: refunds, method: POST, where: {currency: {equals: usd}}}]}
agents:
  reader: {read_only: true}
ceilings:
  - {per: run, count: calls, unbounded: true}
  - {per: run, count: spend_usd, at_most: 1.50}
  - {per: tool, count: bytes_up, at_most: 1000, then: alert}
"""
FORM = ("--header", "content-type: application/x-www-form-urlencoded")


def test_policy_explain_tells_conditions_holds_and_ceilings(root: Path) -> None:
    (root / "config" / "policy.yaml").write_text(GUARDED, "utf-8")
    (root / "body").write_text("amount=5&currency=usd")
    explain = ("policy", "explain", "POST", "https://pay.example/", "--body", "body", *FORM)
    (told,) = objects(typed(*explain, "--tenant", "acme", "--json"))
    assert (told["decision"], told["rule"], told["hold_seconds"]) == ("hold", "tool:refunds", 600)
    assert told["conditions"] == [
        {"rule": "tool:refunds", "asks": "amount must be at most 5000"},
        {"rule": "tenant:acme", "asks": "currency must be usd, by POST"},
    ]
    drawn = {(c["per"], c["count"]): (c["of"], c["at_most"], c["takes"]) for c in told["ceilings"]}
    assert drawn["tool", "bytes_up"] == ("refunds", 1000, 21)
    assert drawn["run", "in_flight"] == ("any-run", 64, 1)
    assert ("run", "calls") not in drawn
    words = typed(*explain).stdout
    assert "hold: held, by tool:refunds" in words
    assert "condition  amount must be at most 5000 (tool:refunds)" in words
    assert "hold       each write waits 10 min for a person" in words
    assert "body       at most 100 bytes" in words
    assert "at most 64 calls in flight per run (any run), then throttle; takes 1 call in" in words
    assert "per tenant within 60 s (tenant default), then throttle; takes 1 call (" in words
    assert "(run r7), then throttle; takes 1 call (" not in words
    assert "per run (run r7), then" in typed(*explain, "--run", "r7").stdout


def test_policy_explain_is_for_an_agent_and_for_who_may_only_read(root: Path) -> None:
    (root / "config" / "policy.yaml").write_text(GUARDED, "utf-8")
    (root / "body").write_text("amount=5&currency=usd")
    explain = ("policy", "explain", "POST", "https://pay.example/", "--body", "body", *FORM)
    for words, rule in ((("--agent", "reader"), "agent:reader"), (("--read-only",), "token:")):
        (told,) = objects(typed(*explain, "--json", *words))
        assert told["reason"] == "read_only"
        assert told["rule"].startswith(rule)
    (root / "body").write_text("amount=9999")
    (told,) = objects(typed(*explain, "--json"))
    assert (told["reason"], told["detail"]) == ("argument_refused", "amount must be at most 5000")


def test_policy_check_tells_what_has_no_bound(root: Path) -> None:
    (root / "config" / "policy.yaml").write_text(GUARDED, "utf-8")
    told = typed("policy", "check").stdout
    assert "1 tool, 2 ceilings, 5 shipped ceilings, 1 tenant, 1 agent" in told
    assert "unbounded calls per run" in told


def test_policy_explain_of_the_agents_own_view_says_who_answers_it(root: Path) -> None:
    explain = ("policy", "explain", "GET", f"http://{own.HOST}/self")
    assert "pullcord answers it itself" in typed(*explain).stdout
    (told,) = objects(typed(*explain, "--json"))
    assert (told["tool"], told["decision"]) == (None, "allow")


def test_policy_explain_heeds_the_cords_that_are_pulled(root: Path) -> None:
    read = ("policy", "explain", "--json", "GET", "https://mail.example/")
    assert objects(typed(*read))[0]["decision"] == "allow"
    Store.open(root / "data", secret_keys.vault_key(root / "data"), lambda: 1).close()
    typed("halt", "tenant", "acme", "--reason", "x")
    assert objects(typed(*read))[0]["decision"] == "allow"
    assert objects(typed(*read, "--tenant", "acme"))[0]["rule"] == "halt:tenant:acme"


def test_policy_schema_is_one_json_document(root: Path) -> None:
    assert "tools" in json.loads(typed("policy", "schema").stdout)["properties"]
