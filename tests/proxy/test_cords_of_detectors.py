"""Cords as detectors pull them, on a tool of one run and a throttle: shown, lifted, and told to the
run that they stand over."""

from pathlib import Path

import pytest

from ledger.store import Store
from policies.verdict import Level, Pull, Scope
from proxy import secret_keys
from proxy.letterbox import Letterbox
from tests.ledger.world import START_US as NOW_US
from tests.proxy.test_cli_cords import data, rules, typed
from tests.proxy.test_own import Running, running

__all__ = ["data", "running"]  # fixtures


def test_a_tool_of_one_run_is_halted_shown_and_resumed(data: Path) -> None:
    assert "pulled: HALT tool r1/mail.send" in typed("halt", "tool", "r1/mail.send").stdout
    assert rules(data) == ["halt:tool:r1/mail.send"]
    (line,) = [each for each in typed("status").stdout.splitlines() if "HALT tool" in each]
    assert "HALT tool r1/mail.send" in line
    assert "stops nothing" not in line
    refused = typed("halt", "tool", "r1/mail.sent")
    assert refused.exit_code == 4
    assert "did you mean mail.send?" in refused.stderr
    done = typed("resume", "tool", "r1/mail.send", "--reason", "mended")
    assert "resumed tool r1/mail.send" in done.stdout
    assert rules(data) == []


def test_a_throttle_is_shown_in_words_and_lifted_by_a_thaw(data: Path) -> None:
    store = Store.open(data, secret_keys.vault_key(data), lambda: 1)
    cord = Pull(Level.THROTTLE, Scope.RUN, "r1", "it loops", "detector:loop", 1)
    store.pull(cord)
    store.close()
    (line,) = [each for each in typed("status").stdout.splitlines() if "THROTTLE" in each]
    told = 'THROTTLE run r1 (6 calls a minute of each run pass)  "it loops"  by detector:loop'
    assert told in line
    done = typed("thaw", "run", "r1", "--reason", "mended")
    lifting, flows, lifted = done.stdout.splitlines()[:3]
    assert told in lifting
    assert flows.startswith("calls of run r1 will flow again")
    assert lifted == "lifted the throttle of run r1"
    assert rules(data) == []


def test_explain_shows_the_throttle_over_a_call(data: Path) -> None:
    store = Store.open(data, secret_keys.vault_key(data), lambda: 1)
    store.pull(Pull(Level.THROTTLE, Scope.TENANT, "acme", "it loops", "detector:loop", 1))
    store.close()
    asked = ("policy", "explain", "POST", "https://mail.example/", "--run", "r1", "--tenant")
    assert "at most 6 calls per run within 60 s (run r1)" in typed(*asked, "acme").stdout
    assert "at most 6 calls" not in typed(*asked, "other").stdout


async def test_a_run_sees_the_throttle_and_the_cords_on_its_tools(running: Running) -> None:
    for pull in (
        Pull(Level.HALT, Scope.TOOL, "root/mail.send", "it loops", "detector:loop", NOW_US),
        Pull(Level.HALT, Scope.TOOL, "other/mail.send", "it loops", "detector:loop", NOW_US),
        Pull(Level.THROTTLE, Scope.RUN, "root", "it spends", "detector:burn", NOW_US),
    ):
        await running.decider.act(lambda store, pull=pull: store.pull(pull))  # type: ignore[misc]
    _, told, _ = await running.asked("root", "GET", "/self")
    assert (told["halted"], told["frozen"], told["throttled"]) == (False, False, True)
    rules_told = [each["rule"] for each in told["pulled"]]
    assert rules_told == ["halt:tool:root/mail.send", "throttle:run:root"]


@pytest.mark.parametrize(
    "line, rule",
    [
        ("halt tool r1/a.b-c # x", "halt:tool:r1/a.b-c"),
        ("throttle run r1", "halt:global"),  # the file stops
        ("halt tool r2/a.b-d", "halt:global"),
    ],
)
def test_the_file_halt_knows_a_tool_of_one_run(tmp_path: Path, line: str, rule: str) -> None:
    box = Letterbox(tmp_path, is_tool=lambda name: name == "r1/a.b-c")
    box.path.write_text(f"{line}\n")
    (pull,) = box.waiting(NOW_US)
    assert pull.rule == rule
