"""What changes by itself between two calls that are the same: ids of requests, nonces, times.

It is taken out before arguments and results are hashed for the detectors, by one pass of a pattern
over the text, linear in its length. In arguments only members that are named as volatile and times
of day go: a number or an id there says what is asked for. In results ids of the usual kinds go,
too. What hides behind no such name or form, detectors find by other counts (loop.py, burn.py).
"""

import re

HASHED_BYTES_MAX = 64 * 1024  # of a longer text its beginning and its length are compared

_ASKED = (  # names that no tool takes a meaning from
    "request_?id|req_?id|trace_?id|span_?id|correlation_?id|client_?token|idempotency_?key|nonce|"
    "salt|timestamp|ts|now|current_?time|attempt|retry|retries|task_?progress"
)
_TOLD = (
    f"{_ASKED}|uuid|date|datetime|time|server_?time|generated_?at|fetched_?at|etag|"
    "elapsed(?:_?ms|_?seconds)?|duration(?:_?ms|_?seconds)?|latency(?:_?ms)?|uptime|counter|"
    "sequence|seq"
)
_ZONE = r"(?:Z|[+-][0-9]{2}:?[0-9]{2})?"
_ISO = rf"\b[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[T ][0-9]{{2}}:[0-9]{{2}}(?::[0-9.]{{2,12}})?{_ZONE}"
_HTTP_DATE = r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8}"
_CLOCK = r"\b[0-2][0-9]:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?\b"
_EPOCH = r"\b1[5-9][0-9]{8}(?:[0-9]{3}|[0-9]{6}|\.[0-9]{1,9})?\b"
_UUID = r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"
_HEX = r"\b(?=[a-f]{0,15}[0-9])[0-9a-f]{16,64}\b"


def _pattern(names: str, *forms: str) -> re.Pattern[bytes]:
    member = rf'"(?:x[-_])?(?:{names})"\s{{0,9}}:\s{{0,9}}(?:"[^"\\]{{0,200}}"|-?[0-9.]{{1,40}})'
    return re.compile("|".join((member, *forms)).encode(), re.IGNORECASE)


_IN_ARGUMENTS = _pattern(_ASKED, _ISO, _HTTP_DATE)
_IN_RESULTS = _pattern(_TOLD, _ISO, _HTTP_DATE, _CLOCK, _EPOCH, _UUID, _HEX)
_MARK = b"~"


def of_arguments(text: bytes) -> bytes:
    """Canonical arguments without what changes by itself."""
    return _IN_ARGUMENTS.sub(_MARK, _beginning(text))


def of_result(text: bytes) -> bytes:
    """An answer without what changes by itself."""
    return _IN_RESULTS.sub(_MARK, _beginning(text))


def _beginning(text: bytes) -> bytes:
    if len(text) <= HASHED_BYTES_MAX:
        return text
    return b"%s %d" % (text[:HASHED_BYTES_MAX], len(text))
