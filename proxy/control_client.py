"""Asking the running proxy: HTTP over its control socket. The other side is control.py.

Every command imports this, and few ask: http.client, which is slow to import, waits until then.
"""

import socket
from pathlib import Path
from typing import Any

SOCKET = "control.sock"

# A pull answers after its commit and after the matching calls are cut; a proxy that takes longer
# than this has to be taken for dead.
ANSWER_SECONDS = 10.0


class Unreachable(Exception):
    """No proxy answers on the socket; the message names it and says what to do."""


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
    """The answer's JSON. Raises Unreachable, and Refused for any status of 400 or more."""
    import http.client
    import json

    where = data / SOCKET
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(timeout_seconds)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    try:
        connection.sock.connect(str(where))
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except TimeoutError:
        raise Unreachable(
            f"the proxy at {where} did not answer within {timeout_seconds:g} seconds; "
            "if it hangs, end its process and start it again"
        ) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise Unreachable(f"no proxy runs on {data}; start one with: pullcord up") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(f"the proxy at {where} cannot be asked: {error}") from None
    finally:
        connection.close()
    if response.status >= 400:
        raise Refused(response.status, str(answer.get("error", "it gave no reason")))
    return answer
