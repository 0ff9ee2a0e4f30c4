"""The command line without a proxy; with one: test_cli_running.py."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger.store import Store
from proxy import authority, environment, operations, secret_keys
from proxy.cli import agents, main, places, reading, serving, status, terminal, tokens, trust
from proxy.cli.main import EXIT_CODES, cli
from proxy.settings import DEFAULT_DATA, NAMES

COMMANDS = (
    *("up", "demo", "env", "run", "status", "halt", "freeze", "resume", "thaw"),
    *("ledger", "policy", "token", "budget", "ca"),
)

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
    Store.open(tmp_path / "data", secret_keys.vault_key(tmp_path / "data"), lambda: 1).close()
    return tmp_path


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# ---------------------------------------------------------------------------- no proxy runs


def test_help_names_every_command_of_the_contract() -> None:
    result = typed("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout


def test_status_without_a_proxy_shows_what_is_pulled_and_exits_with_5(root: Path) -> None:
    assert (typed("status").exit_code, typed("status", "--exit-code").exit_code) == (5, 5)
    assert "pulled  nothing" in typed("status").stdout
    typed("halt", "run", "r1", "--reason", "it \x1b[31mloops")
    result = typed("status")
    assert result.exit_code == 5
    assert "DOWN" in result.stdout
    assert 'HALT run r1  "it \\x1b[31mloops"' in result.stdout
    (state,) = objects(typed("status", "--json"))
    assert state["pulled"][0]["rule"] == "halt:run:r1"


def test_a_halt_without_a_proxy_is_in_the_ledger_and_says_so(root: Path) -> None:
    result = typed("halt", "global")
    assert result.exit_code == 0
    first, second, undo = result.stdout.splitlines()
    assert first == f"NO PROXY RUNS HERE ({root}/data): recorded; it counts when one starts"
    assert second.startswith("pulled: HALT global  by ")
    assert undo == 'undo: pullcord resume global --reason "..."'
    assert "no proxy runs" in result.stderr
    assert [cord["rule"] for cord in reading.cords_on_disk(root / "data")] == ["halt:global"]


def test_a_misspelt_tool_is_not_halted(root: Path) -> None:
    result = typed("halt", "tool", "mail.sent")
    assert result.exit_code == 4
    assert "did you mean mail.send" in result.stderr


@pytest.mark.parametrize(
    "words, code, told",
    [
        (["halt"], 2, "Missing argument 'SCOPE'"),
        (["halt", "planet", "earth"], 2, "'planet' is not one of"),
        (["halt", "run"], 2, "name the run"),
        (["halt", "global", "r1"], 2, "takes no name"),
        (["resume", "run", "r1"], 2, "Missing option '--reason'"),
        (["resume", "run", "r1", "--reason", "x"], 4, "no halt is pulled for run r1"),
        (["thaw", "tool", "mail.send", "--reason", "x"], 2, "config/policy.yaml:2"),
        (["ledger", "query"], 2, "there is no ledger"),
        (["ledger", "show", "1"], 2, "there is no ledger"),
        (["policy", "explain", "GET", "mail.example"], 2, "is no http or https URL"),
        (["run", "--", "true"], 5, "pullcord up"),
        (["token", "revoke", "r9"], 4, "no valid token"),
        (["token", "mint", "--run", "a b"], 2, "the run may hold"),
        (["token", "mint", "--run", "r1", "--expires", "soon"], 2, "is no length of time"),
        (["up", "--config", "nowhere"], 2, "there is no nowhere/policy.yaml"),
        (["up", "--listen", "x"], 2, "--listen: listen: 'x' is no address"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(
    root: Path, words: list[str], code: int, told: str
) -> None:
    if told == "there is no ledger":
        shutil.rmtree(root / "data")
    result = typed(*words)
    assert (result.exit_code, told in result.stderr) == (code, True), result.stderr


@pytest.mark.parametrize("words", [["halt", "global"], ["resume", "global", "--reason", "x"]])
def test_where_neither_proxy_nor_ledger_is_nothing_is_halted_or_made(
    root: Path, words: list[str]
) -> None:
    """Else a forgotten `--data` looks like a halt."""
    result = typed(*words, "--data", str(root / "elsewhere"))
    assert result.exit_code == 5
    assert "nothing was done" in result.stderr
    assert "--data DIR" in result.stderr
    assert not (root / "elsewhere").exists()


def test_a_resumed_run_shows_first_what_will_flow(root: Path) -> None:
    typed("halt", "run", "r1", "--reason", "loops")
    typed("freeze", "tenant", "acme")
    result = typed("resume", "run", "r1", "--reason", "mended")
    assert result.exit_code == 0
    lifting, flows, still, done = result.stdout.splitlines()
    assert lifting.startswith('lifting HALT run r1  "loops"  by ')
    assert lifting.endswith("; 0 calls refused by it")
    assert flows == "calls of run r1 will flow again (0 active runs), but these still stand:"
    assert still.startswith("  FREEZE tenant acme")
    assert done == "resumed run r1"


def test_without_a_configuration_up_says_where_it_looked(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "config")
    result = typed("up")
    assert result.exit_code == 2
    assert "config/policy.yaml" in result.stderr


def test_up_with_a_broken_policy_tells_the_place(root: Path) -> None:
    (root / "config" / "policy.yaml").write_text("version: 1\ntols: {}\n", "utf-8")
    result = typed("up", "--listen", "127.0.0.1:0")
    assert result.exit_code == 2
    assert "config/policy.yaml:2:1: unknown key 'tols'; did you mean 'tools'?" in result.stderr


def test_a_token_is_minted_listed_and_revoked(root: Path) -> None:
    minted = typed("token", "mint", "--run", "r1", "--tool", "mail.*", "--expires", "8h")
    secret = minted.stdout.strip()
    assert len(secret) == 48
    (listed,) = objects(typed("token", "list", "--json"))
    assert (listed["run"], listed["tools"], listed["revoked"]) == ("r1", ["mail.*"], None)
    assert secret not in typed("token", "list", "--json").stdout
    assert "mail.*" in typed("token", "list").stdout
    assert typed("token", "revoke", "r1").exit_code == 0
    assert objects(typed("token", "list", "--json"))[0]["revoked"]


def test_env_prints_the_block_of_a_new_run_with_a_token_of_its_own(root: Path) -> None:
    (block,) = [json.loads(typed("env", "--tenant", "acme", "--format", "json").stdout)]
    run = block["PULLCORD_RUN_ID"]
    assert run.startswith("run_")
    assert block["HTTPS_PROXY"].startswith(f"http://{run}:")
    assert block["HTTPS_PROXY"].endswith("@127.0.0.1:8640")
    assert block["SSL_CERT_FILE"] == str(root / "data" / "ca" / "bundle.pem")
    assert Path(block["SSL_CERT_FILE"]).is_file()
    (listed,) = objects(typed("token", "list", "--json"))
    assert (listed["run"], listed["tenant"]) == (run, "acme")


def test_env_is_read_by_a_shell_and_taken_away_again(root: Path) -> None:
    script = f"{typed('env', '--run', 'r1').stdout}{typed('env', '--unset').stdout}env"
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert not [name for name in environment.NAMES if f"\n{name}=" in shown.stdout]


@pytest.mark.parametrize("shell, said", [("sh", "false\n"), ("fish", "false\n"), ("json", "")])
def test_an_env_that_fails_fails_in_the_shell_that_reads_it(
    root: Path, shell: str, said: str
) -> None:
    """Else `eval` succeeds, and the agent goes past the proxy."""
    (root / "data" / "ledger.db").write_text("no database")
    result = typed("env", "--run", "r1", "--format", shell)
    assert (result.exit_code, result.stdout) == (2, said)


def test_env_in_open_mode_mints_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULLCORD_IDENTITY", "open")
    monkeypatch.setenv("PULLCORD_LISTEN", "127.0.0.1:9")
    block = json.loads(typed("env", "--run", "r1", "--format", "json").stdout)
    assert block["http_proxy"] == "http://r1:default@127.0.0.1:9"
    assert objects(typed("token", "list", "--json")) == []


def test_new_runs_sort_by_time_and_differ() -> None:
    first, second = agents.new_run(1_800_000_000_000_000), agents.new_run(1_800_000_000_001_000)
    assert first < second
    assert len({agents.new_run(1_800_000_000_000_000) for _ in range(100)}) == 100


def test_ca_prints_files_that_exist(root: Path) -> None:
    for word in ("path", "bundle"):
        assert Path(typed("ca", word).stdout.strip()).read_text().startswith("-----BEGIN CERT")


# ---------------------------------------------------------------------------- what is said twice


def test_what_is_named_again_to_start_fast_is_the_same() -> None:
    from ledger.connection import DATABASE, LOCK

    assert tuple(serving.FLAGS) == NAMES
    assert tuple(environment.FORMATS) == agents.FORMATS
    assert (trust.CA_FILE, trust.BUNDLE_FILE) == (authority.CA_FILE, authority.BUNDLE_FILE)
    assert (reading.DATABASE, reading.LOCK) == (DATABASE, LOCK)
    assert places.DEFAULT_DATA == DEFAULT_DATA
    assert tokens.DEFAULT_TENANT == operations.DEFAULT_TENANT


@pytest.mark.parametrize("name", EXIT_CODES)
def test_an_error_with_an_exit_code_exists(name: str) -> None:
    module, _, kind = name.rpartition(".")
    assert issubclass(getattr(__import__(module, fromlist=[kind]), kind), Exception)


def test_an_error_that_is_not_ours_has_no_exit_code() -> None:
    assert main.exit_code(ZeroDivisionError()) is None


@pytest.mark.parametrize("word", ["data", "'data'", "{data", "listen: x\n  data"])
def test_the_file_is_asked_for_the_data_directory(root: Path, word: str) -> None:
    assert places._SAYS_DATA.search(f"# nothing\n{word}: state\n")
    assert not places._SAYS_DATA.search("# data: ~/.pullcord\n  # data\nlisten: x\n")


def test_the_data_directory_of_the_file_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULLCORD_DATA")
    (root / "config" / "pullcord.yaml").write_text("data: ../state\n", "utf-8")
    assert places.data_directory(None) == root / "config" / ".." / "state"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain text, ünïcödé, 漢字, 🙂", "plain text, ünïcödé, 漢字, 🙂"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("a\u200bb\u2066c\ufeff", "a\\u200bb\\u2066c\\ufeff"),
        ("\ud800", "\\ud800"),
        ("line\u2028separator", "line\\u2028separator"),
    ],
)
def test_text_of_the_world_cannot_command_a_terminal(text: str, shown: str) -> None:
    assert terminal.escaped(text) == shown


@pytest.mark.parametrize(
    "seconds, shown",
    [(0.4, "0s"), (61, "1m 1s"), (3600, "1h"), (90_061, "1d 1h"), (86_405, "1d 5s")],
)
def test_a_span_has_two_units_at_most(seconds: float, shown: str) -> None:
    assert terminal.span(seconds) == shown


# ---------------------------------------------------------------------------- another version runs

OF_THE_FIRST = {
    "proxy_pid": 1,
    "up_seconds": 60,
    "listening": "127.0.0.1:8640",
    "identity": "token",
    "policy": {"digest": "0" * 64, "source": "policy.yaml", "error": None},
    "ledger": {"error": None},
    "clock": {"stepped_seconds": 0},
    "fleet": {"engines": 1, "runs": 0, "calls_per_minute": 0, "refused_per_minute": 0}
    | {"cost_usd_per_hour": 0.0},
    "pulled": [],
    "halt_file": None,
    "calls": [],
}


def test_the_status_of_an_older_proxy_is_what_it_tells(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status._say_up(OF_THE_FIRST)
    told = capsys.readouterr().out
    assert "the proxy that runs is older than this command; restart it" in told
    assert "pulled  nothing" in told


# ---------------------------------------------------------------------------- before it starts


def test_a_ledger_without_its_keys_is_told_at_the_start(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving._warn_of_keys(root / "data")
    serving._warn_of_keys(root / "none")
    assert capsys.readouterr().err == ""
    (root / "data" / "private" / "vault.key").unlink()
    serving._warn_of_keys(root / "data")
    assert "THE KEYS ARE MISSING" in capsys.readouterr().err


def test_a_place_for_seals_that_is_not_there_is_told_at_the_start(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving._warn_of_places(("syslog", "https://host.example/x", str(root / "seals")))
    assert capsys.readouterr().err == ""
    serving._warn_of_places((str(root / "no" / "seals"),))
    assert f"there is no directory {root}/no" in capsys.readouterr().err


def test_things_are_counted_in_words() -> None:
    counts = [terminal.counted(1, "body"), terminal.counted(12, "body"), terminal.counted(0, "row")]
    assert counts == ["1 body", "12 bodies", "0 rows"]
