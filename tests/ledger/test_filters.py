"""The filter language, each term on five real calls."""

import shlex
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from ledger import queries
from ledger.connection import open_reader
from ledger.filters import FIELDS, FilterError, exactly, parse
from ledger.queries import CALL_COLUMNS
from policies.call import Identity
from tests.ledger.world import World

CASES = yaml.safe_load((Path(__file__).parents[1] / "cases" / "filters.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A write that is done; one unknown; one that met the first; a read; nobody."""
    world = World(tmp_path_factory.mktemp("filters") / "data")
    world.decided(world.ask("a", key="k1"))
    world.settle("a", status=201)
    world.wait(60)
    world.decided(world.ask("b", key="k2", body="y"))
    world.settle("b", status=None)
    world.wait(60)
    world.decided(world.ask("c", key="k1", body="z"))
    world.wait(60)
    world.decided(world.read("d", claimant=Identity("r2", "bolt")))
    world.settle("d")
    world.decided(world.read("e", claimant=None))
    world.wait(60)
    yield world
    world.store.close()


@pytest.mark.parametrize("case", CASES, ids=[case["it"] for case in CASES])
def test_a_filter(calls: World, case: dict[str, Any]) -> None:
    if "tells" in case:
        with pytest.raises(FilterError, match=case["tells"]):
            parse(case["terms"], calls.now_us)
    else:
        assert [row["id"] for row in calls.calls(case["terms"])] == case["finds"][::-1]


def test_a_list_of_terms_is_not_split(calls: World) -> None:
    assert calls.calls(["run:r1 tool:pay"]) == []


def test_values_are_never_part_of_the_statement() -> None:
    for field in FIELDS:
        plain = {"status": "404", "since": "2h", "until": "2h", "seq": "1..2", "under": "x'y"}
        value = plain.get(field, "x*'y")
        chosen = parse([f"{field}:{value}"], 0, lambda text: [text])
        assert "x" not in chosen.where.replace("x_", "")
        assert "'" not in chosen.where
        assert len(chosen.values) == chosen.where.count("?")


def test_every_field_is_a_column_or_a_part_of_the_record() -> None:
    assert set(FIELDS) - {"since", "until", "seq", "text", "under"} <= set(CALL_COLUMNS)


def test_words_are_looked_for_elsewhere_and_their_calls_are_let_through(calls: World) -> None:
    said = {"refund": ["a", "d"], "horse": ["b"]}

    def found(*terms: str) -> list[str]:
        chosen = parse(terms, calls.now_us, lambda text: said.get(text, []))
        with closing(open_reader(calls.data)) as reader:
            return [row["id"] for row in queries.calls(reader, chosen)]

    assert found("text:refund") == ["d", "a"]
    assert found("text:refund", "text:horse") == ["d", "b", "a"]
    assert found("text:refund", "run:r1") == ["a"]
    assert found("-text:refund", "-text:horse") == ["e", "c"]
    assert found("text:nothing") == []
    with pytest.raises(FilterError, match="give it to query"):
        parse("text:refund", 0)


ODD = [
    "v1.*",
    "v1.0",
    "*",
    "v1.\\*",
    "v1.\\",
    "v?",
    "v[1]",
    "v 1",
    "'v'",
    '"v"',
    "a:b",
    "-v",
    "v**",
]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One call of each release that is called so."""
    world = World(tmp_path_factory.mktemp("odd") / "data")
    for number, name in enumerate(ODD):
        who = Identity(f"r{number}", "acme", agent=name, release=name)
        world.decided(world.read(f"c{number}", claimant=who))
    yield world
    world.store.close()


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("field", ["release", "agent", "under:release"])
def test_a_name_finds_itself_alone_whatever_signs_are_in_it(
    odd: World, field: str, name: str
) -> None:
    """As a list, and as a person types it into a shell."""
    term, own = exactly(field, name), f"c{ODD.index(name)}"
    assert [row["id"] for row in odd.calls([term])] == [own]
    assert [row["id"] for row in odd.calls(shlex.join([term]))] == [own]
    assert {row["id"] for row in odd.calls([f"-{term}"])} == {
        f"c{number}" for number in range(len(ODD))
    } - {own}
