"""A hostile agent beside the proxy: what it reaches as the same user, as another, and contained.

About 6 seconds. Needs Linux with user namespaces, and root for the other user; where CI runs,
missing either is a failure.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.end_to_end.beside import AS_ROOT, KEEPING, Beside, missing, python_for_all, standing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc and namespaces are Linux's"),
]


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with standing(tmp_path_factory.mktemp("origin")) as stood:
        yield stood


@pytest.fixture(scope="module")
def reached(beside: Beside) -> dict[str, Any]:
    """What the agent told, by how it was kept."""
    told, python = {}, python_for_all()
    for keeping in KEEPING:
        if keeping in AS_ROOT and os.geteuid() != 0:
            continue
        facts = {**beside.facts, "gentle": keeping == "same user"}
        (beside.work / "facts.json").write_text(json.dumps(facts))
        (beside.proxy.folder / "data" / "decoy").touch(0o600)
        with (beside.proxy.folder / "data" / "ledger.db").open("rb") as leaked:
            os.set_inheritable(leaked.fileno(), True)
            ended = beside.run(
                keeping, python, "hostile.py", "facts.json", pass_fds=[leaked.fileno()]
            )
        assert ended.returncode == 0, (keeping, ended.stderr)
        told[keeping] = json.loads(ended.stdout)
    return told


def test_the_hostile_agent_reaches_what_the_table_says(reached: dict[str, Any]) -> None:
    """Prints it: `pytest -s`."""
    names = [(group, name) for group, name, *_ in reached["same user"]["tried"]]
    print("\n" + " " * 47 + "".join(f"{keeping:<20}" for keeping in reached))
    for index, (group, name) in enumerate(names):
        cells = [reached[keeping]["tried"][index] for keeping in reached]
        marks = ["REACHED" if cell[2] else "-" for cell in cells]
        if cells[0][3] == "not tried":
            marks[0] = "(not tried)"
        print(f"{group:<7} {name:<38} " + "".join(f"{mark:<20}" for mark in marks))
    for keeping, told in reached.items():
        assert told["proxied"].startswith("200 "), (keeping, told["proxied"])
        assert len(told["tried"]) == len(names)


def got(told: dict[str, Any], *groups: str) -> dict[str, str]:
    return {name: how for group, name, how, _ in told["tried"] if how and group in groups}


def test_another_user_reaches_no_file_socket_or_process_of_the_proxy(
    reached: dict[str, Any],
) -> None:
    if "other user" not in reached:
        missing("only root can start agents as other users")
    assert got(reached["other user"], "file", "socket", "proc") == {}


@pytest.mark.parametrize("keeping", ["contained", "contained, by root"])
def test_a_contained_agent_reaches_nothing(reached: dict[str, Any], keeping: str) -> None:
    if keeping not in reached:
        missing("only root can start agents as other users")
    assert got(reached[keeping], "file", "socket", "proc", "route") == {}
    assert reached[keeping]["uid"] != 0


def test_the_same_user_reaches_what_there_is_to_reach(reached: dict[str, Any]) -> None:
    """The other half: each attempt is one that succeeds where nothing keeps the agent from it."""
    found = got(reached["same user"], "file", "socket", "proc", "route")
    for name in ("read DATA/operator.token", "read DATA/private/vault.key", "list DATA/private"):
        assert name in found
    for name in ("ask DATA/control.sock", "change the policy", "signal 0 to PID", "UDP"):
        assert name in found
    assert "TCP to the upstream" in found
