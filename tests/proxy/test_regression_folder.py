"""A test of an incident that came from elsewhere: nothing is read or written by way of a link, and
whatever stands in its files is told by file and line."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from proxy import regression_files as files
from proxy.pytest_plugin import Replay
from proxy.regression_folder import RegressionError
from tests.proxy.exporting import typed

EXPORTED = Path(__file__).resolve().parent.parent / "incidents" / "refunds"
ALL = ("incident.json", "calls.jsonl", "healthy.jsonl", "before.yaml", "policy.yaml", "expect.yaml")
SECRET = "root:x:0:0: nobody may print this"
ANSWER = {"method": "GET", "host": "a", "path": "/", "body": "", "status": 200, "text": "",
          "headers": []}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    there = tmp_path / "out"
    there.mkdir()
    for one in EXPORTED.iterdir():
        if one.is_file():
            shutil.copy(one, there)
    return there


def refused(out: Path, *words: str) -> str:
    """What the command says, which the plugin says, too."""
    result = typed("replay", str(out), *words)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if not words:
        with pytest.raises(pytest.fail.Exception) as failed:
            Replay(out).check()
        assert str(failed.value) in result.stderr
    return result.stderr


def changed(out: Path, **told: Any) -> None:
    """incident.json, as somebody would write it who knows how."""
    before = json.loads((out / files.INCIDENT).read_text("utf-8"))
    text = json.dumps({**before, **told}, sort_keys=True, indent=2)
    (out / files.INCIDENT).write_text(text, "utf-8")


def recorded(out: Path, name: str, *lines: dict[str, Any]) -> None:
    """Lines with sums that fit."""
    content = files.lines(lines)
    (out / name).write_bytes(content)
    told = json.loads((out / files.INCIDENT).read_text("utf-8"))["files"]
    changed(out, files={**told, name: json.loads(content.splitlines()[-1])["sum"]})


def row(**told: Any) -> dict[str, Any]:
    return {"seq": 1, "type": "call.intent", "at_us": 1, "call_id": "c", "tool": "refunds.create",
            "effect": "write", "run": "r1", "tenant": "x", "decision": "allow",
            "reason": "allowed", **told}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_no_file_is_read_through_a_link(out: Path, tmp_path: Path, name: str) -> None:
    """Its mistakes would print what stands in the file."""
    elsewhere = tmp_path / "shadow"
    elsewhere.write_text(SECRET, "utf-8")
    (out / name).unlink()
    (out / name).symlink_to(elsewhere)
    said = refused(out)
    assert f"{name}: it is a link" in said
    assert "nobody may print" not in said


def test_no_answer_is_read_through_a_link(out: Path, tmp_path: Path) -> None:
    (out / files.RESPONSES).symlink_to(tmp_path / "nothing")
    assert "responses.jsonl: it is a link" in refused(out, "--serve")


@pytest.mark.parametrize("name", ALL)
def test_a_pipe_or_a_directory_is_no_file_of_a_test(out: Path, name: str) -> None:
    (out / name).unlink()
    os.mkfifo(out / name)
    assert f"{name}: it is no plain file" in refused(out)
    (out / name).unlink()
    (out / name).mkdir()
    assert f"{name}: it is no plain file" in refused(out)


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_utf_8_is_told_by_its_place(out: Path, name: str) -> None:
    content = (out / name).read_bytes().splitlines(keepends=True)
    (out / name).write_bytes(b"".join((content[0], b"  \xff\n", *content[1:])))
    assert f"{name}:2" in refused(out)


@pytest.mark.parametrize("name", ["incident.json", "calls.jsonl", "healthy.jsonl"])
@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 200_000, '{"a": "\\ud800"}', "1" * 9_999]
)
def test_what_nests_too_deep_or_is_no_text_is_told(out: Path, name: str, text: str) -> None:
    (out / name).write_text(text, "utf-8")
    assert f"{name}:1: it is" in refused(out)


@pytest.mark.parametrize(
    "told, says",
    [
        ({"tools": [{}]}, "'tools' is not as it was exported"),
        ({"tools": {"a": "b"}}, "'tools' is not as it was exported"),
        ({"releases": [[1]]}, "'releases' is not as it was exported"),
        ({"policies": {"x": 5}}, "'policies' is not as it was exported"),
        ({"policies": {"x": "y"}}, "policy x is not the one"),
        ({"files": {"before.yaml": []}}, "'files' is not as it was exported"),
        ({"first": True}, "'first' is not as it was exported"),
        ({"first": -(10**30)}, "it has no row -1000"),
        ({"before": 1}, "'before' is not as it was exported"),
        ({"before": "zz"}, "policy zz is not the one"),
        ({"format": [[]]}, "its format is 'list'"),
        ({"format": True}, "its format is True"),
        ({"id": 7}, "'id' is not as it was exported"),
    ],
)
def test_what_is_no_incident_is_told(out: Path, told: dict[str, Any], says: str) -> None:
    changed(out, **told)
    assert says in refused(out)


def test_a_wrong_member_is_told_by_its_line(out: Path) -> None:
    changed(out, tools=[1])
    text = (out / files.INCIDENT).read_text("utf-8").splitlines()
    line = next(number for number, said in enumerate(text, 1) if '"tools"' in said)
    assert f"incident.json:{line}: 'tools'" in refused(out)


@pytest.mark.parametrize(
    "told, says",
    [
        ({"at_us": 2**62}, "1: 'at_us' is no number of a record"),
        ({"at_us": -1}, "1: 'at_us' is no number of a record"),
        ({"status": 10**400}, "1: 'status' is no number of a record"),
        ({"run": ["r1"]}, "1: 'run' is no text of a record"),
        ({"seen": "[]"}, "1: 'seen' is no JSON object"),
        ({"seen": "[" * 5_000}, "1: 'seen' is no JSON"),
        ({"seen": '{"used_microusd":"x"}'}, "1: 'used_microusd' in 'seen' is no number"),
        ({"seen": '{"arguments":5}'}, "1: it is no row of a record"),
        ({"effect": "nonsense"}, "1: it is no row of a record"),
    ],
)
@pytest.mark.parametrize("name", ["calls.jsonl", "healthy.jsonl"])
def test_a_row_that_nobody_recorded_is_told(
    out: Path, name: str, told: dict[str, Any], says: str
) -> None:
    recorded(out, name, row(**({"seq": 999} if name == files.HEALTHY else {}), **told))
    assert f"{name}:{says}" in refused(out)


def test_rows_that_are_not_in_their_order_are_told(out: Path) -> None:
    recorded(out, files.HEALTHY, row(seq=2), row(seq=2))
    assert "healthy.jsonl:2: row 2 is not where it belongs" in refused(out)


@pytest.mark.parametrize(
    "text, says",
    [
        ("contained_by: {call: [1]}\n", "expect.yaml:1:22: '[1]' is no number"),
        ("contained_by: {call: {a: 1}}\n", "is no number"),
        ("contained_by: {call: 1e99999999999999999999}\n", "is no number"),
        ("contained_by: {call: NaN}\n", "'NaN' is no number"),
        ("contained_by: {call: 1}\nfalse_trips: [[[]]]\n", "expect.yaml:2:14"),
        ("[" * 9_999, "nested more than"),
        ("contained_by: !!python/object/apply:os.system ['x']\n", "expect.yaml:1:15: the tag"),
    ],
)
def test_a_wrong_expectation_is_told(out: Path, text: str, says: str) -> None:
    (out / files.EXPECT).write_text(text, "utf-8")
    assert says in refused(out)


@pytest.mark.parametrize(
    "told",
    [{"status": 10**30}, {"status": 0}, {"headers": ["ab"]}, {"headers": [[1, "x"]]}, {"text": []}],
)
def test_an_answer_that_nobody_recorded_is_told(out: Path, told: dict[str, Any]) -> None:
    recorded(out, files.RESPONSES, ANSWER, {**ANSWER, **told})
    said = refused(out, "--serve")
    assert f"responses.jsonl:2: {next(iter(told))!r} is not as it should be" in said


def written(there: Path, **more: bytes) -> None:
    incident = json.loads((EXPORTED / files.INCIDENT).read_text("utf-8"))["id"]
    files.write(there, {files.POLICY: b"version: 1\n", files.INCIDENT: b"{}", **more}, incident)


OWN = next(path.name for path in EXPORTED.glob("test_*.py"))


@pytest.mark.parametrize("name", [*ALL, "responses.jsonl", OWN, "mine.txt"])
def test_it_is_not_written_where_a_link_stands(out: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious", "utf-8")
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(victim)
    before = sorted(out.iterdir())
    with pytest.raises(RegressionError, match=r"is a link|no plain file of this test"):
        written(out)
    assert (victim.read_text("utf-8"), sorted(out.iterdir())) == ("precious", before)


def test_what_another_name_of_the_file_holds_stays(out: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious", "utf-8")
    (out / files.POLICY).unlink()
    os.link(victim, out / files.POLICY)
    written(out)
    assert (out / files.POLICY).read_text("utf-8") == "version: 1\n"
    assert victim.read_text("utf-8") == "precious"


def test_it_is_not_written_into_what_a_link_leads_to(out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(out)
    before = (out / files.POLICY).read_bytes()
    with pytest.raises(RegressionError, match="is a link; name the directory itself"):
        written(tmp_path / "link")
    assert (out / files.POLICY).read_bytes() == before


def test_what_pytest_leaves_in_it_is_no_stranger(out: Path) -> None:
    (out / "__pycache__").mkdir()
    written(out)
    assert (out / files.INCIDENT).read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["notes.txt", "conftest.py", "test_incident_00000000.py"])
def test_it_is_not_written_beside_what_is_not_its_own(out: Path, name: str) -> None:
    (out / name).write_text("mine", "utf-8")
    with pytest.raises(RegressionError, match=f"holds {name}, which is no plain file of this test"):
        written(out)
    assert (out / name).read_text("utf-8") == "mine"
