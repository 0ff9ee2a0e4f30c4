"""How long a child may take to be ready: a silent one is ended, one that says it is busy is not."""

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from proxy import supervisor
from proxy.settings import Settings
from proxy.supervisor import BUSY, READY, START_SECONDS
from tests.ledger.test_pieces import applied, older

ROOT = Path(__file__).parents[2]


@pytest.fixture
def later(monkeypatch):
    """Moves the loop's clock on."""
    loop = asyncio.new_event_loop()
    ahead_seconds = [0.0]
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + ahead_seconds[0])

    def move(seconds):
        ahead_seconds[0] += seconds

    yield SimpleNamespace(loop=loop, by=move)
    loop.close()


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_child_that_says_it_is_busy_has_time(later):
    async def heard():
        output = asyncio.StreamReader()
        word = asyncio.ensure_future(supervisor._last_word(output))
        for _ in range(20):
            await turns()
            later.by(START_SECONDS - 1)
            output.feed_data(f"{BUSY}\n".encode())
        await turns()
        output.feed_data(f"{READY}\n".encode())
        return await word

    assert later.loop.run_until_complete(heard()) == READY


@pytest.mark.parametrize("words", [0, 3])
def test_a_child_that_falls_silent_has_none(later, words):
    async def heard():
        output = asyncio.StreamReader()
        word = asyncio.ensure_future(supervisor._last_word(output))
        for _ in range(words):
            output.feed_data(f"{BUSY}\n".encode())
            await turns()
        await turns()
        later.by(START_SECONDS + 1)
        await word

    with pytest.raises(TimeoutError):
        later.loop.run_until_complete(heard())


def test_a_child_that_says_why_it_cannot_is_heard(later):
    async def heard():
        output = asyncio.StreamReader()
        output.feed_data(f"{BUSY}\ndecider: no\n".encode())
        return await supervisor._last_word(output)

    assert later.loop.run_until_complete(heard()) == "decider: no"


def as_child(patches, *arguments, handles=()):
    """A real child, with some of its constants changed."""
    code = (
        "import sys; from proxy import child, upgrading; from ledger import chain; "
        f"{patches}; sys.exit(child.main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=handles,
        text=True,
        cwd=ROOT,
    )


def told_settings(tmp_path):
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    settings = Settings(config=tmp_path, data=tmp_path / "data", listen="127.0.0.1:0")
    return settings.model_dump_json()


def test_an_engine_says_that_it_waits_for_the_decider(tmp_path):
    (tmp_path / "data").mkdir()
    patches, told = "child.BUSY_SECONDS = 0.01", told_settings(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        handle = listener.fileno()
        with as_child(patches, "engine", str(handle), told, handles=(handle,)) as child:
            assert [child.stdout.readline() for _ in range(3)] == [f"{BUSY}\n"] * 3
            child.kill()


def test_a_decider_says_that_it_brings_the_ledger_up_to_date(tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    older(data)
    patches = "upgrading.TOLD_SECONDS = 0; chain.ROWS_IN_A_PIECE = 100"
    child = as_child(patches, "decider", "127.0.0.1:1", told_settings(tmp_path))
    with child:
        said: list[str] = []
        while not said or said[-1] == f"{BUSY}\n":
            said.append(child.stdout.readline())
        assert said[-1] == f"{READY}\n"
        assert len(said) > 10
        child.terminate()
        log = [json.loads(line) for line in child.stderr]
    told = [line["told"] for line in log if line["event"] == "ledger.upgrading"]
    assert "bringing the ledger up to date: 900 of 1,000 rows" in told
    assert applied(data)[-1] >= "0007"
