"""The routes by which incidents are looked at and closed."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ledger import incidents
from ledger.open_incidents import ALERTS_MAX, ALERTS_OF_TENANT_MAX
from ledger.store import Store
from policies.verdict import Scope
from proxy.control_socket import user_name
from tests.ledger.findings import ALERT, TRIP, a_found
from tests.proxy.controlled import Controlled, controlled

ME = user_name(os.geteuid())


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


async def found(running: Controlled, severity: Any = TRIP, **rest: Any) -> None:
    def act(store: Store) -> None:
        incidents.found(store._open_batch(), a_found(running.clock.us, severity, **rest))

    await running.service.decider.act(act)


async def listed(running: Controlled, query: str = "") -> list[Any]:
    answer = await running.asked("GET", f"/v1/incidents{query}")
    told: list[Any] = answer["incidents"]
    return told


async def test_the_list_has_the_open_ones_and_all_when_asked(running: Controlled) -> None:
    assert await listed(running) == []
    await found(running)
    running.clock.us += 1_000_000
    await found(running, ALERT, run="r2")
    newest, oldest = await listed(running)
    assert (newest["name"], newest["severity"], newest["cord"]) == ("r2", "alert", None)
    assert (oldest["name"], oldest["severity"], oldest["cord"]) == ("r1", "trip", "halt:run:r1")
    await running.asked("POST", "/v1/incidents/close", incident=newest["id"], reason="over")
    assert [one["id"] for one in await listed(running)] == [oldest["id"]]
    assert [one["state"] for one in await listed(running, "?all=true")] == ["closed", "open"]
    assert (await running.refused("GET", "/v1/incidents?every=1")).status == 400


async def test_one_is_shown_with_its_rows_and_what_to_do_next(running: Controlled) -> None:
    live = await running.called("r1")
    await found(running, call=live.call_id)
    (one,) = await listed(running)
    told = await running.asked("GET", f"/v1/incidents/show?incident={one['id'][:10]}")
    assert [call["id"] for call in told["evidence"]] == [live.call_id]
    assert [row["type"] for row in told["events"]] == [
        *("incident.opened", "detector.tripped", "cord.pulled"),
    ]
    assert [cord["rule"] for cord in told["pulled"]] == ["halt:run:r1"]
    since = "2027-01-15T08:00:00.000000Z"  # of the calls that belong to it and to no other
    assert [step["command"] for step in told["next"]] == [
        f"pullcord incident ack {one['id']}",
        f"pullcord runbook {one['id']}",
        "pullcord status",
        f"pullcord ledger query root:r1 tenant:acme since:{since}",
        'pullcord resume run r1 --reason "..."',
        f"pullcord incident export-test {one['id']} --out tests/incidents/NAME --prove",
    ]


async def test_what_nothing_stops_is_told_how_to_stop(running: Controlled) -> None:
    await found(running, ALERT, detector="first_seen_destination", name="crm.send",
                tool="crm.send")  # fmt: skip
    (one,) = await listed(running)
    told = await running.asked("GET", f"/v1/incidents/show?incident={one['id']}")
    assert told["pulled"] == []
    assert told["next"][0]["command"] == "pullcord freeze tool crm.send"


@pytest.mark.parametrize("start, status", [("zz", 400), ("", 400), ("0123", 404)])
async def test_an_id_that_is_none(running: Controlled, start: str, status: int) -> None:
    path = f"/v1/incidents/show?incident={start}"
    assert (await running.refused("GET", path)).status == status


async def test_closing_takes_a_role_a_reason_and_an_open_one(running: Controlled) -> None:
    await found(running)
    (one,) = await listed(running)
    bare = {"incident": one["id"], "reason": "mended"}
    unproven = await running.refused("POST", "/v1/incidents/close", **bare)
    assert unproven.status == 409
    assert "--waive REASON" in str(unproven)
    over = {**bare, "waive": "known"}
    for role in ("view", "pull"):
        secret = await running.enrolled(role, f"of-{role}")
        assert (await running.at_port("POST", "/v1/incidents/close", secret, body=over))[0] == 403
    secret = await running.enrolled("release", "of-release")
    done = await running.at_port("POST", "/v1/incidents/close", secret, body=over)
    assert done[0] == 200
    assert (done[1]["state"], done[1]["closed_by"]) == ("closed", "operator:of-release")
    assert [cord["rule"] for cord in done[1]["pulled"]] == ["halt:run:r1"]
    again = await running.refused("POST", "/v1/incidents/close", **over)
    assert again.status == 409
    assert "operator:of-release has closed it: mended" in str(again)
    (row,) = running.rows("incident.closed")
    assert row["actor"] == "operator:of-release"
    assert row["detail"] == "mended; no regression test: known"


@pytest.mark.parametrize("reason", ["", " \t", "\u200b", "x" * 1_001])
async def test_a_reason_that_nobody_can_read_closes_nothing(
    running: Controlled, reason: str
) -> None:
    await found(running)
    (one,) = await listed(running)
    over = {"incident": one["id"], "reason": reason}
    assert (await running.refused("POST", "/v1/incidents/close", **over)).status == 400
    assert [each["state"] for each in await listed(running)] == ["open"]


async def test_status_tells_the_newest_and_how_many_there_are(running: Controlled) -> None:
    state = await running.asked("GET", "/v1/status")
    assert state["incidents"] == {"open": 0, "newest": [], "next": None}
    for number in range(7):
        running.clock.us += 1_000_000
        await found(running, run=f"r{number}", cord=(Scope.RUN, f"r{number}"))
    state = await running.asked("GET", "/v1/status")
    assert state["incidents"]["open"] == 7
    newest = state["incidents"]["newest"]
    assert [one["name"] for one in newest] == ["r6", "r5", "r4", "r3", "r2"]
    assert not any(one["released"] for one in newest)


async def test_status_tells_of_which_every_cord_was_released(running: Controlled) -> None:
    """It stays open until somebody closes it."""
    await found(running, cord=(Scope.TOOL, "r1/pay"))
    await found(running, detector="burn")
    running.clock.us += 1_000_000
    await found(running, ALERT, run="r2")

    async def released() -> list[bool]:
        newest = (await running.asked("GET", "/v1/status"))["incidents"]["newest"]
        return [one["released"] for one in newest]

    assert await released() == [False, False]
    await running.asked("POST", "/v1/release", level="halt", scope="run", subject="r1", reason="ok")
    assert await released() == [False, False]
    tool = {"scope": "tool", "subject": "r1/pay"}
    await running.asked("POST", "/v1/release", level="halt", **tool, reason="ok")
    assert await released() == [False, True]


@pytest.mark.parametrize(
    "tenant, next_", [("", "pullcord status"), ("acme", "pullcord halt tenant acme")]
)
async def test_what_was_too_much_says_what_to_type_next(
    running: Controlled, tenant: str, next_: str
) -> None:
    for number in range(ALERTS_MAX + 1 if not tenant else ALERTS_OF_TENANT_MAX + 1):
        await found(running, ALERT, run=f"r{number}", tenant=tenant or f"t{number}")
    everything = await listed(running, "?all=true")
    (one,) = [one for one in everything if one["kind"] in ("tenant", "global")]
    told = await running.asked("GET", f"/v1/incidents/show?incident={one['id']}")
    assert told["next"][0]["command"] == next_
    assert ("pullcord ledger query tenant:acme" in str(told["next"])) == bool(tenant)


# ---------------------------------------------------------------------------- what people do


async def opened(running: Controlled, **body: Any) -> Any:
    given = {"kind": "run", "name": "r1", "reason": "it pays twice", **body}
    return await running.asked("POST", "/v1/incidents/open", **given)


async def test_a_person_opens_one_over_what_the_record_knows(running: Controlled) -> None:
    await running.called("r1")
    one = await opened(running)
    assert (one["new"], one["kind"], one["name"], one["tenant"]) == (True, "run", "r1", "acme")
    assert (one["detector"], one["opened_by"], one["severity"]) == (None, ME, "trip")
    assert one["since"] == "2027-01-15T07:00:00.000Z"
    assert one["notes"] == ["calls of the hour before belong to it; --since says otherwise"]
    again = await opened(running, reason="again")
    assert (again["new"], again["id"]) == (False, one["id"])
    assert again["notes"] == ["what you said is a note of it"]
    assert len(running.rows("incident.opened")) == 1
    for kind, name in (("tenant", "acme"), ("tool", "mail.read")):
        assert (await opened(running, kind=kind, name=name, since="30m"))["notes"] == []
    assert len(await listed(running)) == 3


@pytest.mark.parametrize(
    "body, status, told",
    [
        ({"name": "r2"}, 404, "the record has no call of run r2"),
        ({"tenant": "umbrella"}, 404, "no call of run r1 of tenant umbrella"),
        ({"kind": "global"}, 400, "takes no name"),
        ({"kind": "global", "name": ""}, 400, "--since 10m"),
        ({"name": ""}, 400, "name the run"),
        ({"severity": "bad"}, 400, "severity"),
        ({"name": "r\x1b"}, 400, "control characters"),
        ({"since": "2h ago"}, 409, "is no time"),
        ({"since": "2030-01-01"}, 400, "in the future"),
        ({"reason": "\u200b"}, 400, "--reason TEXT"),
    ],
)
async def test_what_cannot_be_opened(
    running: Controlled, body: dict[str, Any], status: int, told: str
) -> None:
    await running.called("r1")
    given = {"kind": "run", "name": "r1", "reason": "it pays twice", **body}
    refused = await running.refused("POST", "/v1/incidents/open", **given)
    assert (refused.status, told in str(refused)) == (status, True), refused
    assert await listed(running) == []


async def test_what_was_quiet_since_is_asked_for_an_earlier_time(running: Controlled) -> None:
    await running.called("r1")
    running.clock.us += 7_200_000_000
    given = {"kind": "run", "name": "r1", "reason": "it paid twice"}
    refused = await running.refused("POST", "/v1/incidents/open", **given)
    assert "the last call of run r1 was made at 2027-01-15T08:00:00.000Z" in str(refused)
    assert "--since 2027-01-15T07:00:00.000Z" in str(refused)
    one = await opened(running, since="2027-01-15T07:00:00.000Z")
    told = await running.asked("GET", f"/v1/incidents/show?incident={one['id']}")
    assert [row["type"] for row in told["timeline"]] == ["call.intent", "incident.opened"]
    assert told["milestones"]["detect_seconds"] == 7200.0


async def test_one_is_seen_to_noted_proven_and_closed(running: Controlled) -> None:
    await found(running)
    (one,) = await listed(running)

    async def does(word: str, **body: Any) -> Any:
        return await running.asked("POST", f"/v1/incidents/{word}", incident=one["id"][:12], **body)

    seen = await does("ack")
    assert (seen["owner"], seen["acked_by"], seen["was"], seen["changed"]) == (ME, ME, None, True)
    seen = await does("ack", owner="bob")
    assert (seen["owner"], seen["was"]) == ("bob", ME)
    assert (await does("ack", owner="bob"))["changed"] is False
    assert len(running.rows("incident.acked")) == 2
    await does("note", text="we look at it")
    await does("note", text="refunds are stopped", public=True)
    await does("step", step="contain", text="halted")
    (row,) = running.rows("incident.step")
    assert (row["rule"], row["detail"], row["actor"]) == ("contain", "halted", ME)
    assert (await does("prove", digest="ab" * 32, where="tests/incidents"))["proof"] == "ab" * 32
    told = await running.asked("GET", f"/v1/incidents/show?incident={one['id']}")
    assert [(note["text"], note["public"]) for note in told["notes"]] == [
        *(("we look at it", False), ("refunds are stopped", True)),
    ]
    assert (await does("close", reason="mended"))["state"] == "closed"
    assert (await does("note", text="and later"))["state"] == "closed"
    assert len(running.service.decider.pulls) == 1
    late = await running.refused("POST", "/v1/incidents/ack", incident=one["id"])
    assert late.status == 409


@pytest.mark.parametrize(
    "word, body",
    [
        ("ack", {"owner": "a\nb"}),
        ("note", {"text": " "}),
        ("note", {"text": "x" * 1_001}),
        ("step", {"step": ""}),
        ("step", {"step": "a\x00"}),
    ],
)
async def test_words_that_nobody_can_read_are_refused(
    running: Controlled, word: str, body: dict[str, str]
) -> None:
    await found(running)
    (one,) = await listed(running)
    refused = await running.refused("POST", f"/v1/incidents/{word}", incident=one["id"], **body)
    assert refused.status == 400
    assert (await running.refused("POST", f"/v1/incidents/{word}", incident="0123",
                                  **body)).status == 404  # fmt: skip


async def test_a_cord_that_a_person_pulled_over_it_stops_it_too(running: Controlled) -> None:
    await running.called("r1")
    one = await opened(running)
    running.clock.us += 60_000_000
    await running.asked("POST", "/v1/pull", level="halt", scope="tenant", subject="acme")
    told = await running.asked("GET", f"/v1/incidents/show?incident={one['id']}")
    assert [cord["rule"] for cord in told["pulled"]] == ["halt:tenant:acme"]
    assert told["milestones"]["contain_seconds"] == 60.0
    assert told["milestones"]["recovered"] is None
    state = await running.asked("GET", "/v1/status")
    assert state["incidents"]["newest"][0]["released"] is False
