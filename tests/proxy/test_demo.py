"""The demo, as a program: contained, told in figures that agree, and failing without its limits."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from policies.call import Effect
from policies.verdict import Reason
from proxy.clock import SystemClock
from proxy.demo import agent, figures, main
from proxy.demo.figures import NOTES, REFUNDS, RUN, TENANT, Figures
from proxy.demo.upstream import Arrival, Upstream

ROOT = Path(__file__).parents[2]
POLICY = main.POLICY.read_text("utf-8")
# As in a terminal, also where what began the tests had Ctrl-C ignored.
HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
PLAY = (
    "import sys; from proxy.demo.main import run; sys.exit(run({fast}, sys.stdin.read() or None))"
)
SECONDS_MAX = 60.0
SECONDS = re.compile(r"[ \d]*\d\.\d+ s\b")


def _started(tmp_path: Path, *, fast: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"{HEARD}; {PLAY.format(fast=fast)}"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _played(tmp_path: Path, policy_text: str = "") -> tuple[int, str]:
    """Exit code and output of `--fast`. The agent holds stderr too: its end is waited for."""
    with _started(tmp_path, fast=True) as demo:
        out, errors = demo.communicate(policy_text, timeout=SECONDS_MAX)
    assert errors == ""
    return demo.returncode, out


@pytest.mark.slow
def test_the_runaway_agent_is_contained_and_the_printed_ledger_command_shows_it(tmp_path: Path):
    """About 4 seconds."""
    code, out = _played(tmp_path)
    assert code == 0, out
    lines = {line[:20].strip(): line[20:].strip() for line in out.splitlines()}
    assert lines["effects let through"] == "6 counted upstream, 6 in the ledger"
    assert lines["calls"] == "35 asked for, 20 reached the upstream, all tagged"
    assert lines["refunds"] == "17 asked for, 5 made ($245.00), 0 made twice"
    assert lines["replays"] == "6 answered from the record, none sent again"
    assert lines["refusals"] == "9 (4 halted, 5 over_ceiling)"
    assert lines["time to contain"].endswith("(ceiling:e1c43c2d16)")
    assert "tagged X-Run-Id: demo-agent, X-Tenant-Id: acme, no token" in out

    *_, up, env, query, remove = (line.strip() for line in out.splitlines())
    program, *arguments = shlex.split(query)
    assert Path(program).name == "pullcord"
    assert [up, env] == [f"{program} up", f'eval "$({program} env --run NAME)"']
    typed = [sys.executable, "-c", "from proxy.cli.main import main; main()", *arguments]
    told = subprocess.run(
        [*typed, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert len(told.stdout.splitlines()) == 35

    shown = [SECONDS.sub("0 s", line) for line in out.splitlines()]
    excerpt = [SECONDS.sub("0 s", line) for line in readme_excerpt()]
    assert set(excerpt) <= set(shown)
    rows = [line for line in excerpt if line.startswith("0 s")]
    assert len(rows) >= 6
    rest = iter(shown)
    assert all(line in rest for line in rows)  # in this order

    assert list(tmp_path.iterdir()) == [Path(shlex.split(remove)[-1])]
    subprocess.run(shlex.split(remove), check=True)
    assert list(tmp_path.iterdir()) == []


def readme_excerpt() -> list[str]:
    """README's lines of the demo's output, but for the dots between them."""
    readme = (ROOT / "README.md").read_text("utf-8")
    block = readme.partition("## The demo")[2].split("```")[1]
    return [line for line in block.strip("\n").splitlines() if line != "..."]


LIMITS_TAKEN_OUT = {
    "the writes ceiling": ("  - {per: run, tool:", "  # ", "made 7 refunds; the limit is 5"),
    "the halt": ("  - {per: run, count: calls", "  # ", "the run was never halted"),
    "the same-body rule": (
        "{header: Idempotency-Key}",
        "{header: Idempotency-Key, same_body: allow}",
        "the upstream refunded ch_1001 more than once",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS_TAKEN_OUT)
def test_without_a_limit_it_ends_by_itself_and_fails_in_a_sentence(tmp_path: Path, limit: str):
    """About 4 seconds each."""
    stated, instead, sentence = LIMITS_TAKEN_OUT[limit]
    assert POLICY.count(stated) == 1
    code, out = _played(tmp_path, POLICY.replace(stated, instead))
    assert code == 1
    assert "WRONG: " in out
    assert sentence in out


@pytest.mark.slow
def test_ctrl_c_ends_the_agent_too_and_leaves_nothing_behind(tmp_path: Path):
    """About 4 seconds."""
    with _started(tmp_path, fast=False) as demo:
        assert demo.stdin is not None
        assert demo.stdout is not None
        demo.stdin.close()
        demo.stdin = None
        for line in demo.stdout:
            if " ALLOW " in line:
                break
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=SECONDS_MAX)
    assert demo.returncode == 130
    assert errors == "\npullcord: the demo was broken off; nothing of it is left\n"
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- the figures


HALTED_US = 2_000_000


def _upstream() -> Upstream:
    upstream = Upstream(SystemClock())
    upstream.arrivals = [Arrival(1_000_000, RUN, TENANT, has_credentials=False)]
    upstream.refunds = [f"ch_{number}" for number in range(REFUNDS)]
    upstream.notes = ["refunded"] * NOTES
    return upstream


FIGURES = Figures(
    calls=35,
    allowed=1,
    refunds_asked=17,
    effects=REFUNDS + NOTES,
    open_or_unknown=0,
    replays=agent.RETRIES,
    refusals={Reason.OVER_CEILING: 6, Reason.HALTED: 3},
    halt_rule="ceiling:c1",
    halted_us=HALTED_US,
    contained_seconds=1.0,
    after_halt=Counter({(effect, Reason.HALTED): 1 for effect in Effect}),
)


def _told(figures_: Figures, upstream: Upstream, code: int | None = agent.STOPPED) -> list[str]:
    return list(figures.mistakes(figures_, upstream, code, 5.0))


def test_sound_figures_are_no_mistake():
    assert _told(FIGURES, _upstream()) == []


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"effects": 5}, "the upstream made 6 effects, the ledger has 5"),
        ({"allowed": 2}, "1 calls reached the upstream, the ledger let 2 through"),
        ({"replays": 5}, "5 repeats were answered from the record, not 6"),
        ({"open_or_unknown": 1}, "1 calls that were let through did not end as done"),
        ({"refusals": {Reason.HALTED: 3}}, "no call was told that a ceiling is reached"),
        ({"halted_us": None}, "the run was never halted"),
        ({"contained_seconds": 5.1}, "it took 5.1 s to contain; it may take 5 s"),
        ({"contained_seconds": None}, "it took None s to contain; it may take 5 s"),
        (
            {"after_halt": FIGURES.after_halt + Counter([(Effect.READ, Reason.ALLOWED)])},
            "1 calls after the halt were not refused as halted",
        ),
        (
            {"after_halt": FIGURES.after_halt - Counter([(Effect.READ, Reason.HALTED)])},
            "no read call was refused as halted after the halt",
        ),
    ],
)
def test_a_figure_of_the_ledger_that_is_off_is_told(change: dict, sentence: str):
    assert _told(replace(FIGURES, **change), _upstream()) == [sentence]


@pytest.mark.parametrize(
    "arrival, sentence",
    [
        (
            Arrival(HALTED_US + 1, RUN, TENANT, has_credentials=False),
            "1 calls reached the upstream after the halt",
        ),
        (
            Arrival(1, RUN, "", has_credentials=False),
            "1 of 2 calls arrived without their run and tenant",
        ),
        (Arrival(1, RUN, TENANT, has_credentials=True), "the run's token reached the upstream"),
    ],
)
def test_a_call_that_should_not_have_arrived_so_is_told(arrival: Arrival, sentence: str):
    upstream = _upstream()
    upstream.arrivals.append(arrival)
    assert _told(replace(FIGURES, allowed=2), upstream) == [sentence]


def test_an_effect_that_the_ledger_does_not_know_is_told():
    upstream = _upstream()
    upstream.refunds.append("ch_0")
    assert _told(FIGURES, upstream) == [
        "the upstream made 6 refunds; the limit is 5",
        "the upstream refunded ch_0 more than once",
        "the upstream made 7 effects, the ledger has 6",
    ]


def test_an_agent_that_nobody_stopped_is_told():
    assert _told(FIGURES, _upstream(), code=0) == [
        "the agent did not stop because it was told to (exit code 0)"
    ]
