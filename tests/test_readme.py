"""README, docs/ and CHANGELOG say what is so: each command, setting, reason code and example."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from ledger import filters, queries
from ledger.connection import open_reader
from ledger.states import CallState
from ledger.store import Store
from policies import load, load_runbook, runbook
from policies.decide import ORDER
from policies.detectors.rules import Mode, Response
from policies.detectors.runs import DETECTORS
from policies.schema import json_schema
from policies.schema_detectors import written
from policies.verdict import MEANING, Scope
from proxy import environment, own
from proxy.cli import agents, main, rules, status
from proxy.cli.main import cli
from proxy.control import ROUTES
from proxy.control_client import SOCKET
from proxy.settings import NAMES, PREFIX, Settings
from tests.manual import MANUAL, PAGES, README, ROOT, anchors, blocks, code, section, table

CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
POLICY = (ROOT / "config" / "policy.yaml").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")

# Parts of `make check`, and the list of the others.
MINOR_TARGETS = {"help", "format-check", "lint", "types", "contracts"}


# ---------------------------------------------------------------------------- reading the manual


def transcript(block: str) -> Iterator[tuple[str, list[str]]]:
    """What is typed behind a `$`, and what it prints."""
    parts = re.split(r"^\$ ", block, flags=re.M)
    for part in parts[1:]:
        typed, *printed = part.splitlines()
        yield typed, printed


def typed_lines() -> Iterator[str]:
    for block in blocks("sh"):
        yield from block.splitlines()
    for block in blocks("console"):
        yield from (typed for typed, _ in transcript(block))
    yield from code(MANUAL)


@cache
def commands() -> tuple[tuple[str, ...], ...]:
    """The words behind each `pullcord` that the manual types, also those inside `$(...)`."""
    found = []
    for line in typed_lines():
        inner = re.search(r"\$\((pullcord [^)]*)\)", line)
        words = shlex.split(inner[1] if inner else line, comments=True)
        if words[:1] == ["pullcord"] and words[1:] not in ([], ["COMMAND", "--help"]):
            found.append(tuple(words[1:]))
    return tuple(dict.fromkeys(found))


def parsed(words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The command that these words name and its parameters; nothing runs. Raises UsageError.

    The bare name of a command speaks of it and is not for typing.
    """
    if " ".join(words) in leaves():
        return " ".join(words), {}
    command: click.Command = cli
    name, rest = "", list(words)
    while isinstance(command, click.Group):
        group = command
        step, command_or_none, rest = group.resolve_command(click.Context(group), rest)
        assert command_or_none is not None
        name, command = f"{name} {step}".strip(), command_or_none
    return name, command.make_context(name, rest).params


def leaves(group: click.Group = cli, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{prefix}{name} ")
        else:
            yield prefix + name


# ---------------------------------------------------------------------------- commands


def test_the_first_two_commands_are_make_up_and_make_test() -> None:
    first = next(line for line in typed_lines() if line)
    typed = [line.partition("#")[0].strip() for line in blocks("sh")[0].splitlines()]
    assert first.startswith("make up")
    assert typed == ["make up", "make test"]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_can_be_typed_as_it_stands(words: tuple[str, ...]) -> None:
    _, params = parsed(words)
    filters.parse(params.get("filters", ()), 0)


def test_every_command_is_in_the_manual() -> None:
    missing = set(leaves()) - {parsed(words)[0] for words in commands()}
    assert not missing


def test_every_scope_is_in_the_manual() -> None:
    scopes = {words.split()[0] for words in code(section("Commands")) if words.split()[0] in Scope}
    assert scopes == set(Scope)


def test_make_targets_are_those_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.M))
    typed = [line.split() for line in typed_lines() if line.startswith("make ")]
    named = {words[1] for words in typed}
    assert named == targets - MINOR_TARGETS


def test_exit_codes_are_those_of_the_program() -> None:
    told = section("Commands").rpartition("Exit codes: ")[2]
    codes = {int(number) for number in re.findall(r"(?:^|; )(\d+) ", told)}
    of_ours = {main.OK, main.UNUSABLE, main.NOT_FOUND, main.UNREACHABLE, *main.EXIT_CODES.values()}
    assert codes == of_ours | {
        *(rules.FOUND_PROBLEMS, status.PULLED, status.INCIDENT, agents.HALTED, 1),
    }


def test_the_formats_of_env_are_all_there() -> None:
    line = next(line for line in MANUAL.splitlines() if "`--format`" in line)
    assert set(environment.FORMATS) <= set(code(line))


def test_the_agents_own_view_and_the_probes_are_where_it_says() -> None:
    assert f"http://{own.HOST}/self" in section("Put an agent behind it")
    probes = re.findall(r"/[a-z]+z\b", section("Commands"))
    assert {"/readyz", "/healthz"} == set(probes) <= {route.path for route in ROUTES}
    assert f"/{SOCKET} http://localhost/readyz" in section("Commands")


def test_each_page_is_listed_in_readme_and_each_link_leads_somewhere() -> None:
    linked = set()
    for page, text in PAGES.items():
        for place, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
            target = (page.parent / place).resolve() if place else page
            assert target.exists(), (page, place)
            assert not anchor or anchor in anchors(PAGES[target]), (page, place, anchor)
            linked |= {target} if page == README else set()
    assert set(PAGES) - {README} <= linked


def test_readme_is_for_newcomers() -> None:
    assert len(PAGES[README].split()) < 3_000


def test_the_files_it_names_are_there() -> None:
    places = {word for word in code(MANUAL) if re.fullmatch(r"(\.ci|config)/[a-z./-]*", word)}
    assert {".ci/find-python", ".ci/run", "config/policy.yaml"} <= places
    assert not {place for place in places if not (ROOT / place).exists()}


def test_the_parts_of_the_code_are_where_it_says() -> None:
    folder = ROOT
    for line in blocks("", section("The code"))[0].splitlines():
        names = [name.strip() for name in re.split(r"\s{2,}", line.strip())[0].split(",")]
        if not line.startswith(" "):
            folder = ROOT / names.pop(0)
            assert folder.is_dir()
        for name in names:
            assert (folder / name).is_dir() or (folder / f"{name}.py").is_file(), name


# ---------------------------------------------------------------------------- the rules


def test_settings_and_their_defaults_are_those_of_the_program() -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in table("Settings")}
    assert tuple(told) == NAMES
    defaults = {name: Settings.model_fields[name].default for name in NAMES}
    numbers = {name: value for name, value in defaults.items() if isinstance(value, int | float)}
    assert {name: float(told[name]) for name in numbers} == numbers
    texts = {name: str(value or "none") for name, value in defaults.items() if name not in numbers}
    assert {name: told[name] for name in texts} == texts


def test_a_setting_has_the_flag_and_the_variable_that_it_says() -> None:
    text = section("Settings")
    (variable,) = set(re.findall(rf"{PREFIX}[A-Z_]+", text)) - {"PULLCORD_CONFIG"}
    setting = variable.removeprefix(PREFIX).lower()
    assert setting in NAMES
    assert f"`--{setting.replace('_', '-')}`" in text


def test_reason_codes_are_those_of_the_program() -> None:
    told = [tuple(row) for row in table("Reason codes")]
    retry = {True: "yes", False: "no"}
    assert told == [
        (f"`{reason}`", str(meaning.status), retry[meaning.retry], meaning.title)
        for reason, meaning in MEANING.items()
    ]


def test_the_order_of_judging_is_that_of_decide() -> None:
    words = {
        "_halted": "Halt",
        "_faulty": "Request",
        "_listed": "Destination",
        "_permitted": "Permission",
        "_reading": "Reading",
        "_conditioned": "Arguments",
        "_frozen": "Freeze",
        "_claimed": "Claim",
        "_bounded": "Ceiling",
        "_held": "Hold",
    }
    told = re.findall(r"^\d+\. \*\*(\w+)\*\*", section("How a call is judged"), re.M)
    assert told == ["Identity", *(words[line.__name__] for line in ORDER), "Allow"]


def test_the_policy_example_loads_and_shows_every_key() -> None:
    (example,) = blocks("yaml", section("The policy file"))
    load.load(example)
    example += "".join(blocks("yaml", section("Detectors")))

    def keys(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            yield from part.get("properties", {})
            for value in part.values():
                yield from keys(value)
        elif isinstance(part, list):
            for value in part:
                yield from keys(value)

    missing = {key for key in keys(json_schema()) if not re.search(rf"\b{key}:", example)}
    assert not missing


def test_the_example_of_detectors_shows_every_limit_at_its_default() -> None:
    (example,) = blocks("yaml", section("Detectors"))
    rules = load.load(example).detectors
    assert {name: rule.limits for name, rule in rules.items()} == {
        name: kind.limits for name, kind in DETECTORS.items()
    }
    stated = yaml.safe_load(example)["detectors"]
    for name, kind in DETECTORS.items():
        wanted = {written(one.name) for one in fields(kind.limits)}
        assert set(stated[name]["limits"]) == wanted
    shipped = load.load(POLICY).detectors
    assert {name: rule.mode for name, rule in rules.items()} == {
        name: rule.mode for name, rule in shipped.items()
    }
    rows = [code(row[0]) for row in table("Detectors")]
    assert {name for (name,) in rows} == set(DETECTORS)
    (modes,) = re.findall(r"^`mode` is (.*?)\. Without", section("Detectors"), re.M)
    assert [word for word in code(modes) if word in set(Mode)] == list(Mode)
    (thens,) = re.findall(r"`then` is (.*?)\. A cord of a detector", section("Detectors"))
    assert code(thens) == list(Response)


def test_the_defaults_in_the_policy_example_are_the_defaults() -> None:
    (example,) = blocks("yaml", section("The policy file"))
    told = load.load(example).tools["stripe.charges.create"].key
    plain = load.load("version: 1\ntools: {t: {match: {host: h.example}}}\n").tools["t"].key
    assert told == plain


def test_the_line_that_freezes_fits_into_the_shipped_policy() -> None:
    (line,) = blocks("yaml", section("The 3 a.m. card"))
    edited, lines = re.subn(r"^frozen: .*\n", line, POLICY, flags=re.M)
    assert lines == 1
    assert [pull.rule for pull in load.load(edited).pulls.values()] == [
        "freeze:tool:stripe.refunds.create"
    ]


def test_the_demo_excerpt_names_the_ceilings_of_the_demo() -> None:
    text = (ROOT / "proxy" / "demo" / "policy.yaml").read_text("utf-8")
    ids = {ceiling.id for ceiling in load.load(text).ceilings if not ceiling.shipped}
    assert set(re.findall(r"ceiling:([0-9a-f]+)", section("The demo"))) == ids


def test_every_word_of_the_runbook_is_in_the_manual() -> None:
    text = section("The runbook")
    words = {word.strip("{}") for span in code(text) for word in span.split()}
    assert words >= {*runbook.FACTS, *runbook.EVIDENCE, *runbook.PLACES}
    (example,) = blocks("yaml", text)
    load_runbook.load(example, "docs/incidents.md")


# ---------------------------------------------------------------------------- the ledger


def test_fields_states_and_columns_are_those_of_the_ledger() -> None:
    spans = [set(words.split()) for words in code(section("The ledger"))]
    assert set(filters.FIELDS) in spans
    assert set(CallState) in spans
    assert " ".join(queries.CALL_COLUMNS) in code(section("The ledger"))


@pytest.mark.parametrize("text", ["30s", "15m", "2h", "3d", "1w"])
def test_a_time_that_it_shows_is_one(text: str) -> None:
    assert text in section("The ledger")
    filters.moment(text, 0)


def test_the_sql_examples_are_answered(tmp_path: Path) -> None:
    Store.open(tmp_path, bytes(32), lambda: 0).close()
    examples = [query for words in commands() if (query := parsed(words)[1].get("sql"))]
    assert len(examples) == 3
    reader = open_reader(tmp_path)
    try:
        assert [list(queries.sql(reader, sql)) for sql in examples] == [[], [], []]
    finally:
        reader.close()


# ---------------------------------------------------------------------------- the changelog


def test_the_changelog_keeps_its_form() -> None:
    """https://keepachangelog.com/en/1.1.0/"""
    titles = re.findall(r"^(#+) (.*)$", CHANGELOG, re.M)
    assert titles[0] == ("#", "Changelog")
    versions = [title for marks, title in titles if marks == "##"]
    assert versions[0] == "[Unreleased]"
    for version in versions[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version)
    kinds = {title for marks, title in titles if marks == "###"}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_changelog_names_every_command() -> None:
    assert set(cli.commands) <= {words.split()[-1] for words in code(CHANGELOG)}
