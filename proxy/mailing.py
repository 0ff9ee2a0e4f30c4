"""One e-mail, handed in at a mail server: by TLS that is verified, bounded in time. It waits, and
belongs to a thread or to a command.
"""

import base64
import smtplib
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from pathlib import Path

from proxy.contacts import Smtp
from proxy.credentials import Credentials

SEND_SECONDS = 20.0  # of each answer of the mail server


@dataclass(frozen=True, slots=True)
class Mail:
    to: str
    subject: str
    text: str = field(repr=False)
    id: str
    """Of the message (RFC 5322, section 3.6.4): one that is handed in twice may be told apart."""


class Unsent(Exception):
    """It was not handed in, or nobody knows; the message says why and holds no secret."""


def send(server: Smtp, mail: Mail, known: Credentials, trust: Path | None, at_us: int) -> None:
    """Raises Unsent."""
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"], message["Subject"] = server.sender, mail.to, mail.subject
    message["Date"] = formatdate(at_us / 1e6)
    message["Message-ID"] = f"<{mail.id}@{server.sender.partition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no machine answers it
    message.set_content(mail.text)
    login = _login(server, known)
    try:
        context = ssl.create_default_context(cafile=None if trust is None else str(trust))
        with _connected(server, context) as line:
            if server.tls == "starttls":
                line.starttls(context=context)
            if login is not None:
                line.login(*login)
            line.send_message(message)
    except ssl.SSLCertVerificationError as error:
        why = f"the certificate of {server.host} is not trusted: {error.verify_message}"
        raise Unsent(why) from None
    except smtplib.SMTPAuthenticationError:
        raise Unsent(f"{server.host} refused the entry {server.auth!r} of its `auth`") from None
    except smtplib.SMTPResponseException as error:
        raise Unsent(f"{server.host} answered {error.smtp_code}") from None
    except smtplib.SMTPRecipientsRefused as error:
        codes = ", ".join(str(code) for code, _ in error.recipients.values())
        raise Unsent(f"{server.host} refused {mail.to}: {codes}") from None
    except smtplib.SMTPNotSupportedError as error:
        raise Unsent(f"{server.host} cannot do it: {error}") from None
    except (smtplib.SMTPException, OSError) as error:
        why = getattr(error, "strerror", None) or "it broke off"
        raise Unsent(f"{server.host} cannot be reached: {why}") from None


def _connected(server: Smtp, context: ssl.SSLContext) -> smtplib.SMTP:
    if server.tls == "implicit":
        return smtplib.SMTP_SSL(server.host, server.port, timeout=SEND_SECONDS, context=context)
    return smtplib.SMTP(server.host, server.port, timeout=SEND_SECONDS)


def _login(server: Smtp, known: Credentials) -> tuple[str, str] | None:
    if server.auth is None:
        return None
    found = known.headers.get(server.auth)
    if found is None or not found.value.startswith("Basic "):
        raise Unsent(
            "its `auth` names no `basic` entry of credentials.yaml in the data directory; add "
            f"NAME: {{hosts: [{server.host}], basic: {{user: ..., password: ...}}}} there"
        )
    if server.host not in found.hosts:
        raise Unsent(f"the entry of its `auth` may not go to {server.host}: add it to its `hosts`")
    user, _, password = base64.b64decode(found.value.removeprefix("Basic ")).decode().partition(":")
    return user, password
