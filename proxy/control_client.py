"""Asking the running proxy: HTTP over its control socket, or its control port where
PULLCORD_CONTROL names one. The other side is control.py.

Every command imports this, and few ask: http.client, which is slow to import, waits until then.
"""

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.control_socket import address as socket_address

if TYPE_CHECKING:
    from http.client import HTTPConnection

SOCKET = "control.sock"

HELD = "the cord stands in the proxy's memory until it can be stored"
"""What the proxy adds to its refusal when its ledger failed under a pull."""
OLDER = "the proxy that runs is older than this command; restart it"
TOKEN_FILE = "operator.token"  # noqa: S105 - the name of a file
PORT_VARIABLE = "PULLCORD_CONTROL"
TOKEN_VARIABLE = "PULLCORD_OPERATOR_TOKEN"  # noqa: S105 - the name of a variable

# A pull answers after its commit and after the matching calls are cut; a proxy that takes longer
# than this has to be taken for dead.
ANSWER_SECONDS = 10.0

UNAVAILABLE = 503  # the proxy's ledger cannot record
NOT_IMPLEMENTED = 501  # said in place of a proxy that lacks the route

_LOOPBACK = re.compile(
    r"(?:http://)?(?P<host>localhost|127(?:\.\d{1,3}){3}|\[::1\]):(?P<port>\d{1,5})/?"
)


class Unreachable(Exception):
    """No proxy answers on the socket; the message names it and says what to do."""


class PortUnreachable(Exception):
    """None answers at PULLCORD_CONTROL, or none that can act. Not an Unreachable: the ledger and
    the file HALT of this machine may be another proxy's."""


class Refused(Exception):
    """The proxy answered that it will not. `status` is the HTTP status; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def ask(
    data: Path,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    timeout_seconds: float = ANSWER_SECONDS,
) -> Any:
    """The answer's JSON. Raises Unreachable or PortUnreachable, and Refused for any status of 400
    or more."""
    import http.client
    import json

    address = os.environ.get(PORT_VARIABLE)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if address:
        connection, shown = _at_port(address, timeout_seconds), address
        headers["Authorization"] = f"Bearer {_token(data)}"
    else:
        connection, shown = http.client.HTTPConnection("localhost"), str(data / SOCKET)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(timeout_seconds)
    unreachable = PortUnreachable if address else Unreachable
    try:
        if not address:
            with socket_address(data / SOCKET) as name:
                connection.sock.connect(name)
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except TimeoutError:
        raise unreachable(
            f"the proxy at {shown} did not answer within {timeout_seconds:g} seconds; "
            "if it hangs, end its process and start it again"
        ) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise unreachable(
            f"no proxy answers at {shown} ({PORT_VARIABLE}); is it up, with --control?"
            if address
            else f"no proxy runs on {data}; start one with: pullcord up"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise unreachable(f"the proxy at {shown} cannot be asked: {error}") from None
    finally:
        connection.close()
    if response.status < 400:
        return answer
    message = str(answer.get("error", "it gave no reason"))
    if _lacks_route(method, message):
        raise Refused(NOT_IMPLEMENTED, f"{OLDER} ({message})")
    if address and method == "POST" and response.status == UNAVAILABLE:
        raise PortUnreachable(
            f"the proxy at {shown} cannot do that now: {message}; type the same on its own machine "
            f"without {PORT_VARIABLE}, where a cord has more ways"
        )
    raise Refused(response.status, message)


def _lacks_route(method: str, message: str) -> bool:
    """As control.py tells of what is no route there; our own sentences begin otherwise."""
    return message.startswith(f"{method} /") and message.endswith(
        (": Not Found", ": Method Not Allowed")
    )


def _at_port(address: str, timeout_seconds: float) -> "HTTPConnection":
    import http.client

    found = _LOOPBACK.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise PortUnreachable(
            f"{PORT_VARIABLE} is {address!r}; write http://127.0.0.1:PORT. A token is not sent to "
            "another machine in the clear: reach it through ssh -L PORT:127.0.0.1:PORT HOST"
        )
    return http.client.HTTPConnection(
        found["host"].strip("[]"), int(found["port"]), timeout=timeout_seconds
    )


def _token(data: Path) -> str:
    """Raises Refused: the proxy would, without one."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        token = token or (data / TOKEN_FILE).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not re.fullmatch(r"[!-~]+", token):
        raise Refused(
            401,
            f"{PORT_VARIABLE} is set, so a token is needed: in {TOKEN_VARIABLE}, or in "
            f"{data / TOKEN_FILE}; unset {PORT_VARIABLE} to use the control socket",
        )
    return token
