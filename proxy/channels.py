"""Where alerts go: the setting `notify`, and what a channel needs to be sent to.

The setting names entries of DATA/credentials.yaml; nothing in it is secret. What an alert says
stands in notices.py.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from policies.document import MistakenFileError, read
from proxy.credentials import FILE, Credentials

CHANNELS_MAX = 8
PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EXAMPLE = "[{kind: slack, url: NAME}]"


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("write a URL, such as https://HOST/PATH")
    if "@" in parts.netloc:
        raise ValueError(f"a password does not belong here; put it into {FILE}")
    return text


def _entry(text: str) -> str:
    if "/" in text:
        raise ValueError(
            f"this is the name of an entry in {FILE} of the data directory; put what is secret "
            "there, as NAME: {url: ...} or NAME: {secret: ...}, and write NAME here"
        )
    return text


Url = Annotated[str, Field(max_length=2_048), AfterValidator(_url)]
Entry = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_entry)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class _Channel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hears_acks: ClassVar[bool] = False  # what its API knows of them
    name: Name | None = None  # its kind, where it is the only one of it

    @property
    def title(self) -> str:
        return self.name or str(getattr(self, "kind", ""))


class Webhook(_Channel):
    """`secret` names the entry with which what is sent is signed."""

    hears_acks: ClassVar[bool] = True
    kind: Literal["webhook"]
    url: Url
    secret: Entry


class Slack(_Channel):
    """`url` names an entry: who knows the URL of an incoming webhook may write to it."""

    kind: Literal["slack"]
    url: Entry


class PagerDuty(_Channel):
    """`key` names the entry that holds an integration's routing key."""

    hears_acks: ClassVar[bool] = True
    kind: Literal["pagerduty"]
    key: Entry
    url: Url = PAGERDUTY_URL


class Alertmanager(_Channel):
    """`auth` names the credential that it asks for, if it does."""

    kind: Literal["alertmanager"]
    url: Url
    auth: Entry | None = None


Channel = Annotated[Webhook | Slack | PagerDuty | Alertmanager, Field(discriminator="kind")]
AnyChannel = Webhook | Slack | PagerDuty | Alertmanager


def listed(value: Any) -> Any:
    """One channel for a list of it; a variable or a flag holds the YAML of the file."""
    if isinstance(value, str):
        with contextlib.suppress(MistakenFileError):
            value = read(value, "notify").data
    if isinstance(value, dict):
        return (value,)
    if not isinstance(value, list | tuple):
        raise ValueError(f"write a list of channels, such as {_EXAMPLE}")
    return value


def told_apart(channels: tuple[AnyChannel, ...]) -> tuple[AnyChannel, ...]:
    """Raises ValueError."""
    if len(channels) > CHANNELS_MAX:
        raise ValueError(f"there are {CHANNELS_MAX} channels at most")
    titles = [channel.title for channel in channels]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ValueError(f"two channels are called {twice}; give each a `name:` of its own")
    return channels


# ---------------------------------------------------------------------------------- ready to send


class Unready(Exception):
    """A channel cannot be sent to; the message says what to write where, and holds no secret."""


@dataclass(frozen=True, slots=True)
class Target:
    """`key` signs (a webhook) or is sent along (PagerDuty); `secrets` must not be shown, should
    they come back."""

    channel: AnyChannel
    url: str = field(repr=False)
    key: str = field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""


def target(channel: AnyChannel, known: Credentials) -> Target:
    """Raises Unready."""
    if isinstance(channel, Webhook):
        secret = _found(channel.secret, known.secrets, "secret")
        return Target(channel, channel.url, secret, secrets=(secret,))
    if isinstance(channel, Slack):
        url = _found(channel.url, known.urls, "url")
        path = urlsplit(url).path
        return Target(channel, url, secrets=(url, path, path.rpartition("/")[2]))
    if isinstance(channel, PagerDuty):
        key = _found(channel.key, known.secrets, "secret", "key")
        return Target(channel, channel.url, key, secrets=(key,))
    url = channel.url.rstrip("/") + "/api/v2/alerts"
    if channel.auth is None:
        return Target(channel, url)
    auth = _found(channel.auth, known.headers, "bearer", "auth")
    host = urlsplit(url).hostname or ""
    if host not in auth.hosts:
        raise Unready(f"the entry that its auth names may not go to {host}: add it to its `hosts`")
    headers = ((auth.header, auth.value),)
    return Target(channel, url, headers=headers, secrets=(auth.value, *auth.secrets))


def _found[Value](name: str, entries: Mapping[str, Value], kind: str, word: str = "") -> Value:
    """Without the name: somebody may have written the secret in its place."""
    found = entries.get(name)
    if found is None:
        raise Unready(
            f"its {word or kind} names no entry of {FILE} in the data directory that holds a "
            f"`{kind}`; add NAME: {{{kind}: ...}} there, and write NAME here"
        )
    return found


def shown(channel: AnyChannel, known: Credentials) -> str:
    """Where it leads: the host alone, because a path may be secret."""
    url = known.urls.get(channel.url, "") if isinstance(channel, Slack) else channel.url
    return urlsplit(url).hostname or "nowhere yet"


def in_the_clear(target: Target) -> bool:
    """Whether what is secret, or an alert that somebody could change, crosses a network so."""
    return target.url.startswith("http://") and target.host not in _LOOPBACK
