"""The agent's own view: its answers carry the words that README lists."""

import json

import pytest

from ledger.records import OwnState
from policies.call import Identity, Request
from policies.verdict import Reason
from proxy import own

STATE = OwnState(Identity("r1", "acme"), (), ())


@pytest.mark.parametrize(
    "method, path, status", [("GET", "/self", 200), ("GET", "/x", 404), ("POST", "/self", 405)]
)
def test_each_answer_says_a_reason_of_the_table(method: str, path: str, status: int) -> None:
    answer = own.answer(Request(method, "http", own.HOST, 80, path), "c1", STATE)
    said = dict(answer.headers)["pullcord-decision"]
    assert (answer.status, said) == (status, f"allow; reason={Reason.ALLOWED}; call=c1")
    json.loads(answer.body)
