"""Which rows of the record a replay of an incident gets, and that they can be read again."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ledger import incident_export
from ledger.connection import open_reader
from ledger.errors import LedgerError
from ledger.exported_rows import opened, row_of
from ledger.incident_export import Exported, exported
from ledger.incident_reads import named
from ledger.replaying import COLUMNS
from policies.verdict import Level, Pull, Scope
from tests.proxy.runaway import CALLS, Runaway

KEY = b"a key of the ledger"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Runaway]:
    found = Runaway(tmp_path)
    yield found
    found.ends()


def taken(made: Runaway) -> Exported:
    incident_id = made.opened()
    with closing(open_reader(made.data)) as reader:
        incident = named(reader, incident_id)
        assert incident is not None
        return exported(reader, incident, KEY)


def told(lines: Any, column: str) -> list[Any]:
    return [line.get(column) for line in lines]


def pulled(made: Runaway, scope: Scope, subject: str, actor: str = "ann") -> Pull:
    cord = Pull(Level.FREEZE, scope, subject, "private words", actor, made.now_us)
    made.store.pull(cord)
    return cord


def lifted(made: Runaway, cord: Pull, actor: str = "ann") -> None:
    made.store.release(
        cord.level, cord.scope, cord.subject, reason="x", actor=actor, at_us=made.now_us
    )


def test_calls_come_whole_and_in_order(made: Runaway) -> None:
    made.refunds()
    found = taken(made)
    assert told(found.rows, "seq") == sorted(told(found.rows, "seq"))
    assert told(found.rows, "type") == ["call.intent", "call.outcome"] * CALLS
    assert set(told(found.rows, "run")) == {"r1", None}
    assert (found.first, found.calls, found.left_out) == (1, CALLS, 0)
    assert {line["policy"] for line in found.rows if "policy" in line} == {made.policy.digest}
    assert found.policies == {made.policy.digest: made.policy.text}


def test_they_can_be_read_again(made: Runaway) -> None:
    made.refunds()
    found = taken(made)
    rows = [row_of(line) for line in found.rows]
    with opened(rows, found.policies) as reader:
        again = reader.execute(f"SELECT {', '.join(COLUMNS)} FROM event ORDER BY seq").fetchall()
    place = COLUMNS.index("policy")
    assert [row[:place] + row[place + 1 :] for row in again] == [
        row[:place] + row[place + 1 :] for row in rows
    ]
    assert {row[place] for row in again} == {1, None}


def test_cords_of_before_stand_and_what_people_stop_later_is_left_out(made: Runaway) -> None:
    pulled(made, Scope.TOOL, "charges.write")  # of no tool here
    lifted(made, pulled(made, Scope.TENANT, "acme"))  # lifted before
    pulled(made, Scope.TOOL, "charges.read")
    made.refunds()
    pulled(made, Scope.RUN, "r1")
    found = taken(made)
    assert [line["rule"] for line in found.rows if line["type"].startswith("cord.")] == []
    made.call("r1", "GET", "/v1/charges/ch_1")
    made.refunds()
    cords = [line for line in taken(made).rows if line["type"].startswith("cord.")]
    assert [(line["rule"], line["actor"]) for line in cords] == [
        ("freeze:tool:charges.read", "operator")
    ]
    assert "private words" not in str(cords)


def test_a_drill_ends_no_incident(made: Runaway) -> None:
    made.refunds()
    lifted(made, pulled(made, Scope.GLOBAL, "", "drill"), "drill")
    made.call("r1", "POST", "/v1/refunds", '{"charge":"ch_more"}')
    assert taken(made).calls == CALLS + 1
    lifted(made, pulled(made, Scope.GLOBAL, ""))
    made.call("r1", "POST", "/v1/refunds", '{"charge":"ch_after"}')
    assert taken(made).calls == CALLS + 1


def test_healthy_runs_are_those_that_nothing_stopped(made: Runaway) -> None:
    made.refunds()
    assert taken(made).healthy_runs == 3
    cord = pulled(made, Scope.RUN, "h1")
    made.call("h1", "POST", "/v1/refunds", '{"charge":"refused"}')
    lifted(made, cord)
    found = taken(made)
    assert {run for run in told(found.healthy, "run") if run} == {"h0", "h2"}
    assert len(found.healthy) == 2 * 8 * 2


def test_of_very_many_calls_the_later_ones_are_left_out(
    made: Runaway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incident_export, "CALLS_MAX", 10)
    made.refunds()
    found = taken(made)
    assert (found.calls, found.left_out, len(found.rows)) == (10, CALLS - 10, 20)


def test_equal_digests_stay_equal_and_are_not_those_of_the_record(made: Runaway) -> None:
    path = "/v1/refunds"
    made.call("r1", "POST", path, '{"charge":"a"}')
    made.call("r1", "POST", path, '{"charge":"b"}')
    made.now_us += 86_400_000_000  # what protects a write has ended
    made.call("r1", "POST", path, '{"charge":"a"}')
    found = [line for line in taken(made).rows if line["type"] == "call.intent"]
    first, other, again = told(found, "request_digest")
    assert first == again != other
    assert told(found, "key")[0] == told(found, "key")[2]
    with closing(open_reader(made.data)) as reader:
        known = reader.execute("SELECT lower(hex(request_digest)), key FROM event").fetchall()
    assert not {first, other, *told(found, "key")} & {each for row in known for each in row}


def test_those_of_other_incidents_are_not_healthy(made: Runaway) -> None:
    made.refunds()
    made.opened(Scope.RUN, "h1")
    assert {run for run in told(taken(made).healthy, "run") if run} == {"h0", "h2"}


def test_what_was_too_much_is_no_test(made: Runaway) -> None:
    """Its calls are those of all runs of the tenant, of healthy ones as well."""
    made.refunds()
    incident_id = made.opened(Scope.TENANT, "acme", "")
    with closing(open_reader(made.data)) as reader:
        by_hand = named(reader, incident_id)
        assert by_hand is not None
        assert exported(reader, by_hand, KEY).calls > CALLS
        with pytest.raises(LedgerError, match="pullcord incident open --run R"):
            exported(reader, replace(by_hand, opened_by=""), KEY)


def test_an_incident_without_calls_is_no_test(made: Runaway) -> None:
    with pytest.raises(LedgerError, match="nothing to make a test of"):
        taken(made)


def test_children_of_a_run_in_another_incident_are_not_healthy(made: Runaway) -> None:
    made.call("kid", "POST", "/v1/refunds", '{"charge":"ch_kid"}', "re_kid", ("h9",))
    made.refunds()
    made.opened(Scope.RUN, "h9")
    assert {run for run in told(taken(made).healthy, "run") if run} == {"h0", "h1", "h2"}
