"""DATA/credentials.yaml: who may read it, what it may say, and that nobody is told its secrets."""

import os
from pathlib import Path

import pytest

from proxy import credentials
from proxy.credentials import Credential, CredentialsError, load, load_all

SECRET = "sk_live_0123456789abcdef"


def written(data: Path, text: str, mode: int = 0o600) -> Path:
    path = data / credentials.FILE
    path.write_text(text, "utf-8")
    path.chmod(mode)
    return data


def one(data: Path, entry: str) -> Credential:
    return load(written(data, f"ops: {{hosts: [api.example], {entry}}}"))["ops"]


def test_where_no_file_is_no_entries_are(tmp_path: Path) -> None:
    assert load(tmp_path) == {}
    assert load(written(tmp_path, "")) == {}
    assert load(written(tmp_path, "# none yet\n")) == {}


@pytest.mark.parametrize(
    "entry, header, value, secrets",
    [
        (f"bearer: {SECRET}", "authorization", f"Bearer {SECRET}", (SECRET,)),
        (f"header: X-Api-Key, value: {SECRET}", "x-api-key", SECRET, (SECRET,)),
        (
            f"header: Authorization, value: 'Bearer {SECRET}'",
            "authorization",
            f"Bearer {SECRET}",
            (SECRET,),
        ),
        (
            "basic: {user: ann, password: pw}",
            "authorization",
            "Basic YW5uOnB3",
            ("YW5uOnB3", "ann:pw", "pw"),
        ),
    ],
)
def test_an_entry_is_one_header(
    tmp_path: Path, entry: str, header: str, value: str, secrets: tuple[str, ...]
) -> None:
    found = one(tmp_path, entry)
    assert (found.header, found.value, found.secrets) == (header, value, secrets)
    assert found.hosts == {"api.example"}


def test_an_entry_does_not_show_its_secret(tmp_path: Path) -> None:
    assert SECRET not in repr(one(tmp_path, f"bearer: {SECRET}"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o610])
def test_a_file_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(CredentialsError) as told:
        load(written(tmp_path, f"ops: {{hosts: [a.example], bearer: {SECRET}}}", mode))
    assert f"chmod 600 {tmp_path / credentials.FILE}" in str(told.value)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, f"ops: {{hosts: [a.example], bearer: {SECRET}}}")
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(CredentialsError, match="belongs to another user"):
        load(tmp_path)


def test_a_link_a_directory_and_a_pipe_are_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    written(elsewhere, "a: {hosts: [a.example], bearer: x}")
    path = tmp_path / credentials.FILE
    path.symlink_to(elsewhere / credentials.FILE)
    with pytest.raises(CredentialsError, match="cannot be read"):
        load(tmp_path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(CredentialsError, match="no plain file"):
        load(tmp_path)
    path.unlink()
    path.mkdir(0o700)
    with pytest.raises(CredentialsError, match="no plain file"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text, told",
    [
        (f"ops: {{bearer: {SECRET}}}", ":1:6: the entry must say in 'hosts' to which hosts"),
        (f"ops: {{hosts: [a.example], secret: {SECRET}}}", "must hold no 'hosts'"),
        (f"ops: {{secret: {SECRET}, url: 'https://a.example'}}", "must hold one of"),
        (f"ops: {{url: {SECRET}}}", ":1:12: 'url' must be a URL"),
        (f"ops: {{url: 'https://u:{SECRET}@a.example'}}", "'url' must be a URL"),
        (f"ops: {{hosts: [], bearer: {SECRET}}}", ":1:14: 'hosts' must not be empty"),
        (f"ops: {{hosts: a.example, bearer: {SECRET}}}", "'hosts' must be a list"),
        (f"ops: {{hosts: ['*.a.example'], bearer: {SECRET}}}", "must be the name of one host"),
        (f"ops: {{hosts: ['https://a.example'], bearer: {SECRET}}}", "the name of one host"),
        (f"ops: {{hosts: [a.example], bearr: {SECRET}}}", ":1:27: this is no key here"),
        ("ops: {hosts: [a.example]}", "the entry must hold one of"),
        (f"ops: {{hosts: [a.example], header: X-Key, bearer: {SECRET}}}", "must hold one of"),
        (f"ops: {{hosts: [a.example], value: {SECRET}}}", "must hold one of"),
        (
            f"ops: {{hosts: [a.example], bearer: {SECRET}, basic: {{user: a, password: b}}}}",
            "must hold one of",
        ),
        (f"ops: {{hosts: [a.example], header: 'X {SECRET}', value: x}}", "the name of a header"),
        (f"ops: {{hosts: [a.example], header: Host, value: {SECRET}}}", "the name of a header"),
        (f'ops: {{hosts: [a.example], bearer: "{SECRET}\\r\\nX: y"}}', "what a header can hold"),
        (f'ops: {{hosts: [a.example], bearer: " {SECRET}"}}', "what a header can hold"),
        ("ops: {hosts: [a.example], bearer: 0x123456789}", "put its value in quotes"),
        ("ops: {hosts: [a.example], bearer: 123456789}", "'bearer' must be text; put it in quotes"),
        (f"ops: {{hosts: [a.example], bearer: a, bearer: {SECRET}}}", "give each key once"),
        (f"ops: {{hosts: [a.example], bearer: [{SECRET}]}}", "'bearer' must be text"),
        (f"- {SECRET}", "the file must be a mapping"),
        (f"{SECRET}: {SECRET}: x", "this cannot be read"),
        (f"ops: {SECRET}", "the entry must be a mapping"),
    ],
)
def test_a_mistake_is_told_by_its_place_and_never_by_its_words(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(CredentialsError) as mistaken:
        load(written(tmp_path, text))
    message = str(mistaken.value)
    assert told in message
    assert message.startswith(f"{tmp_path / credentials.FILE}:1:")
    for secret in (SECRET, "123456789", "0x12"):
        assert secret not in message
    assert mistaken.value.__cause__ is None
    assert mistaken.value.__context__ is None or mistaken.value.__suppress_context__


def test_hosts_are_compared_in_lower_case(tmp_path: Path) -> None:
    found = load(written(tmp_path, "ops: {hosts: [API.Example., '[::1]'], bearer: x}"))["ops"]
    assert found.hosts == {"api.example", "::1"}


def test_secrets_of_alert_channels_are_no_credentials_of_calls(tmp_path: Path) -> None:
    text = f"pager: {{secret: {SECRET}}}\nslack: {{url: 'https://hooks.example/{SECRET}'}}\n"
    written(tmp_path, text)
    assert load(tmp_path) == {}
    found = load_all(tmp_path)
    assert found.secrets == {"pager": SECRET}
    assert found.urls == {"slack": f"https://hooks.example/{SECRET}"}
    assert SECRET not in repr(found)
