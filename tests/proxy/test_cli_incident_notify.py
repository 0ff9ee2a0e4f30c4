"""`pullcord incident notify`: each tenant is told of its own calls, once, by real receivers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ledger.store import Store
from policies.call import Identity
from policies.verdict import Scope
from proxy import operations
from proxy.authority import UPSTREAM_FILE
from proxy.cli.main import cli
from proxy.clock import SystemClock
from proxy.notices import signature
from tests.ledger.world import World
from tests.proxy.mail_receiver import Mailbox, receiving_mail
from tests.proxy.receiver import Receiver, receiving_aside

SECRET = "whsec-of-the-test"
CONTACTS = """\
version: 1
from: The agents team
smtp: {{host: localhost, port: {port}, from: oncall@fleet.example}}
tenants:
  acme: [{{kind: email, to: ops@acme.example}}, {{kind: file, file: acme.txt}}]
  globex: [{{kind: webhook, url: "{hook}/in", secret: hook}}, {{kind: slack, url: room}}]
"""


class Told:
    def __init__(self, data: Path, config: Path, incident: str) -> None:
        self.data, self.config, self.incident = data, config, incident

    def typed(self, *words: str, code: int = 0) -> str:
        given = ["--data", str(self.data), "--config", str(self.config)]
        result = CliRunner().invoke(cli, ["incident", "notify", self.incident, *words, *given])
        assert result.exit_code == code, result.output
        return result.output

    def rows(self, *words: str, code: int = 0) -> list[dict[str, Any]]:
        output = self.typed("--json", *words, code=code)
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    def act(self, act: Any) -> None:
        with operations.opened(self.data, SystemClock().now_us) as store:
            act(store)


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mailbox]:
    (tmp_path / "mail").mkdir()
    with receiving_mail(tmp_path / "mail") as made:
        yield made


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiving_aside() as made:
        yield made


@pytest.fixture
def touched(tmp_path: Path, mail: Mailbox, hook: Receiver) -> Told:
    """One release wrote for three tenants; the last is in no list. One write is unknown."""
    data, config = tmp_path / "data", tmp_path / "config"
    data.mkdir(mode=0o700)
    config.mkdir()
    world = World(data)
    for name, tenant, complete in (
        ("a1", "acme", True), ("a2", "acme", True), ("a3", "acme", False),
        ("g1", "globex", True), ("i1", "initech", True), ("a4", "acme", None),
    ):  # fmt: skip
        ask = world.ask(name, body=name, claimant=Identity(f"r-{tenant}", tenant, release="v2"))
        assert world.decided(ask).verdict.action == "allow"
        if complete is not None:
            world.settle(name, status=201 if complete else None, complete=complete)
    opened, _ = world.store.open_incident(
        Scope.RELEASE, "v2", "", world.now_us - 1_000_000, "refunds", "ann", world.now_us
    )
    world.store.close()
    (config / "contacts.yaml").write_text(CONTACTS.format(port=mail.port, hook=hook.url))
    (config / "policy.yaml").write_text("version: 1\n")
    (data / UPSTREAM_FILE).parent.mkdir(mode=0o700, exist_ok=True)
    (data / UPSTREAM_FILE).write_bytes(mail.ca.read_bytes())
    (data / "credentials.yaml").touch(mode=0o600)
    (data / "credentials.yaml").write_text(
        f"hook: {{secret: {SECRET}}}\nroom: {{url: '{hook.url}/slack'}}\n"
    )
    return Told(data, config, opened.id)


def test_a_plan_shows_each_message_and_sends_none(
    touched: Told, mail: Mailbox, hook: Receiver
) -> None:
    output = touched.typed("--eta", "at noon", "--next", "in an hour")
    assert "nobody is named for tenant initech" in output
    assert "to tenant acme by email ops@acme.example: not sent yet" in output
    assert "in calls for acme:\n  - writes that may concern you: 4\n  - made: 2\n" in output
    assert "- not known yet: 2\n" in output
    assert "in calls for globex:\n  - writes that may concern you: 1\n" in output
    assert "Solved by: at noon" in output
    assert "Next update: in an hour" in output
    assert output.endswith(f"pullcord incident notify {touched.incident} --send\n")
    assert mail.mails == []
    assert hook.got == []


def test_each_tenant_is_told_of_its_own_calls_once(
    touched: Told, mail: Mailbox, hook: Receiver
) -> None:
    assert "4 sent, 0 were sent before" in touched.typed("--send")
    (letter,) = mail.mails
    assert letter["To"] == "ops@acme.example"
    assert "globex" not in str(letter)
    assert "writes that may concern you: 4\n" in str(letter)
    kept = touched.data / "notices" / "acme.txt"
    assert "writes that may concern you: 4\n" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600
    posted = {one.path: one for one in hook.got}
    assert set(posted) == {"/in", "/slack"}
    signed = posted["/in"].headers["pullcord-signature"]
    at = int(signed.partition("t=")[2].partition(",")[0])
    assert signed == signature(SECRET, posted["/in"].body, at)
    told = posted["/in"].json
    assert (told["type"], told["tenant"], told["incident"]) == (
        *("incident.notice", "globex"),
        touched.incident,
    )
    assert "acme" not in told["text"]
    assert "in calls for globex:" in posted["/slack"].json["text"]
    again = touched.typed("--send")
    assert "0 sent, 4 were sent before" in again
    assert (len(mail.mails), len(hook.got)) == (1, 2)
    assert all(row["sent_at"] for row in touched.rows())


def test_other_words_are_an_update(touched: Told, mail: Mailbox) -> None:
    touched.typed("--send", "--tenant", "acme")

    def note(store: Store) -> None:
        store.note_incident(
            touched.incident, "we give it all back", public=True, actor="ann", at_us=1
        )
        store.note_incident(touched.incident, "it was Bob", actor="ann", at_us=1)

    touched.act(note)
    rows = touched.rows("--tenant", "acme")
    assert [(row["sent_at"], row["is_update"]) for row in rows] == [(None, True)] * 2
    assert "2 sent, 0 were sent before" in touched.typed("--send", "--tenant", "acme")
    assert "we give it all back" in str(mail.mails[1])
    assert "Bob" not in str(mail.mails[1])


def test_what_does_not_arrive_is_told_and_sent_the_next_time(
    touched: Told, mail: Mailbox, hook: Receiver
) -> None:
    mail.refuses, hook.always = {"RCPT": 550}, 500
    rows = touched.rows("--send", code=3)
    failed = {row["kind"]: row["error"] for row in rows if not row["arrived"]}
    assert set(failed) == {"email", "webhook", "slack"}
    assert "550" in failed["email"]
    assert SECRET not in str(rows)
    mail.refuses, hook.always = {}, 200
    assert "3 sent, 1 were sent before" in touched.typed("--send")


def test_the_record_tells_who_was_told(touched: Told) -> None:
    touched.typed("--send", "--tenant", "acme")
    world = World(touched.data)
    rows = world.rows(
        "SELECT tenant, rule, detail, actor FROM event WHERE type = 'incident.notified'"
    )
    world.store.close()
    assert [(tenant, rule) for tenant, rule, _, _ in rows] == [("acme", "email"), ("acme", "file")]
    assert rows[0][2].endswith(" to ops@acme.example")
    assert all(actor for *_, actor in rows)


def test_words_of_the_world_are_no_markup(touched: Told, hook: Receiver) -> None:
    touched.typed("--send", "--tenant", "globex", "--status", "<!channel> see https://evil\x1b[2J")
    text = next(one.json["text"] for one in hook.got if one.path == "/slack")
    assert "<!channel>" not in text
    assert "://" not in text
    assert "\x1b" not in text


def test_a_link_in_place_of_a_file_is_not_followed(touched: Told, tmp_path: Path) -> None:
    aim = tmp_path / "aim"
    aim.write_text("mine")
    (touched.data / "notices").mkdir(mode=0o700)
    (touched.data / "notices" / "acme.txt").symlink_to(aim)
    rows = touched.rows("--send", "--tenant", "acme", code=3)
    assert [row["arrived"] for row in rows] == [True, False]
    assert aim.read_text() == "mine"


def test_without_contacts_it_says_what_to_write(touched: Told) -> None:
    (touched.config / "contacts.yaml").unlink()
    output = touched.typed("--send", code=2)
    assert "contacts.yaml; write whom to tell there" in output
    assert "either --plan or --send" in touched.typed("--plan", "--send", code=2)


def test_a_tenant_that_it_did_not_touch_is_told_so(touched: Told) -> None:
    output = touched.typed("--send", "--tenant", "umbrella", code=4)
    assert "it touched no tenant umbrella; it touched acme, globex, initech" in output
