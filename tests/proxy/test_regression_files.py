"""The files of an exported incident: the same twice, and told by file and line where they are not
as they were."""

import json
import shutil
from pathlib import Path

import pytest

from policies.document import MistakenFileError
from proxy import regression_files as files
from proxy.regression import judged, policy_in
from proxy.regression_files import read
from proxy.regression_folder import RegressionError
from tests.proxy.exporting import exported, typed
from tests.proxy.runaway import FEW, refunded


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and the test of its incident in `out`."""
    folder = tmp_path_factory.mktemp("made")
    exported(folder / "data", refunded(folder / "data"), FEW, folder / "out")
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of the test, to be spoiled."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text("utf-8").splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_text("".join(lines), "utf-8")


def test_what_is_exported_twice_is_the_same(made: Path, out: Path, tmp_path: Path) -> None:
    incident = json.loads((out / files.INCIDENT).read_text("utf-8"))
    other = exported(made / "data", incident["id"], FEW, tmp_path / "other")
    assert contents(out) == contents(other)
    assert files.digest_of(out) == files.digest_of(other)
    assert sorted(contents(out)) == sorted(
        [
            *("incident.json", "calls.jsonl", "healthy.jsonl", "policy.yaml", "before.yaml"),
            *("expect.yaml", f"test_incident_{incident['id'].replace('-', '_')}.py"),
        ]
    )


def test_it_is_written_again_over_itself_but_for_what_is_expected(made: Path, out: Path) -> None:
    (out / files.EXPECT).write_text("contained_by: {call: 7}\n", "utf-8")
    incident = read(out).incident["id"]
    assert exported(made / "data", incident, FEW, out) == out
    assert read(out).expected == files.Expected(7)


@pytest.mark.parametrize("name", [files.CALLS, files.HEALTHY])
def test_a_changed_line_is_told(out: Path, name: str) -> None:
    changed(out / name, 3, '"run":"', '"run":"x')
    with pytest.raises(RegressionError, match=rf"{name}:3: it is not as it was exported"):
        read(out)


def test_lines_that_are_missing_are_told(out: Path) -> None:
    lines = (out / files.CALLS).read_bytes().splitlines(keepends=True)
    (out / files.CALLS).write_bytes(b"".join(lines[:-2]))
    with pytest.raises(
        RegressionError, match=rf"{files.CALLS}:{len(lines) - 2}: lines are missing"
    ):
        read(out)


@pytest.mark.parametrize(
    "name, text, says",
    [
        (files.CALLS, '{"seq":', "calls.jsonl:1: it is no JSON"),
        (files.CALLS, "[]", "calls.jsonl:1: it is no JSON object"),
        (files.INCIDENT, '{\n"a": }', "incident.json:2: it is no JSON"),
        (files.INCIDENT, '{"format": 99}', "its format is 99"),
        (files.BEFORE, "version: 1\n", "before.yaml: it is not as it was exported"),
        (files.EXPECT, "contained_by: {cal: 3}\n", "expect.yaml:1:16: there is no 'cal'"),
        (files.EXPECT, "contained_by: {call: soon}\n", "expect.yaml:1:22: 'soon' is no number"),
        (files.EXPECT, "false_trips: 0\n", "expect.yaml:1:1: name at least one of call"),
        (files.EXPECT, "a: [\n", "expect.yaml:2:1"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_place(
    out: Path, name: str, text: str, says: str
) -> None:
    (out / name).write_text(text, "utf-8")
    result = typed("replay", str(out))
    assert result.exit_code == 2, result.output
    assert says in result.stderr


@pytest.mark.parametrize(
    "line, says",
    [
        ({"seq": 1, "type": "call.intent"}, "it has no 'at_us'"),
        ({"seq": 1, "type": "call.intent", "at_us": "now"}, "'at_us' is no number"),
        ({"seq": 1, "type": "x", "at_us": 1, "request_digest": "xyz"}, "is no hexadecimal"),
        ({"seq": 1, "type": "x", "at_us": 1, "body": "x"}, "no row has 'body'"),
        ({"seq": 1, "type": "call.intent", "at_us": 1, "effect": "bad"}, "is no row of a record"),
    ],
)
def test_a_row_that_nobody_recorded_is_told_by_its_line(
    out: Path, line: dict[str, object], says: str
) -> None:
    """With sums that fit, as somebody would write them who knows how."""
    told = json.loads((out / files.INCIDENT).read_text("utf-8"))
    content = files.lines([line])
    (out / files.CALLS).write_bytes(content)
    told["files"][files.CALLS] = json.loads(content)["sum"]
    (out / files.INCIDENT).write_text(json.dumps(told), "utf-8")
    with pytest.raises(RegressionError, match=f"calls.jsonl:1: .*{says}"):
        judged(case := read(out), policy_in(case))


def test_money_is_compared_exactly(out: Path) -> None:
    (out / files.EXPECT).write_text('contained_by: {dollar: "0.04", second: 2.9999}\n', "utf-8")
    found = judged(case := read(out), policy_in(case))
    assert [check.kept for check in found.checks] == [True, False, True]


@pytest.mark.parametrize("make", ["file", "full", "other"])
def test_it_is_not_written_over_anything_else(out: Path, tmp_path: Path, make: str) -> None:
    there = tmp_path / "there"
    if make == "file":
        there.write_text("mine", "utf-8")
    else:
        there.mkdir()
        told = {**json.loads((out / files.INCIDENT).read_text("utf-8")), "id": "another"}
        text = "mine" if make == "full" else json.dumps(told)
        name = "mine.txt" if make == "full" else files.INCIDENT
        (there / name).write_text(text, "utf-8")
    before = there.read_bytes() if make == "file" else contents(there)
    with pytest.raises(RegressionError, match=r"no directory|not empty|another incident"):
        files.write(there, {files.CALLS: b""}, "i1")
    assert before == (there.read_bytes() if make == "file" else contents(there))


def test_a_mistaken_expectation_is_a_mistaken_file(out: Path) -> None:
    (out / files.EXPECT).write_text("contained_by: [1]\n", "utf-8")
    with pytest.raises(MistakenFileError, match="write it as a mapping"):
        read(out)
