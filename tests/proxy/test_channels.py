"""The setting `notify`: what it may say, how its mistakes are told, and that it tells no secret."""

from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.channels import (
    CHANNELS_MAX,
    PAGERDUTY_URL,
    Alertmanager,
    PagerDuty,
    Slack,
    Unready,
    Webhook,
    in_the_clear,
    shown,
    target,
)
from proxy.credentials import Credentials, load_all
from proxy.settings import FILE, Settings, SettingsError, load

SECRET = "xoxb-0123456789-of-the-test"
FOUR = """\
notify:
  - {kind: webhook, url: "https://hooks.example/pullcord", secret: hook}
  - {kind: slack, url: chat}
  - {kind: pagerduty, key: pager}
  - {kind: alertmanager, url: "https://am.example:9093/prefix/", auth: am}
"""
ENTRIES = f"""\
hook: {{secret: {SECRET}}}
chat: {{url: "https://hooks.slack.example/services/T0/B0/{SECRET}"}}
pager: {{secret: {SECRET}}}
am: {{hosts: [am.example], bearer: {SECRET}}}
elsewhere: {{hosts: [other.example], bearer: {SECRET}}}
"""

Reads = Callable[..., Settings]


@pytest.fixture
def reads(tmp_path: Path) -> Reads:
    def read(text: str, **environ: str) -> Settings:
        (tmp_path / FILE).write_text(text)
        return load(tmp_path, {}, environ)

    return read


@pytest.fixture
def known(tmp_path: Path) -> Credentials:
    path = tmp_path / "credentials.yaml"
    path.write_text(ENTRIES)
    path.chmod(0o600)
    return load_all(tmp_path)


def test_each_kind_is_read(reads: Reads) -> None:
    settings = reads(FOUR)
    assert settings.notify == (
        Webhook(kind="webhook", url="https://hooks.example/pullcord", secret="hook"),
        Slack(kind="slack", url="chat"),
        PagerDuty(kind="pagerduty", key="pager", url=PAGERDUTY_URL),
        Alertmanager(kind="alertmanager", url="https://am.example:9093/prefix/", auth="am"),
    )
    assert [each.title for each in settings.notify] == [
        "webhook",
        "slack",
        "pagerduty",
        "alertmanager",
    ]
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_one_channel_needs_no_list_and_a_variable_holds_the_same(reads: Reads) -> None:
    one = reads("notify: {kind: slack, url: chat, name: night}\n")
    assert [each.title for each in one.notify] == ["night"]
    assert reads("", PULLCORD_NOTIFY="[{kind: slack, url: chat, name: night}]").notify == one.notify
    assert reads("").notify == ()


@pytest.mark.parametrize(
    "text, told",
    [
        ("{kind: pigeon}", "notify: 1"),
        ("{url: chat}", "notify: 1"),
        ("[{kind: slack, url: a}, {kind: slack}]", "notify: 2: slack: url: Field required"),
        ("{kind: slack, url: a, colour: red}", "notify: 1: slack: colour: Extra inputs"),
        ("{kind: slack, url: a, name: 'a b'}", "notify: 1: slack: name"),
        ("[{kind: slack, url: a}, {kind: slack, url: b}]", "two channels are called slack"),
        ("{kind: webhook, url: hooks.example, secret: a}", "write a URL, such as https://HOST"),
        ("{kind: webhook, url: 'https://a:b@h.example', secret: a}", "a password does not belong"),
        ("{kind: webhook, url: 'https://h.example'}", "notify: 1: webhook: secret: Field required"),
        (f"{{kind: slack, url: 'https://h.example/{SECRET}'}}", "write NAME here"),
        ("text", "write a list of channels, such as [{kind: slack"),
        ("7", "notify"),
    ],
)
def test_a_mistake_is_told_by_its_place_and_not_by_its_words(
    reads: Reads, text: str, told: str
) -> None:
    with pytest.raises(SettingsError) as mistaken:
        reads(f"notify: {text}\n")
    assert told in str(mistaken.value)
    assert f"{FILE}:1:9: notify" in str(mistaken.value)
    assert SECRET not in str(mistaken.value)


def test_there_are_not_too_many(reads: Reads) -> None:
    many = ", ".join(f"{{kind: slack, url: a, name: s{number}}}" for number in range(9))
    with pytest.raises(SettingsError, match=f"there are {CHANNELS_MAX} channels at most"):
        reads(f"notify: [{many}]\n")


def test_a_channel_finds_its_secrets(reads: Reads, known: Credentials) -> None:
    hook, chat, pager, am = (target(each, known) for each in reads(FOUR).notify)
    assert (hook.url, hook.key) == ("https://hooks.example/pullcord", SECRET)
    assert chat.url == f"https://hooks.slack.example/services/T0/B0/{SECRET}"
    assert (pager.url, pager.key) == (PAGERDUTY_URL, SECRET)
    assert am.url == "https://am.example:9093/prefix/api/v2/alerts"
    assert am.headers == (("authorization", f"Bearer {SECRET}"),)
    assert SECRET not in repr((hook, chat, pager, am))
    for each in (hook, chat, pager, am):
        assert SECRET in each.secrets


def test_where_a_channel_leads_is_shown_by_its_host(reads: Reads, known: Credentials) -> None:
    assert [shown(each, known) for each in reads(FOUR).notify] == [
        "hooks.example",
        "hooks.slack.example",
        "events.pagerduty.com",
        "am.example",
    ]
    assert shown(Slack(kind="slack", url="none"), known) == "nowhere yet"


@pytest.mark.parametrize(
    "channel, told",
    [
        (Webhook(kind="webhook", url="https://h.example", secret="none"), "its secret names no"),
        (Webhook(kind="webhook", url="https://h.example", secret="chat"), "its secret names no"),
        (Slack(kind="slack", url="hook"), "its url names no entry of credentials.yaml"),
        (PagerDuty(kind="pagerduty", key=SECRET), "its key names no entry of credentials.yaml"),
        (
            Alertmanager(kind="alertmanager", url="https://am.example", auth="hook"),
            "its auth names",
        ),
        (
            Alertmanager(kind="alertmanager", url="https://am.example", auth="elsewhere"),
            "may not go to am.example",
        ),
    ],
)
def test_what_is_missing_is_told_without_its_name(
    channel: Webhook | Slack | PagerDuty | Alertmanager, told: str, known: Credentials
) -> None:
    with pytest.raises(Unready) as unready:
        target(channel, known)
    assert told in str(unready.value)
    assert SECRET not in str(unready.value)


@pytest.mark.parametrize(
    "url, clear",
    [
        ("https://am.example", False),
        ("http://am.example", True),
        ("http://10.0.0.1", True),
        ("http://localhost:9093", False),
        ("http://127.0.0.1:9093", False),
        ("http://[::1]:9093", False),
    ],
)
def test_what_crosses_a_network_in_the_clear(url: str, clear: bool) -> None:
    channel = Alertmanager(kind="alertmanager", url=url)
    assert in_the_clear(target(channel, Credentials())) is clear
