"""Policy files: what is told about a mistaken one (tests/cases/policy_errors.yaml), and what a
sound one compiles to."""

import hashlib
import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.call import Effect
from policies.document import BYTES_MAX
from policies.load import PolicyError, load, load_file
from policies.load_bounds import SHIPPED
from policies.policy import KeyRule, Policy
from policies.verdict import Level, Scope

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = yaml.safe_load(
    (ROOT / "tests" / "cases" / "policy_errors.yaml").read_text()
)
STARTER = (ROOT / "config" / "policy.yaml").read_text()

Build = Callable[[str], Policy]


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_mistake_is_told(row: dict[str, Any]) -> None:
    with pytest.raises(PolicyError) as told:
        load(row["text"], "policy.yaml")
    assert str(told.value) == row["says"]
    assert len(told.value.mistakes) == len(row["says"].splitlines())


def test_sentences_name_rows_once() -> None:
    assert len({named(row) for row in ROWS}) == len(ROWS)


# ---- files


def test_a_file_is_read_and_named_in_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nunlistd: allow\n")
    with pytest.raises(PolicyError, match=r"policy\.yaml:2:1: unknown key 'unlistd'") as told:
        load_file(path)
    assert str(told.value).startswith(str(path))
    path.write_bytes(b"\xef\xbb\xbfversion: 1\n")
    policy = load_file(path)
    assert (policy.source, policy.text) == (str(path), "version: 1\n")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty; it starts with 'version: 1'"),
        (b" \n\n# x\n", "is empty; it starts with 'version: 1'"),
        (b"#" * (BYTES_MAX + 1), "is larger than 1 MiB"),
        (("#" + "é" * (BYTES_MAX // 2)).encode(), "is larger than 1 MiB"),
        (b"version: 1\nx: \xff\n", "2:4: is not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("version: 1".encode("utf-16-le"), "1:2: the character U+0000 is not allowed in YAML"),
    ],
)
def test_a_file_that_is_no_policy_is_told_so(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    with pytest.raises(PolicyError) as told:
        load_file(path)
    assert str(told.value) in (f"{path}: {says}", f"{path}:{says}")


def test_a_file_that_cannot_be_read_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read: No such file or directory"):
        load_file(tmp_path / "gone.yaml")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(PolicyError, match="cannot be read: Too many levels of symbolic links"):
        load_file(tmp_path / "loop.yaml")


def test_what_is_no_plain_file_is_told_and_never_opened(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes into would stop whoever reads the policy, for ever."""
    os.mkfifo(tmp_path / "pipe")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "socket"))
    places = {
        "a pipe": tmp_path / "pipe",
        "a socket": tmp_path / "socket",
        "a device": Path("/dev/zero"),
        "a directory": tmp_path,
    }
    for kind, path in places.items():
        told: list[str] = []
        reading = Thread(target=lambda at, into: into.append(mistake_of(at)), args=(path, told))
        reading.daemon = True
        reading.start()
        reading.join(timeout=30)
        assert told == [f"{path}: is {kind}; it must be a plain file"]


def mistake_of(path: Path) -> str:
    with pytest.raises(PolicyError) as told:
        load_file(path)
    return str(told.value)


def test_a_small_file_does_not_become_a_large_one() -> None:
    """Nine lists that each hold the one before nine times: refused before it is written out."""
    lines = ["version: 1", "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(PolicyError, match="aliases repeat too much"):
        load("\n".join(lines))


def test_an_anchor_may_be_used_again() -> None:
    policy = load("""
version: 1
tools:
  a: {match: {host: &hosts [a.example, b.example], path: /x}}
  b: {match: {host: *hosts}}
""")
    assert policy.tools["b"].hosts == ("a.example", "b.example")


@given(st.text(max_size=60) | st.text(alphabet="ab:-{}[]&*!#|>'\"%@`,? \n\t01", max_size=40))
def test_any_text_is_a_policy_or_a_told_mistake(text: str) -> None:
    for whole in (text, f"version: 1\ntools:\n  a: {{match: {{host: a.example}}}}\n{text}"):
        with suppress(PolicyError):
            assert load(whole).text == whole


@given(st.data())
def test_a_policy_with_a_line_lost_or_doubled_is_a_policy_or_a_told_mistake(
    data: st.DataObject,
) -> None:
    lines = STARTER.splitlines(keepends=True)
    place = data.draw(st.integers(0, len(lines) - 1))
    cut = data.draw(st.integers(0, len(lines[place])))
    lines[place] = data.draw(st.sampled_from([lines[place] * 2, lines[place][:cut], ""]))
    with suppress(PolicyError):
        load("".join(lines))


# ---- what a policy compiles to


def test_the_starter_policy_loads() -> None:
    policy = load(STARTER, "config/policy.yaml")
    assert policy.unlisted == "refuse"
    assert {"anthropic", "openai", "stripe.charges.create", "github.read"} <= set(policy.tools)
    assert policy.ceilings


def test_the_example_of_the_schema_header_is_first() -> None:
    assert STARTER.startswith("# yaml-language-server: $schema=./policy.schema.json\n")


def test_an_empty_policy_refuses_what_is_unlisted(a_policy: Build) -> None:
    policy = a_policy("")
    assert (policy.unlisted, dict(policy.tools), dict(policy.pulls)) == ("refuse", {}, {})
    assert policy.tag_headers == ("X-Run-Id", "X-Tenant-Id")
    assert policy.ceilings_of["unlisted"] == tuple(SHIPPED.values())


def test_the_digest_is_that_of_the_text() -> None:
    text = "version: 1\n# é\n"
    assert load(text).digest == hashlib.sha256(text.encode()).hexdigest()
    assert load(text).text == text


def test_tools_keep_their_order_and_their_lines(a_policy: Build) -> None:
    policy = a_policy("""
    version: 1
    tools:
      z: {match: {host: a.example}}
      a:
        match: {host: a.example}
    """)
    assert [(tool.name, tool.order, tool.line) for tool in policy.tools.values()] == [
        ("z", 0, 4),
        ("a", 1, 5),
    ]
    assert [tool.name for tool in policy.by_host["a.example"]] == ["z", "a"]


def test_a_tool_is_all_that_its_rule_says(a_policy: Build) -> None:
    tool = a_policy("""
    tools:
      t:
        match: {host: ["*.A.example.", 10.0.0.5], method: [post, PUT], path: "/x/{id}", port: 8443}
        effect: write
        model_api: openai
        idempotency:
          {header: X-Key, missing: require, same_body: allow, same_body_seconds: 5, keep_seconds: 7}
        allow_addresses: [10.0.0.0/8, "fd00::/8"]
        tags: false
    """).tools["t"]
    assert tool.hosts == ("*.a.example", "10.0.0.5")
    assert tool.methods == frozenset({"POST", "PUT"})
    assert tool.path is not None
    assert tool.path.fullmatch("/x/1")
    assert (tool.port, tool.effect, tool.model_api) == (8443, Effect.WRITE, "openai")
    assert tool.key == KeyRule("x-key", "require", "allow", 5, 7)
    assert [str(block) for block in tool.allow_addresses] == ["10.0.0.0/8", "fd00::/8"]
    assert tool.tags is False


def test_a_tool_that_says_little_has_the_defaults(a_policy: Build) -> None:
    tool = a_policy("tools: {t: {match: {host: a.example}}}").tools["t"]
    assert (tool.methods, tool.path, tool.port, tool.effect) == (None, None, None, None)
    assert tool.key == KeyRule()
    assert tool.tags


def test_cords_of_the_policy_name_their_lines(a_policy: Build) -> None:
    policy = a_policy("""
    version: 1
    tools: {t.a: {match: {host: a.example}}, t.b: {match: {host: a.example}}}
    frozen: [t.*, unlisted]
    halted:
      global: true
      tenants: [acme]
      runs:
        - r1
        - r2
      releases: ["2026-11-20"]
      tools: [t.a]
    """)
    told = {(p.level, p.scope, p.subject): p.reason for p in policy.pulls.values()}
    assert told == {
        (Level.FREEZE, Scope.TOOL, "t.a"): "policy.yaml:4",
        (Level.FREEZE, Scope.TOOL, "t.b"): "policy.yaml:4",
        (Level.FREEZE, Scope.TOOL, "unlisted"): "policy.yaml:4",
        (Level.HALT, Scope.GLOBAL, ""): "policy.yaml:6",
        (Level.HALT, Scope.TENANT, "acme"): "policy.yaml:7",
        (Level.HALT, Scope.RUN, "r1"): "policy.yaml:9",
        (Level.HALT, Scope.RUN, "r2"): "policy.yaml:10",
        (Level.HALT, Scope.RELEASE, "2026-11-20"): "policy.yaml:11",
        (Level.HALT, Scope.TOOL, "t.a"): "policy.yaml:12",
    }
    assert set(policy.pulls) == set(told)
    assert {(p.actor, p.at_us) for p in policy.pulls.values()} == {
        (f"policy:{policy.digest[:12]}", 0)
    }


def test_frozen_may_name_scopes(a_policy: Build) -> None:
    policy = a_policy("frozen: {global: false, tenants: [acme]}")
    assert list(policy.pulls) == [(Level.FREEZE, Scope.TENANT, "acme")]


def test_releases_are_known_good_or_refused(a_policy: Build) -> None:
    policy = a_policy("""
    version: 1
    releases:
      known_good: ["2026-11-20.3", v2, v2]
      refused:
        - v0
        - v1
    """)
    assert policy.known_good == {"2026-11-20.3", "v2"}
    assert [(p.rule, p.reason, p.actor) for p in policy.pulls.values()] == [
        ("halt:release:v0", "policy.yaml:6", f"policy:{policy.digest[:12]}"),
        ("halt:release:v1", "policy.yaml:7", f"policy:{policy.digest[:12]}"),
    ]
    assert a_policy("").known_good == frozenset()
