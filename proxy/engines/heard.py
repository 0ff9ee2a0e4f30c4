"""What was heard of a request, whichever library read it: who is calling, and what may be said of
one that cannot be judged."""

from dataclasses import dataclass

from policies.call import Request
from proxy import head
from proxy.identity import Credentials
from proxy.live import Live
from proxy.refuse import Refusal

CLOSING = frozenset((400, 413, 431))  # after these nobody can say where the next request starts


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What a CONNECT named, and the credentials it carried."""

    host: str
    port: int
    credentials: Credentials | None


def seen(method: str, scheme: str, host: str, port: int, target: str, content_type: str) -> Request:
    """What can be said of a request that cannot be judged: printable, short, without secrets.

    Its content type says in which dialect it is refused.
    """
    path = target.partition("?")[0].partition("#")[0]
    return Request(
        _plain(method, 32),
        scheme,
        head.plain_host(_plain(host, 255)),
        port,
        _plain(path, 1024) or "/",
        (("content-type", _plain(content_type.lower(), 255)),),
    )


def connecting(host: str, port: int, fields: head.Headers, *, http10: bool) -> head.Head:
    """The head of a CONNECT, whose target is an authority."""
    authority = f"{host}:{port}" if ":" not in host else None
    return head.Head(
        "CONNECT", "https", host, port, "/", fields, authority=authority, http10=http10
    )


def as_refusal(answer: Live | Refusal) -> Refusal:
    """What a request is told that can only be refused."""
    if isinstance(answer, Refusal):
        return answer
    raise RuntimeError("a faulty request was admitted")


def _plain(text: str, size: int) -> str:
    return "".join(c if "!" <= c <= "~" else "?" for c in text[:size])
