"""config/contacts.yaml: whom to tell of an incident that touched a tenant, and in which words.

Nothing in it is secret: what is, stands in DATA/credentials.yaml under the names that are written
here. What a message says of an incident is filled in by tenant_notices.py.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from policies.document import Document, Mistake, MistakenFileError, read
from policies.mistakes import validated
from proxy.channels import Entry, Name, Url

FILE = "contacts.yaml"
TENANTS_MAX = 10_000
CONTACTS_MAX = 16  # of one tenant
TEMPLATE_CHARACTERS_MAX = 8_192
EVERY_TENANT = "*"
SMTP_PORT = 587  # RFC 6409: submission

PLACE = re.compile(r"\{([a-z_]+)\}")
PLACES = (
    "tenant", "incident", "what", "since", "until", "runs", "calls", "writes", "done", "unknown",
    "undone", "spend_usd", "status", "eta", "next_update", "updates", "from",
)  # fmt: skip

TEMPLATE = """\
{what}

Since {since}, in calls for {tenant}:
- writes that may concern you: {writes}
- made: {done}
- not known yet: {unknown}
- taken back: {undone}

Status: {status}
Solved by: {eta}
Next update: {next_update}

{updates}

{from} (incident {incident})
"""

_ADDRESS = re.compile(r"[^@\s,;<>\"\\]{1,64}@[A-Za-z0-9.-]{1,253}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _address(text: str) -> str:
    """Plain addresses only, so that nothing in one is read as a header or a second address."""
    if not _ADDRESS.fullmatch(text):
        raise ValueError("must be an e-mail address, such as ops@example.com")
    return text


def _template(text: str) -> str:
    unknown = [name for name in PLACE.findall(text) if name not in PLACES]
    if unknown:
        raise ValueError(f"knows no place {{{unknown[0]}}}; there are {', '.join(PLACES)}")
    return text


def _file_name(text: str) -> str:
    if not _FILE_NAME.fullmatch(text):
        raise ValueError("must be the plain name of a file; it is put into DATA/notices")
    return text


Address = Annotated[str, Field(max_length=320), AfterValidator(_address)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Contact(_Part):
    name: Name | None = None  # its kind, where it is the only one of it

    @property
    def title(self) -> str:
        return self.name or str(getattr(self, "kind", ""))


class WebhookContact(_Contact):
    """`secret` names the entry with which what is sent is signed."""

    kind: Literal["webhook"]
    url: Url
    secret: Entry


class SlackContact(_Contact):
    """`url` names an entry: who knows the URL of an incoming webhook may write to it."""

    kind: Literal["slack"]
    url: Entry


class EmailContact(_Contact):
    kind: Literal["email"]
    to: Address


class FileContact(_Contact):
    """For a person or another program to send: DATA/notices/NAME, one message behind the other."""

    kind: Literal["file"]
    file: Annotated[str, AfterValidator(_file_name)]


AnyContact = WebhookContact | SlackContact | EmailContact | FileContact
Contact = Annotated[AnyContact, Field(discriminator="kind")]


class Smtp(_Part):
    """Where e-mail is handed in. `auth` names a `basic` entry of credentials.yaml whose `hosts`
    list the host."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    host: Annotated[str, Field(min_length=1, max_length=253)]
    port: Annotated[int, Field(ge=1, le=65_535)] = SMTP_PORT
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    auth: Entry | None = None
    sender: Annotated[Address, Field(alias="from")]

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.tls == "none" and self.host not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("tls: none is for a mail server on this machine; write starttls")
        return self


class Contacts(_Part):
    """The file. Tenants that it does not list are told as `"*"` says; without that, nobody is."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    version: Literal[1]
    signed: Annotated[str, Field(alias="from", min_length=1, max_length=200)] = "The operators"
    message: Annotated[
        str, Field(min_length=1, max_length=TEMPLATE_CHARACTERS_MAX), AfterValidator(_template)
    ] = TEMPLATE
    smtp: Smtp | None = None
    tenants: Annotated[
        dict[str, Annotated[tuple[Contact, ...], Field(max_length=CONTACTS_MAX)]],
        Field(max_length=TENANTS_MAX),
    ] = {}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for tenant, contacts in self.tenants.items():
            titles = [each.title for each in contacts]
            twice = next((title for title in titles if titles.count(title) > 1), None)
            if twice is not None:
                raise ValueError(
                    f"tenant {tenant} has two contacts called {twice}; give each a `name:`"
                )
            if self.smtp is None and any(isinstance(each, EmailContact) for each in contacts):
                raise ValueError(
                    f"tenant {tenant} is told by e-mail, and there is no `smtp:`; add "
                    "smtp: {host: HOST, from: ADDRESS}"
                )
        return self

    def of(self, tenant: str) -> tuple[AnyContact, ...]:
        return self.tenants.get(tenant, self.tenants.get(EVERY_TENANT, ()))


def load(directory: Path) -> Contacts | None:
    """None where there is no such file. Raises MistakenFileError."""
    path = directory / FILE
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise MistakenFileError(str(path), [Mistake(0, 0, f"cannot be read: {why}")]) from None
    document: Document = read(text, str(path))
    found, mistakes = validated(Contacts, document, {"version": 1})
    if mistakes or found is None:
        raise MistakenFileError(str(path), mistakes)
    return found
