"""DATA/credentials.yaml: the upstream credentials that operator calls carry, and the secrets of
alert channels, by name.

Each credential says to which hosts it may go, so that no edit of the policy sends it elsewhere.
What is secret in it is never told: not in a mistake, not in a log, not by `repr`.
"""

import base64
import os
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic import model_validator as checked
from pydantic_core import ErrorDetails

from policies.document import BYTES_MAX, Document, Location, Mistake, MistakenFileError, parse
from proxy.operations import OperationError

FILE = "credentials.yaml"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_SENDABLE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]+")
_SAYS_SOMETHING = re.compile(r"^\s*[^#\s]", re.MULTILINE)
# Headers that frame a message or say where it goes are no credentials.
FRAMING = frozenset({
    "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade",
    "expect", "keep-alive", "proxy-authorization", "proxy-connection", "content-encoding",
    "accept-encoding",
})  # fmt: skip


class CredentialsError(OperationError):
    """The file cannot be used; the message says why, and what to type."""


@dataclass(frozen=True, slots=True)
class Credential:
    """One entry: the header to send, and the hosts that it may be sent to. `secrets` are the texts
    that must not be shown, should a host send them back."""

    name: str
    hosts: frozenset[str]
    header: str
    value: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """All entries: those that a request carries in a header, keys that are none, URLs that are
    secret as a whole."""

    headers: Mapping[str, Credential] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    urls: Mapping[str, str] = field(default_factory=dict, repr=False)


def load(data: Path) -> Mapping[str, Credential]:
    """Those that a request carries in a header, by name; none where there is no file. Raises
    CredentialsError."""
    return load_all(data).headers


def load_all(data: Path) -> Credentials:
    """Raises CredentialsError."""
    rules = _rules(data / FILE)
    secrets = {name: rule.secret for name, rule in rules.items() if rule.secret is not None}
    urls = {name: rule.url for name, rule in rules.items() if rule.url is not None}
    others = secrets.keys() | urls.keys()
    headers = {n: _credential(n, rule) for n, rule in rules.items() if n not in others}
    return Credentials(headers, secrets, urls)


def _rules(path: Path) -> "Mapping[str, _Rule]":
    text = _read(path)
    if text is None or not _SAYS_SOMETHING.search(text):
        return {}
    try:
        document = parse(text, str(path))
    except MistakenFileError as error:
        raise _mistaken(path, [_quiet(mistake) for mistake in error.mistakes]) from None
    if document.mistakes:
        raise _mistaken(path, [_quiet(mistake) for mistake in document.mistakes])
    try:
        return _RULES.validate_python(document.data)
    except ValidationError as error:
        told = error.errors(include_url=False, include_input=False)
        mistakes = [_located(document, detail) for detail in told]
        raise _mistaken(path, mistakes) from None


def _read(path: Path) -> str | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}") from None
    try:
        _check(path, os.fstat(handle))
        with os.fdopen(handle, "rb", closefd=False) as file:
            text = file.read(BYTES_MAX + 1)
    finally:
        os.close(handle)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise CredentialsError(f"{path} is not UTF-8") from None


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise CredentialsError(f"{path} is no plain file")
    if found.st_uid != os.geteuid():
        raise CredentialsError(
            f"{path} belongs to another user, who could change it: copy it as the user that runs "
            "pullcord"
        )
    if found.st_mode & 0o077:
        raise CredentialsError(
            f"other users may open {path}; type: chmod 600 {shlex.quote(str(path))}"
        )


# ---------------------------------------------------------------------------------- what it may say


def _host(text: str) -> str:
    host = text.lower().removesuffix(".").strip("[]")
    if not _HOST.fullmatch(host):
        raise ValueError("must be the name of one host, such as api.stripe.com")
    return host


def _header(text: str) -> str:
    if not _TOKEN.fullmatch(text) or text.lower() in FRAMING:
        raise ValueError("must be the name of a header, such as Authorization")
    return text.lower()


def _sendable(text: str) -> str:
    if not _SENDABLE.fullmatch(text):
        raise ValueError("must be what a header can hold: printable ASCII, no blanks around it")
    return text


Secret = Annotated[str, Field(min_length=1, max_length=8_192), AfterValidator(_sendable)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class _Basic(_Part):
    user: Annotated[str, Field(min_length=1, max_length=1_024)]
    password: Annotated[str, Field(repr=False, max_length=8_192)] = ""

    @checked(mode="after")
    def _one_colon(self) -> Self:
        if ":" in self.user:  # RFC 7617, section 2
            raise ValueError("'user' must hold no ':'")
        return self


def _url(text: str | None) -> str | None:
    if text is None:
        return None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("must be a URL, such as https://hooks.slack.com/services/...")
    _ = parts.port  # ValueError where it is none
    return text


class _Rule(_Part):
    hosts: Annotated[list[Annotated[str, AfterValidator(_host)]], Field(min_length=1)] | None = None
    header: Annotated[str, AfterValidator(_header)] | None = None
    value: Annotated[Secret | None, Field(repr=False)] = None
    bearer: Annotated[Secret | None, Field(repr=False)] = None
    basic: _Basic | None = None
    secret: Annotated[Secret | None, Field(repr=False)] = None
    url: Annotated[Secret | None, AfterValidator(_url), Field(repr=False)] = None

    @checked(mode="after")
    def _one_kind(self) -> Self:
        kinds = [self.value, self.bearer, self.basic, self.secret, self.url]
        if sum(kind is not None for kind in kinds) != 1 or (self.header is None) is (
            self.value is not None
        ):
            raise ValueError(
                "must hold one of: 'header' with 'value', 'bearer', 'basic', 'secret' or 'url'"
            )
        return self

    @checked(mode="after")
    def _bound(self) -> Self:
        is_sent = self.secret is None and self.url is None
        if is_sent and self.hosts is None:
            raise ValueError("must say in 'hosts' to which hosts it may go")
        if not is_sent and self.hosts is not None:
            raise ValueError("must hold no 'hosts': the setting notify says where it goes")
        return self


_Name = Annotated[str, Field(min_length=1, max_length=256)]
_RULES = TypeAdapter(dict[_Name, _Rule])


def _credential(name: str, rule: _Rule) -> Credential:
    hosts = frozenset(rule.hosts or ())
    if rule.basic is not None:
        plain = f"{rule.basic.user}:{rule.basic.password}"
        coded = base64.b64encode(plain.encode("utf-8")).decode("ascii")
        secrets = tuple(filter(None, (coded, plain, rule.basic.password)))
        return Credential(name, hosts, "authorization", f"Basic {coded}", secrets)
    if rule.bearer is not None:
        value = f"Bearer {rule.bearer}"
        return Credential(name, hosts, "authorization", value, (rule.bearer,))
    value = rule.value or ""
    scheme, blank, rest = value.partition(" ")
    # `Bearer sk_...`: the word before it is no secret, and stands in other texts, too.
    secret = rest.strip() if blank and scheme.isalpha() and rest.strip() else value
    return Credential(name, hosts, rule.header or "", value, (secret,))


# ---------------------------------------------------------------------------------- what is wrong

_TOLD = {
    "extra_forbidden": "is no key here; there are hosts, header, value, bearer, basic: user, "
    "password, secret, url",
    "missing": "is missing",
    "string_type": "must be text; put it in quotes",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long",
}


def _located(document: Document, error: ErrorDetails) -> Mistake:
    """Told without what stands there: only words of ours."""
    location: Location = error["loc"]
    kind = error["type"]
    known = [part for part in location if part in _Rule.model_fields or part in _Basic.model_fields]
    subject = repr(known[-1]) if known else "the entry"
    if kind == "value_error":
        return document.at(location, f"{subject} {error['ctx']['error']}")
    text = _TOLD.get(kind, "cannot be used")
    if kind == "extra_forbidden":
        return document.at(location, f"this {text}", of_key=True)
    if kind == "missing":
        return document.at(location[:-1], f"{location[-1]!r} {text}")
    return document.at(location, f"{subject} {text}" if location else f"the file {text}")


def _quiet(mistake: Mistake) -> Mistake:
    """A mistake of the YAML, without the words of the file that it may quote."""
    text = "this cannot be read; give each key once, and put its value in quotes"
    return Mistake(mistake.line, mistake.column, text)


def _mistaken(path: Path, mistakes: list[Mistake]) -> CredentialsError:
    return CredentialsError(str(MistakenFileError(str(path), mistakes)))
