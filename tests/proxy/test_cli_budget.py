"""`pullcord budget` and `--budget-usd`, on the ledger and through a running proxy."""

import asyncio
import json
import os
import shlex
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from ledger.states import EventType
from ledger.store import Store
from policies.ceilings import Per
from proxy import environment, secret_keys
from proxy.cli import budget
from proxy.cli.main import cli
from tests.proxy.controlled import NOW_US, POLICY, controlled

CEILINGS = """\
ceilings:
  - {per: run, count: spend_usd, at_most: 1.00}
  - {per: global, count: spend_usd, at_most: 50, within: 1h, then: freeze}
  - {per: tree, count: spawned, at_most: 1, then: halt}
  - {per: tenant, count: calls, unbounded: true}
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a person who runs no proxy, beside a policy."""
    structlog.reset_defaults()  # a command of an earlier test may have set it up, and loggers stay
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "policy.yaml").write_text(POLICY + CEILINGS, "utf-8")
    monkeypatch.chdir(tmp_path)
    Store.open(tmp_path / "data", secret_keys.vault_key(tmp_path / "data"), lambda: 1).close()
    return tmp_path / "data"


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def told(*words: str) -> Any:
    result = typed(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_scopes_are_those_of_ceilings() -> None:
    assert list(budget.SCOPES) == list(Per)


# ---------------------------------------------------------------------------- tokens


def test_a_budget_and_reading_only_are_minted_listed_and_changed(data: Path) -> None:
    minted = told("token", "mint", "--run", "r1", "--budget-usd", "2.5", "--read-only")
    assert (minted["budget_usd"], minted["read_only"]) == ("2.50", True)
    told("token", "mint", "--run", "r1", "--budget-usd", "1")
    rows = [json.loads(line) for line in typed("token", "list", "--json").stdout.splitlines()]
    assert sorted((row["budget_usd"], row["read_only"]) for row in rows) == [
        ("1.00", False),
        ("1.00", True),
    ]
    table = typed("token", "list").stdout
    assert "all; only to read" in table
    assert "1.00 USD" in table


@pytest.mark.parametrize("amount", ["-1", "much", "0.0000001", "", "1e12"])
@pytest.mark.parametrize("command", [("token", "mint"), ("env",)])
def test_an_amount_that_is_none_is_a_mistake_and_mints_nothing(
    data: Path, command: tuple[str, ...], amount: str
) -> None:
    result = typed(*command, "--run", "r1", "--budget-usd", amount)
    assert (result.exit_code, "'--budget-usd'" in result.stderr) == (2, True), result.output
    assert typed("token", "list", "--json").stdout == ""


def test_env_mints_with_a_budget(data: Path) -> None:
    assert typed("env", "--run", "r1", "--budget-usd", "0.25").exit_code == 0
    (row,) = [json.loads(line) for line in typed("token", "list", "--json").stdout.splitlines()]
    assert row["budget_usd"] == "0.25"


def test_env_mints_for_an_agent_with_less_than_the_policy_gives(data: Path) -> None:
    narrow = ("--tool", "mail.*", "--tool", "crm.read", "--read-only", "--expires", "8h")
    assert typed("env", "--run", "r1", "--agent", "clerk", *narrow).exit_code == 0
    (row,) = [json.loads(line) for line in typed("token", "list", "--json").stdout.splitlines()]
    assert (row["agent"], row["tools"], row["read_only"]) == ("clerk", ["mail.*", "crm.read"], True)
    made, ends = (datetime.fromisoformat(row[name]) for name in ("created", "expires"))
    assert ends - made == timedelta(hours=8)


@pytest.mark.parametrize("command", [("token", "mint"), ("env",)])
def test_a_time_that_is_none_names_its_option(data: Path, command: tuple[str, ...]) -> None:
    result = typed(*command, "--run", "r1", "--expires", "soon")
    assert (result.exit_code, "'--expires': 'soon' is no length" in result.stderr) == (2, True)
    assert typed("token", "list", "--json").stdout == ""


@pytest.mark.parametrize(
    "words", [("--tool", "a"), ("--read-only",), ("--expires", "8h"), ("--agent", "clerk")]
)
def test_with_identity_open_nothing_narrows_a_run(data: Path, words: tuple[str, ...]) -> None:
    (data.parent / "config" / "pullcord.yaml").write_text("identity: open\n", "utf-8")
    result = typed("env", "--run", "r1", *words)
    assert (result.exit_code, result.stdout) == (2, "false\n")
    assert f"{words[0]} would bind nothing" in result.stderr


def test_with_identity_open_a_budget_would_bind_nothing(data: Path) -> None:
    (data.parent / "config" / "pullcord.yaml").write_text("identity: open\n", "utf-8")
    result = typed("env", "--run", "r1", "--budget-usd", "1")
    assert (result.exit_code, result.stdout) == (2, "false\n")
    assert "a budget would bind nothing" in result.stderr
    assert typed("env", "--run", "r1").exit_code == 0


def test_an_operator_takes_no_budget(data: Path) -> None:
    for words in (("--budget-usd", "1"), ("--read-only",)):
        result = typed("token", "mint", "--role", "view", "--name", "eve", *words)
        assert (result.exit_code, "nothing else" in result.stderr) == (2, True)


def test_without_a_proxy_children_count_and_the_cord_stays_pulled(data: Path) -> None:
    told("token", "mint", "--run", "root")
    told("token", "mint", "--run", "one", "--parent", "root")
    result = typed("token", "mint", "--run", "two", "--parent", "root")
    assert (result.exit_code, "so two was not made" in result.stderr) == (2, True)
    assert "HALT run root" in typed("status").stdout
    assert len(typed("token", "list", "--json").stdout.splitlines()) == 2


def test_a_resume_says_that_the_ceiling_is_still_full_and_what_to_type(data: Path) -> None:
    told("token", "mint", "--run", "root")
    told("token", "mint", "--run", "one", "--parent", "root")
    typed("token", "mint", "--run", "two", "--parent", "root")
    resume = ("resume", "run", "root", "--reason", "looked at it")
    result = typed(*resume)
    assert "is still full (1 " in result.stdout
    assert "and the next one pulls the cord again" in result.stdout
    assert f"first raise at_most in {Path('config', 'policy.yaml')}:14" in result.stdout
    typed("token", "mint", "--run", "two", "--parent", "root")
    policy = data.parent / "config" / "policy.yaml"
    policy.write_text(POLICY + CEILINGS.replace("spawned, at_most: 1", "spawned, at_most: 2"))
    assert "still full" not in typed(*resume).stdout
    typed("halt", "run", "root")
    assert "still full" not in typed(*resume).stdout


def test_without_a_proxy_and_a_policy_no_child_is_made(data: Path) -> None:
    told("token", "mint", "--run", "root")
    (data.parent / "config" / "policy.yaml").unlink()
    result = typed("token", "mint", "--run", "one", "--parent", "root")
    assert (result.exit_code, "no policy can be read" in result.stderr) == (2, True)
    assert typed("token", "mint", "--run", "other").exit_code == 0


# ---------------------------------------------------------------------------- budget show, adjust


def test_a_budget_is_shown_and_adjusted_on_the_ledger(data: Path) -> None:
    told("token", "mint", "--run", "r1", "--budget-usd", "3")
    added = told("budget", "adjust", "run", "r1", "--usd", "0.75", "--reason", "invoice")
    assert [(each["used_before_usd"], each["used_usd"]) for each in added["ceilings"]] == [
        ("0.00", "0.75"),
        ("0.00", "0.75"),
    ]
    result = typed("budget", "adjust", "run", "r1", "--usd", "-0.5", "--reason", "never billed")
    assert "run r1: spent 0.75 USD before, 0.25 USD now; 0.75 USD left" in result.stdout
    shown = told("budget", "show", "run", "r1")
    assert [(each["id"][:6], each["left_usd"]) for each in shown["ceilings"]][1] == (
        "budget",
        "2.75",
    )
    assert [(each["per"], each["of"]) for each in shown["ceilings"]] == [
        ("run", "r1"),
        ("run", "r1"),
        ("global", ""),
        ("tenant", "default"),
    ]
    table = typed("budget", "show", "run", "r1").stdout
    assert "its life" in table
    assert "budget:r1" in table
    assert "everything" in table
    assert "more: at_most in config/policy.yaml:12; was it not spent: pullcord budget" in table
    told("token", "mint", "--run", "r1", "--budget-usd", "0.5")
    least = typed("budget", "show", "run", "r1").stdout
    assert "more: pullcord budget set run r1 --usd N --reason TEXT; was it not" in least
    assert "budget adjust run r1 --usd -N" in least
    assert "still counted for tenant default: 0.00 USD, 200.00 USD left" in result.stdout
    assert "still counted for everything" in result.stdout


def test_a_child_is_shown_what_those_above_it_have_left(data: Path) -> None:
    (data.parent / "config" / "policy.yaml").write_text(
        POLICY + "ceilings:\n  - {per: tree, count: spend_usd, at_most: 7}\n", "utf-8"
    )
    told("token", "mint", "--run", "root", "--budget-usd", "3", "--release", "l1")
    told("token", "mint", "--run", "kid", "--parent", "root", "--budget-usd", "1")
    told("budget", "adjust", "run", "root", "--usd", "2.75", "--reason", "invoice")
    shown = told("budget", "show", "run", "kid")["ceilings"]
    assert [(each["per"], each["of"], each["left_usd"]) for each in shown] == [
        ("run", "root", "0.25"),
        ("run", "kid", "1.00"),
        ("tree", "root", "7.00"),
        ("tenant", "default", "200.00"),
    ]
    (tree,) = told("budget", "show", "tree", "kid")["ceilings"]
    assert (tree["of"], tree["left_usd"]) == ("root", "7.00")
    added = told("budget", "adjust", "tree", "kid", "--usd", "1", "--reason", "invoice")
    assert (added["subject"], added["ceilings"][0]["left_usd"]) == ("root", "6.00")


def test_all_shows_what_else_is_counted(data: Path) -> None:
    told("token", "mint", "--run", "root")
    told("token", "mint", "--run", "kid", "--parent", "root")
    shown = told("budget", "show", "run", "kid", "--all")["ceilings"]
    spawned = shown[0]  # nothing of it is left, so it is first
    assert (spawned["count"], spawned["used"], spawned["left"], spawned["of"]) == (
        *("spawned", 1, 0, "root"),
    )
    assert {each["count"] for each in shown} == {"calls", "in_flight", "spawned", "spend_usd"}
    assert "1 spawned" in typed("budget", "show", "run", "kid", "--all").stdout


def test_a_budget_is_set_and_taken_away_without_a_new_token(data: Path) -> None:
    told("token", "mint", "--run", "r1", "--budget-usd", "3")
    result = typed("budget", "set", "run", "r1", "--usd", "5", "--reason", "a longer night")
    assert "run r1: budget 5.00 USD, was 3.00 USD" in result.stdout
    assert told("token", "list")["budget_usd"] == "5.00"
    taken = told("budget", "set", "run", "r1", "--none", "--reason", "ceilings will do")
    assert (taken["budget_usd"], taken["was_usd"]) == (None, "5.00")
    assert told("token", "list")["budget_usd"] is None
    sql = "SELECT detail, run, actor FROM event WHERE type = 'budget.adjusted' ORDER BY seq"
    rows = [
        json.loads(line)
        for line in typed("ledger", "query", "--json", "--sql", sql).stdout.splitlines()
    ]
    assert [(row["detail"], row["run"]) for row in rows] == [
        ("budget of r1 5.00 USD (was 3.00 USD): a longer night", "r1"),
        ("budget of r1 none (was 5.00 USD): ceilings will do", "r1"),
    ]
    assert all(row["actor"] for row in rows)


def test_everything_together_takes_no_name(data: Path) -> None:
    told("budget", "adjust", "global", "--usd", "50", "--reason", "another bill")
    result = typed("budget", "adjust", "global", "--usd", "-0.000001", "--reason", "rounding")
    assert result.stdout.startswith("global: spent 50.00 USD before, 49.999999 USD now; 0.000001")
    (only,) = told("budget", "show", "global")["ceilings"]
    assert (only["then"], only["within_seconds"]) == ("freeze", 3600)


@pytest.mark.parametrize(
    "words, code, why",
    [
        (("show", "run", "nobody"), 4, "there is no run nobody"),
        (("show", "agent", "a"), 4, "no ceiling bounds"),
        (("show", "planet"), 2, "planet"),
        (("show", "tenant"), 2, "name the tenant"),
        (("adjust", "run", "r1", "--usd", "1"), 2, "--reason"),
        (("adjust", "run", "r1", "--reason", "x"), 2, "--usd"),
        (("adjust", "run", "r1", "--usd", "x", "--reason", "x"), 2, "no amount of dollars"),
        (("adjust", "run", "r1", "--usd", "0", "--reason", "x"), 2, "nothing would change"),
        (("adjust", "run", "r1", "--usd", "1", "--reason", ""), 2, "reason"),
        (
            ("adjust", "run", "r1", "--usd", "1e3", "--reason", "x"),
            2,
            "'--usd': '1e3' is no amount",
        ),
        (("set", "run", "r1", "--reason", "x"), 2, "--none"),
        (("set", "run", "r1", "--usd", "1", "--none", "--reason", "x"), 2, "--none"),
        (("set", "run", "r1", "--usd", "-1", "--reason", "x"), 2, "'--usd': -1 is less"),
        (("set", "run", "r1", "--usd", "1"), 2, "--reason"),
        (("set", "run", "r1", "--usd", "1", "--reason", " "), 2, "can be read"),
        (("set", "run", "nobody", "--usd", "1", "--reason", "x"), 4, "has no token"),
        (("adjust", "run", "nobody", "--usd", "1", "--reason", "x"), 4, "no run nobody"),
    ],
    ids=str,
)
def test_what_cannot_be_done_says_what_to_type(
    data: Path, words: tuple[str, ...], code: int, why: str
) -> None:
    told("token", "mint", "--run", "r1")
    result = typed("budget", *words)
    assert (result.exit_code, why in result.stderr) == (code, True), result.output


async def test_the_running_proxy_does_the_same(tmp_path: Path, data: Path) -> None:
    async with controlled(tmp_path, POLICY + CEILINGS) as running:
        mint = ("token", "mint", "--run", "r1", "--budget-usd", "2")
        assert (await asyncio.to_thread(told, *mint))["budget_usd"] == "2.00"
        adjust = ("budget", "adjust", "run", "r1", "--usd", "2", "--reason", "invoice")
        result = await asyncio.to_thread(typed, *adjust)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "0.00 USD left" in result.stdout
        shown = await asyncio.to_thread(told, "budget", "show", "run", "r1")
        assert [each["used_usd"] for each in shown["ceilings"]][:2] == ["2.00", "2.00"]
        assert [row["run"] for row in running.rows("budget.adjusted")] == ["r1"]
        every = await asyncio.to_thread(told, "budget", "show", "run", "r1", "--all")
        assert len(every["ceilings"]) > len(shown["ceilings"])
        set_ = ("budget", "set", "run", "r1", "--usd", "9", "--reason", "x")
        assert "budget 9.00 USD, was 2.00 USD" in (await asyncio.to_thread(typed, *set_)).stdout
        shown = await asyncio.to_thread(told, "budget", "show", "run", "r1")
        assert [e["left_usd"] for e in shown["ceilings"] if e["id"] == "budget:r1"] == ["7.00"]
        assert (await asyncio.to_thread(typed, "budget", "show", "run", "no")).exit_code == 4


# ---------------------------------------------------------------------------- status


def test_status_says_what_is_unbounded(data: Path) -> None:
    lines = typed("status").stdout.splitlines()
    bounds = [line for line in lines if line.startswith("bounds")]
    assert bounds == ["bounds  UNBOUNDED: calls per tenant, by the policy's own word"]
    (state,) = [json.loads(line) for line in typed("status", "--json").stdout.splitlines()]
    assert state["bounds"]["unbounded"] == ["calls per tenant"]
    assert state["bounds"]["shipped"]
    (data.parent / "config" / "policy.yaml").write_text(POLICY, "utf-8")
    assert "bounds" not in typed("status").stdout
    (data.parent / "config" / "policy.yaml").unlink()
    assert "bounds" not in typed("status").stdout


async def test_status_says_which_ceilings_bind_and_what_was_told(
    tmp_path: Path, data: Path
) -> None:
    ceilings = "ceilings: [{per: run, count: calls, at_most: 1, within: 60s}]\n"
    async with controlled(tmp_path, POLICY + ceilings) as running:
        assert "limits" not in (await asyncio.to_thread(typed, "status")).stdout
        (bound,) = (each for each in running.service.decider.policy.ceilings if not each.shipped)
        await running.called("n6")
        for _ in range(2):
            with pytest.raises(AssertionError):
                await running.called("n6")

        def note(store: Store) -> None:
            for kind, ago_us in ((EventType.CROSSED, 0), (EventType.UNPRICED, 1)):
                store.note(kind, actor="pullcord", at_us=NOW_US - ago_us, detail="x")

        await running.service.decider.act(note)
        lines = (await asyncio.to_thread(typed, "status")).stdout.splitlines()
        limits = [line.removeprefix("limits  ") for line in lines if line.startswith("limits")]
        assert [line.partition(": pullcord")[0] for line in limits] == [
            f"2 refused by ceiling:{bound.id} {bound} (run n6) in the last minute",
            "1 ceiling alert in the last hour",
            "1 unpriced model in the last hour",
        ]
        assert limits[0].endswith(f": pullcord ledger query rule:ceiling:{bound.id}")
        rows = await asyncio.to_thread(typed, *shlex.split(limits[1].partition(": pullcord ")[2]))
        assert rows.stdout.split()[-1] == "x"
        running.clock.us += 61_000_000
        state = await running.asked("GET", "/v1/status")
        assert state["limits"] == {
            "refused_per_minute": [],
            "crossed_per_hour": 1,
            "unpriced_per_hour": 1,
            "waiting": 0,
        }
        running.clock.us += 3_600_000_000
        state = await running.asked("GET", "/v1/status")
        assert state["limits"]["crossed_per_hour"] == 0
