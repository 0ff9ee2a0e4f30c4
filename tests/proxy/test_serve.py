"""The policy file on disk: edits are taken, bad ones keep the last good policy and show red."""

import asyncio
import os
import socket

import pytest

from policies.load import PolicyError
from policies.verdict import Level, Scope
from proxy.deciding import PolicyFile
from proxy.listening import StartError
from proxy.serve import running
from proxy.settings import Settings

GOOD = "version: 1\ntools: {a: {match: {host: a.test}}}\n"
BAD = "version: 1\ntoolz: {}\n"


@pytest.fixture
def file(tmp_path):
    (tmp_path / "policy.yaml").write_text(GOOD)
    return tmp_path / "policy.yaml"


def test_an_edit_is_seen_once(file):
    policy = PolicyFile(file, "keep")
    assert policy.changed() is None
    file.write_text(GOOD.replace("a.test", "b.example"))
    assert policy.changed() is policy.good
    assert "b.example" in policy.good.by_host
    assert policy.changed() is None


def test_a_replaced_file_of_the_same_size_and_time_is_seen(file, tmp_path):
    policy = PolicyFile(file, "keep")
    stamp = file.stat()
    other = tmp_path / "other"
    other.write_text(GOOD.replace("a.test", "b.test"))
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.replace(other, file)
    assert policy.changed() is not None


@pytest.mark.parametrize("text", [BAD, "", "version: [", None], ids=str)
def test_a_bad_edit_keeps_the_last_good_policy_and_tells_why(file, text):
    policy = PolicyFile(file, "keep")
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    good = policy.good
    assert policy.changed() is None
    assert policy.good is good
    assert "policy.yaml" in (policy.error or "")
    file.write_text(GOOD)
    assert policy.changed() is not None
    assert policy.error is None


def test_a_bad_edit_may_freeze_all_writes_until_it_is_mended(file):
    policy = PolicyFile(file, "freeze")
    file.write_text(BAD)
    frozen = policy.changed()
    assert frozen is not None
    assert frozen.pulls[Level.FREEZE, Scope.GLOBAL, ""].at_us == file.stat().st_ctime_ns // 1_000
    file.write_text(GOOD)
    mended = policy.changed()
    assert mended is not None
    assert not mended.pulls


def test_a_policy_that_goes_away_may_freeze_too_and_tells_when(file):
    policy = PolicyFile(file, "freeze")
    file.unlink()
    frozen = policy.changed()
    assert frozen is not None
    gone_us = file.parent.stat().st_ctime_ns // 1_000
    assert frozen.pulls[Level.FREEZE, Scope.GLOBAL, ""].at_us == gone_us


def test_a_pipe_in_place_of_the_policy_is_told_and_holds_nothing_up(file):
    policy = PolicyFile(file, "keep")
    file.unlink()
    os.mkfifo(file)
    assert policy.changed() is None
    assert policy.error == f"{file}: is a pipe; it must be a plain file"


def test_a_file_that_does_not_load_at_start_is_an_error(file):
    file.write_text(BAD)
    with pytest.raises(PolicyError, match=r"policy\.yaml:2:1"):
        PolicyFile(file, "keep")


async def test_a_port_in_use_is_told_in_one_sentence(file, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = Settings(config=tmp_path, data=tmp_path / "data", listen=address)
        with pytest.raises(StartError, match=f"cannot listen on {address}"):
            async with running(settings):
                pytest.fail("it started")


async def test_an_edit_is_in_force_within_a_second(file, tmp_path):
    settings = Settings(config=tmp_path, data=tmp_path / "data", listen="127.0.0.1:0")
    async with running(settings) as service:
        before = service.decider.policy
        file.write_text(GOOD + "frozen: [a]\n")
        async with asyncio.timeout(1.0):
            while service.decider.policy is before:
                await asyncio.sleep(0.01)
        assert service.decider.policy.pulls
