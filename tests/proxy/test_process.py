"""Processes are known by number and start time, and only the one that is meant is killed."""

import gc
import os
import subprocess
import sys

import pytest

from ledger.records import Worker
from proxy import process

SLEEP = (sys.executable, "-c", "import sys; sys.stdin.read()")


def worker(pid, started=None):
    return Worker("w1", pid, process.started(pid) if started is None else started, 0)


def test_a_living_process_is_known_by_its_start():
    me = os.getpid()
    assert process.lives(worker(me))
    assert not process.lives(worker(me, "1"))


def test_a_process_without_a_start_time_is_none():
    assert not process.lives(worker(os.getpid(), ""))


def test_a_killed_process_is_gone_before_anybody_has_waited_for_it():
    with subprocess.Popen(SLEEP, stdin=subprocess.PIPE) as child:
        known = worker(child.pid)
        assert process.lives(known)
        process.kill(known)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it ends, and is not collected
        assert not process.lives(known)
        assert child.wait() == -9


def test_a_stopped_process_is_killed_too():
    with subprocess.Popen(SLEEP, stdin=subprocess.PIPE) as child:
        os.kill(child.pid, 19)
        process.kill(worker(child.pid))
        assert child.wait() == -9


def test_another_process_with_the_number_is_left_alone():
    with subprocess.Popen(SLEEP, stdin=subprocess.PIPE) as child:
        process.kill(worker(child.pid, "12345"))
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait() == 0


def test_a_process_that_is_long_gone_is_no_error():
    with subprocess.Popen(SLEEP, stdin=subprocess.DEVNULL) as child:
        known = worker(child.pid)
    process.kill(known)
    assert not process.lives(known)


def test_what_was_built_before_is_left_out_of_later_collections():
    before = gc.get_freeze_count()
    try:
        process.settle_heap()
        assert gc.get_freeze_count() > before + 1_000
        assert len(gc.get_objects()) < 1_000
    finally:
        gc.unfreeze()


SERVING = """
import asyncio, os, signal, sys, threading
from proxy import process

threading.Thread(target=threading.Event().wait, daemon=True).start()

async def main():
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in process.HEEDED:
        loop.add_signal_handler(number, asked.set)
    os.kill(os.getpid(), signal.SIGTERM)
    await asked.wait()
    assert type(loop).__module__.startswith("uvloop") is fast
    return 7

fast = sys.argv[1] == "fast"
code = process.serve(main(), fast=fast)
for number in process.HEEDED:
    os.kill(os.getpid(), number)
sys.exit(code)
"""


@pytest.mark.parametrize("loop", ["usual", "fast"])
def test_whoever_asks_again_while_it_ends_changes_nothing(loop):
    command = [sys.executable, "-c", SERVING, loop]
    ended = subprocess.run(command, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (7, b"")
