"""The schema: durations, and the JSON Schema for editors that is made from it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from policies.policy import Policy
from policies.schema import json_schema
from policies.schema_parts import duration_us

CONFIG = Path(__file__).parents[2] / "config"


def test_the_json_schema_in_config_is_the_one_of_the_models() -> None:
    """Write it again with `pullcord policy schema > config/policy.schema.json`."""
    assert json.loads((CONFIG / "policy.schema.json").read_text("utf-8")) == json_schema()


def test_the_json_schema_speaks_of_every_key_and_allows_no_other() -> None:
    schema = json_schema()
    for part in (schema, *schema["$defs"].values()):
        if part.get("type") == "object":
            assert part["additionalProperties"] is False
    assert list(schema["properties"]) == [
        "version", "unlisted", "frozen", "halted", "releases", "tools", "tenants", "agents",
        "ceilings", "detectors", "alerts", "prices", "tags", "redact",
    ]  # fmt: skip
    assert next(iter(schema["$defs"]["PulledRule"]["properties"])) == "global"


def test_short_forms_are_in_the_json_schema() -> None:
    schema = json_schema()
    host = schema["$defs"]["MatchRule"]["properties"]["host"]["anyOf"]
    assert [option["type"] for option in host] == ["array", "string"]
    frozen = schema["properties"]["frozen"]["anyOf"]
    assert frozen == [
        {"$ref": "#/$defs/PulledRule"},
        {"type": "array", "items": {"type": "string"}},
    ]


@pytest.mark.parametrize(
    "text, seconds",
    [("1s", 1), ("30s", 30), ("1m", 60), ("90m", 5_400), ("2h", 7_200), ("1d", 86_400)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert duration_us(text) == seconds * 1_000_000


@pytest.mark.parametrize(
    "text", ["", "0s", "60", "1.5m", "-1s", "1 m", "1M", "m", "01s", "1w", "1s ", "٣s", "367d"]
)
def test_anything_else_is_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        duration_us(text)


@pytest.mark.parametrize("method", ["COPY", "PROPFIND", "PURGE", "FETCH", "list", "FORGET", "BIND"])
def test_a_method_of_its_own_is_one(method: str, a_policy: Callable[[str], Policy]) -> None:
    """Only what is hardly anything else is taken for a usual method misspelt."""
    policy = a_policy(f"tools: {{t: {{match: {{host: a.example, method: {method}}}}}}}")
    assert policy.tools["t"].methods == frozenset({method.upper()})
