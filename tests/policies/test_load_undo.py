"""`undo:` of a tool: a call with a body, or a word. Mistakes are in policy_errors.yaml."""

import pytest

from policies.load import load
from policies.policy import Reversibility, Tool, Undo

TOOLS = """
version: 1
tools:
  back: {match: {host: pay.example, method: POST, path: /v1/refunds}}
  make: {match: {host: pay.example, method: POST, path: /v1/charges}UNDO}
"""


def tool(undo: str = "") -> Tool:
    return load(TOOLS.replace("UNDO", undo)).tools["make"]


def call(undo: str) -> Undo:
    found = tool(f", undo: {undo}")
    assert found.reversibility is Reversibility.COMPENSABLE
    assert isinstance(found.undo, Undo)
    return found.undo


@pytest.mark.parametrize(
    "undo, says",
    [("", "unknown"), (", undo: unneeded", "reversible"), (", undo: impossible", "irreversible")],
)
def test_without_a_call_it_says_whether_one_is_needed(undo: str, says: str) -> None:
    assert tool(undo).reversibility == says


def test_a_call_has_a_form() -> None:
    found = call("{tool: back, form: {charge: '{response.id}', 'a[b]': x}, auth: ops}")
    assert (found.tool, found.auth, found.json) == ("back", "ops", None)
    assert found.form == (("charge", "{response.id}"), ("a[b]", "x"))


def test_or_json_as_it_was_written() -> None:
    found = call("{tool: back, json: {b: '{response.n}', a: [1, 2.50, true, {c: 'ü {run}'}]}}")
    assert found.form is None
    assert found.json == '{"b": "{response.n}", "a": [1, 2.5, true, {"c": "ü {run}"}]}'


def test_or_no_body_at_all() -> None:
    found = call("{tool: back, headers: {X-Run: '{run}'}, query: {a: '{call}'}}")
    assert (found.form, found.json) == (None, None)
    assert (found.headers, found.query) == ((("x-run", "{run}"),), (("a", "{call}"),))
