"""Rules for models' names, and that the index finds what going through all rules does."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.model_names import NAME_CHARACTERS_MAX, NameIndex, Rule

POLICIES = Path(__file__).parents[2] / "policies"


def index(*rules: dict[str, Any]) -> NameIndex:
    return NameIndex.of([Rule.read(rule) for rule in rules])


@pytest.mark.parametrize(
    "rule,yes,no",
    [({"equals": ["GPT-4o"]}, "gpt-4O", "gpt-4o-mini"),
     ({"starts_with": ["gpt-4"]}, "gpt-4o", "my-gpt-4"),
     ({"ends_with": [":free"]}, "llama:free", "llama:free2"),
     ({"contains": ["haiku-4-5"]}, "us.claude-haiku-4-5-v1", "haiku-4_5"),
     ({"contains": ["o1"]}, "xo1x", "o-1"),
     ({"regex": [r"^o[134]$"]}, "o3", "o2"),
     ({"regex": [r"^claude-5-\d{4}$"]}, "claude-5-2026", "claude-5-26"),
     ({"regex": [r"^abc?d"]}, "abd", "acd"),
     ({"all": [{"starts_with": ["gemini"]}, {"regex": ["^(?!.*tts)"]}]}, "gemini-2", "gemini-tts"),
     ({"equals": ["a"], "contains": ["long"]}, "so-long", "b")],
)  # fmt: skip
def test_a_rule_is_found_by_what_it_says(rule: dict[str, Any], yes: str, no: str) -> None:
    assert index(rule).find(yes) == 0
    assert index(rule).find(no) is None


def test_the_first_rule_that_matches_counts() -> None:
    rules = index({"equals": ["m-large"]}, {"contains": ["larg"]}, {"starts_with": ["m-"]})
    assert [rules.find(name) for name in ("m-large", "m-larger", "m-small", "x")] == [0, 1, 2, None]


def test_the_first_of_many_rules_counts_too() -> None:
    rules = index(*({"contains": [f"n{number}"]} for number in range(20)), {"equals": ["n16-n8"]})
    assert rules.find("n16-n8") == 1  # n1 is in n16


def test_a_name_that_is_too_long_is_nobodys() -> None:
    rules = index({"starts_with": ["m"]})
    assert rules.find("m" * NAME_CHARACTERS_MAX) == 0
    assert rules.find("m" * (NAME_CHARACTERS_MAX + 1)) is None


@pytest.mark.parametrize(
    "raw", [{"equal": ["m"]}, {"equals": "m"}, {"contains": [1]}, {"all": {"equals": ["m"]}}]
)
def test_a_broken_rule_is_an_error(raw: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rule|list"):
        Rule.read(raw)


TEXTS = st.lists(st.text("ab-1", min_size=0, max_size=4), max_size=2)
RULES = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "equals": TEXTS,
            "starts_with": TEXTS,
            "ends_with": TEXTS,
            "contains": TEXTS,
            "regex": st.lists(st.sampled_from([r"^ab?", r"^a\d", "b$", r"^a-1+", "^ab|^b"])),
        },
    ),
    lambda rules: st.fixed_dictionaries({"all": st.lists(rules, max_size=2)}),
    max_leaves=3,
)


@given(st.lists(RULES, max_size=6), st.text("ab-1", max_size=8))
def test_the_index_finds_what_going_through_all_does(raw: list[dict[str, Any]], name: str) -> None:
    rules = [Rule.read(one) for one in raw]
    slow = next((number for number, rule in enumerate(rules) if rule.matches(name)), None)
    assert NameIndex.of(rules).find(name) == slow


def test_the_index_finds_every_name_of_the_shipped_list_that_going_through_all_does() -> None:
    shipped = json.loads((POLICIES / "prices.json").read_text("utf-8"))["providers"]
    compared = 0
    for provider in ("anthropic", "aws", "azure", "google", "openai"):
        rules = [Rule.read(model["match"]) for model in shipped[provider]["models"]]
        names = NameIndex.of(rules)
        for model in shipped[provider]["models"]:
            texts = [text for kind in model["match"].values() for text in kind]
            for text in (text for text in texts if isinstance(text, str)):
                for name in (text, f"us.{text}-v1:0", f"{text}-20251211"):
                    slow = next((at for at, rule in enumerate(rules) if rule.matches(name)), None)
                    assert names.find(name) == slow
                    compared += 1
    assert compared > 1000


def test_a_look_up_looks_at_few_of_many() -> None:
    """Two thousand models more, and not one candidate more."""
    few = index({"equals": ["m-7"]}, {"contains": ["haiku"]})
    many = index(
        {"equals": ["m-7"]}, {"contains": ["haiku"]},
        *({"equals": [f"n-{number}"]} for number in range(1000)),
        *({"contains": [f"x{number}x"]} for number in range(1000)),
    )  # fmt: skip
    for name in ("m-7", "us.haiku", "other"):
        assert list(many._candidates(name)) == list(few._candidates(name))
