"""config/contacts.yaml: what may stand in it, and where a mistake is."""

from pathlib import Path

import pytest

from policies.document import MistakenFileError
from proxy import contacts
from proxy.contacts import EmailContact, FileContact, SlackContact, WebhookContact
from tests.manual import blocks

WHOLE = """\
version: 1
from: ACME's agents team
smtp: {host: smtp.example, from: oncall@fleet.example, auth: mail}
tenants:
  acme:
    - {kind: email, to: ops@acme.example}
    - {kind: webhook, url: "https://hooks.acme.example/p", secret: acme-hook}
    - {kind: slack, name: shared, url: acme-slack}
  "*": [{kind: file, file: others.txt}]
"""


def loaded(folder: Path, text: str) -> contacts.Contacts | None:
    (folder / contacts.FILE).write_text(text)
    return contacts.load(folder)


def mistakes(folder: Path, text: str) -> str:
    with pytest.raises(MistakenFileError) as told:
        loaded(folder, text)
    return str(told.value)


def test_who_is_told_of_a_tenant(tmp_path: Path) -> None:
    found = loaded(tmp_path, WHOLE)
    assert found is not None
    kinds = [type(each) for each in found.of("acme")]
    assert kinds == [EmailContact, WebhookContact, SlackContact]
    assert [each.title for each in found.of("acme")] == ["email", "webhook", "shared"]
    assert [type(each) for each in found.of("globex")] == [FileContact]
    assert found.signed == "ACME's agents team"
    assert found.smtp is not None
    assert (found.smtp.port, found.smtp.tls) == (587, "starttls")


def test_without_the_file_nobody_is_named(tmp_path: Path) -> None:
    assert contacts.load(tmp_path) is None
    found = loaded(tmp_path, "version: 1\ntenants: {acme: [{kind: file, file: a.txt}]}\n")
    assert found is not None
    assert found.of("globex") == ()


@pytest.mark.parametrize(
    "text, told",
    [
        ("version: 2\n", "1:10"),
        ("version: 1\ntenant: {}\n", "2:1"),
        ("version: 1\ntenants: {a: [{kind: pager}]}\n", "kind"),
        ("version: 1\ntenants: {a: [{kind: email, to: 'a@b.c, d@e.f'}]}\n", "e-mail address"),
        ('version: 1\ntenants: {a: [{kind: email, to: "a@b.c\\nBcc: x"}]}\n', "e-mail address"),
        ("version: 1\ntenants: {a: [{kind: email, to: a@b.c}]}\n", "there is no `smtp:`"),
        ("version: 1\ntenants: {a: [{kind: file, file: ../a}]}\n", "plain name of a file"),
        ("version: 1\ntenants: {a: [{kind: slack, url: 'https://x/y'}]}\n", "credentials.yaml"),
        ("version: 1\nmessage: 'dear {custmer}'\n", "knows no place {custmer}"),
        (
            "version: 1\ntenants: {a: [{kind: file, file: a}, {kind: file, file: b}]}\n",
            "two contacts called file",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    assert told in mistakes(tmp_path, text)


def test_the_example_of_the_readme_is_sound(tmp_path: Path) -> None:
    (example,) = [text for text in blocks("yaml") if text.startswith("version: 1\nfrom: ")]
    found = loaded(tmp_path, example)
    assert found is not None
    assert {each.kind for tenant in found.tenants.values() for each in tenant} == {
        *("email", "slack", "webhook", "file"),
    }
    placed = set(contacts.PLACE.findall(contacts.TEMPLATE))
    assert placed <= set(contacts.PLACES)
