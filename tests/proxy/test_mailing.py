"""One e-mail to a real mail server: over TLS that is verified, with words of ours when it fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.contacts import Smtp
from proxy.credentials import Credential, Credentials
from proxy.mailing import Mail, Unsent, send
from tests.proxy.mail_receiver import Mailbox, receiving_mail

AT_US = 1_800_000_000_000_000
MAIL = Mail("ops@acme.example", "Incident 01a2", "Guten Tag,\n.\nés ist vorbei\n", "abc123")
PASSWORD = "s3cr3t-of-the-test"
BASIC = "b25jYWxsOnMzY3IzdC1vZi10aGUtdGVzdA=="  # oncall and that password
NOBODY = Credentials()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Mailbox]:
    with receiving_mail(tmp_path) as made:
        yield made


def a_server(box: Mailbox, **changes: object) -> Smtp:
    told = {"host": "localhost", "port": box.port, "from": "oncall@fleet.example", **changes}
    return Smtp.model_validate(told)


def known(*hosts: str) -> Credentials:
    entry = Credential("mail", frozenset(hosts), "authorization", f"Basic {BASIC}", (PASSWORD,))
    return Credentials({"mail": entry})


def why(
    box: Mailbox, server: Smtp, entries: Credentials = NOBODY, trust: Path | None = None
) -> str:
    with pytest.raises(Unsent) as told:
        send(server, MAIL, entries, trust or box.ca, AT_US)
    assert PASSWORD not in str(told.value)
    return str(told.value)


def test_a_mail_arrives_whole_and_encrypted(box: Mailbox) -> None:
    send(a_server(box), MAIL, NOBODY, box.ca, AT_US)
    (mail,) = box.mails
    assert (mail["From"], mail["To"], mail["Subject"]) == (
        *("oncall@fleet.example", "ops@acme.example"),
        "Incident 01a2",
    )
    assert mail["Message-ID"] == "<abc123@fleet.example>"
    assert mail["Date"] == "Fri, 15 Jan 2027 08:00:00 -0000"
    assert mail.get_payload(decode=True).decode().replace("\r\n", "\n") == MAIL.text  # type: ignore[union-attr]
    assert box.encrypted == [True]
    assert box.recipients == ["to:<ops@acme.example>"]


def test_without_encryption_only_to_this_machine(box: Mailbox) -> None:
    send(a_server(box, tls="none"), MAIL, NOBODY, box.ca, AT_US)
    assert box.encrypted == [False]
    with pytest.raises(ValueError, match="on this machine"):
        a_server(box, tls="none", host="mail.example")


def test_a_password_goes_to_its_hosts_alone(box: Mailbox) -> None:
    box.auth = f"oncall:{PASSWORD}"
    send(a_server(box, auth="mail"), MAIL, known("localhost"), box.ca, AT_US)
    assert len(box.mails) == 1
    assert "add it to its `hosts`" in why(box, a_server(box, auth="mail"), known("other"))
    assert "basic: {user: ..., password: ...}" in why(box, a_server(box, auth="mail"))
    box.auth = "oncall:another"
    assert why(box, a_server(box, auth="mail"), known("localhost")) == (
        "localhost refused the entry 'mail' of its `auth`"
    )
    assert len(box.mails) == 1


def test_a_certificate_that_is_not_trusted_ends_it(box: Mailbox, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with receiving_mail(other) as stranger:
        assert "the certificate of localhost is not trusted" in why(
            box, a_server(box), trust=stranger.ca
        )
    assert box.mails == []


def test_what_the_server_refuses_is_told_without_its_words(box: Mailbox) -> None:
    for verb, code, told in (
        ("MAIL", 421, "localhost answered 421"),
        ("RCPT", 550, "localhost refused ops@acme.example: 550"),
        ("DATA", 554, "localhost answered 554"),
    ):
        box.refuses = {verb: code}
        assert why(box, a_server(box)) == told
    box.refuses = {"STARTTLS": 454}
    assert "454" in why(box, a_server(box)) or "cannot" in why(box, a_server(box))
    assert box.mails == []


def test_nobody_there_is_told(box: Mailbox) -> None:
    assert "cannot be reached" in why(box, a_server(box, port=1))
