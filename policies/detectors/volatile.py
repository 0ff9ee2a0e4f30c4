"""What changes by itself between two calls that are the same: ids of requests, nonces, times.

It is taken out before arguments and results are hashed for the detectors. In arguments only members
that are named as volatile go, and times that are the call's own: any other time, number or id says
there what is asked for, also under the name of a time (a message of Slack's is known by its `ts`).
In results times and ids of the usual forms go, too. What hides behind no such name or form,
detectors find by other counts (loop.py, burn.py), or by learning (learning.py).

This runs at every call. A text is searched for its member names once; for forms only where a cheap
look says that one may be there: digits and hex digits are made alike, one to one, so that a form
begins with fixed letters, which are found fast. All of it is linear in the text's length.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

HASHED_BYTES_MAX = 64 * 1024  # of a longer text its beginning, its end and its length are compared
END_BYTES = 4 * 1024
NOW_SECONDS = 120  # a time in arguments that is so near to the call's own is a clock's

_ASKED = (  # names that no tool takes a meaning from
    "request_id req_id trace_id span_id correlation_id client_token idempotency_key nonce salt "
    "attempt retry retries task_progress"
)
_TIMES = "timestamp ts now current_time"  # where they tell the time of the call
_TOLD = (
    "uuid date datetime time server_time generated_at fetched_at etag elapsed elapsed_ms "
    "elapsed_seconds duration duration_ms duration_seconds latency latency_ms uptime counter "
    "sequence seq"
)
# In a query or a form besides: what is drawn to pass a cache, and what signs one request.
_FIELDS = (
    "_ _t cb rand cache_buster signature sig oauth_nonce oauth_timestamp oauth_signature "
    "amz_date amz_signature goog_date goog_signature"
)


def _spelled(names: str) -> frozenset[bytes]:
    """Each name as it may be written, in lower case."""
    joints = ("_", "-", "")
    forms = {name.replace("_", joint) for name in names.split() for joint in joints}
    prefixed = {f"{prefix}{form}" for prefix in ("", "x-", "x_") for form in forms}
    return frozenset(form.encode() for form in prefixed if form)


_OF_TIMES = _spelled(_TIMES)
_IN_ARGUMENTS = _spelled(_ASKED) | _OF_TIMES
_IN_RESULTS = _IN_ARGUMENTS | _spelled(_TOLD)
_IN_FIELDS = _IN_ARGUMENTS | _spelled(_FIELDS) | {b"_", b"_t"}

# The quotes may be escaped: tools tell JSON as text in JSON.
_NAME = re.compile(rb'"([A-Za-z_-]{2,24})\\?"\s{0,9}:')
_VALUE = re.compile(rb'\s{0,9}(?:\\?"[^"\\]{0,200}\\?"|-?[0-9.]{1,40})')

_ALL_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_ALL_HEX = bytes.maketrans(b"0123456789abcdefABCDEFh", b"hhhhhhhhhhhhhhhhhhhhhhg")
_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")

# In a text whose digits are all 0.
_ISO = re.compile(rb"0000-00-00[Tt ]00:00(?::[0.]{2,12})?(?:[Zz]|[+-]00:?00)?")
_ISO_TO_SECONDS = len("0000-00-00T00:00:00")
_CLOCK = re.compile(rb"00:00:00(?:\.0{1,9})?")
_EPOCH = re.compile(rb"0000000000+(?:\.0{1,9})?")
_EPOCH_DIGITS = (10, 13, 16, 19)
_EPOCH_UNITS = (1, 10**3, 10**6, 10**9)  # of them in a second
_ID = re.compile(rb"[0-9]{10}\.[0-9]{6}")  # of a message, in Slack: it is told as text
_HTTP_DATE = re.compile(rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), 00 [A-Z][a-z]{2} 0000 00:00:00")
# In a text whose hex digits are all h.
_UUID = re.compile(rb"hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh")
_HEX = re.compile(rb"hhhhhhhhhhhhhhhhh*")
_HEX_DIGITS_MAX = 64
_MARK = b"~"
_AROUND, _QUOTES = b" \t\r\n", b'\\"'

Span = tuple[int, int]


def of_arguments(text: bytes, at_us: int = 0) -> bytes:
    """Canonical arguments without what changes by itself. `at_us` is when they were sent."""
    text = _bounded(text)
    found = [
        span
        for name, span, value in _members(text, _IN_ARGUMENTS)
        if name not in _OF_TIMES or _is_clock(text[slice(*value)].strip(_AROUND), at_us)
    ]
    if at_us and b"-" in text and b":" in text:
        digits = text.translate(_ALL_DIGITS)
        found += [span for span in _iso_times(text, digits) if _is_now(text[slice(*span)], at_us)]
    return _without(text, found)


def of_result(text: bytes) -> bytes:
    """An answer without what changes by itself."""
    text = _bounded(text)
    named = [span for _, span, _ in _members(text, _IN_RESULTS)]
    return _without(text, [*named, *_times(text), *_ids(text)])


def is_field(name: bytes, value: bytes, at_us: int) -> bool:
    """Whether a field of a query or a form, sent at that time, is one that changes by itself."""
    name = name.lower()
    if name in _OF_TIMES:
        return _ID.fullmatch(value) is None and _is_clock(value, at_us)
    return name in _IN_FIELDS


def _bounded(text: bytes) -> bytes:
    if len(text) <= HASHED_BYTES_MAX:
        return text
    return b"%s %s %d" % (text[: HASHED_BYTES_MAX - END_BYTES], text[-END_BYTES:], len(text))


def _members(text: bytes, names: frozenset[bytes]) -> list[tuple[bytes, Span, Span]]:
    """The members with such names: the name, where all of it stands, and where its value does."""
    if names.isdisjoint(_NAME.findall(text.lower())):
        return []
    found: list[tuple[bytes, Span, Span]] = []
    for member in _NAME.finditer(text):
        name = member[1].lower()
        if name in names:
            value = _VALUE.match(text, member.end())
            if value is not None:
                found.append((name, (member.start(), value.end()), value.span()))
    return found


def _times(text: bytes) -> Iterator[Span]:
    digits = text.translate(_ALL_DIGITS)
    whole = list(_iso_times(text, digits))
    yield from whole
    # Most clocks are part of such a time, and are gone with it.
    if digits.count(b"00:00:00") > sum(end - begin >= _ISO_TO_SECONDS for begin, end in whole):
        if b" 0000 00:00:00" in digits:
            yield from (match.span() for match in _HTTP_DATE.finditer(digits))
        for match in _CLOCK.finditer(digits):
            begin, end = match.span()
            is_time = text[begin] < 0x33 and text[begin + 3] < 0x36 and text[begin + 6] < 0x36
            if is_time and _stands_free(text, begin, end):
                yield begin, end
    if b"0000000000" in digits:
        for match in _EPOCH.finditer(digits):
            begin, end = match.span()
            number = digits[begin:end].partition(b".")[0]
            recent = text[begin] == 0x31 and 0x35 <= text[begin + 1] <= 0x39
            if recent and len(number) in _EPOCH_DIGITS and _stands_free(text, begin, end):
                yield begin, end


def _iso_times(text: bytes, digits: bytes) -> Iterator[Span]:
    if b"0000-00-00" in digits:
        for match in _ISO.finditer(digits):
            if match.start() == 0 or text[match.start() - 1] not in _WORD:
                yield match.span()


def _ids(text: bytes) -> Iterator[Span]:
    alike = text.translate(_ALL_HEX)
    if b"hhhhhhhh-hhhh-hhhh-" in alike:
        for match in _UUID.finditer(alike):
            if _stands_free(text, *match.span()):
                yield match.span()
    if b"hhhhhhhhhhhhhhhh" in alike:
        for match in _HEX.finditer(alike):
            begin, end = match.span()
            if end - begin > _HEX_DIGITS_MAX or text[begin : begin + 16].isalpha():
                continue
            if _stands_free(text, begin, end):
                yield begin, end


def _stands_free(text: bytes, begin: int, end: int) -> bool:
    """Whether it is no part of a longer word."""
    before = begin == 0 or text[begin - 1] not in _WORD
    return before and (end == len(text) or text[end] not in _WORD)


def _is_clock(value: bytes, at_us: int) -> bool:
    """Whether a value under the name of a time is the call's own. In quotes, what looks like a
    message's id is one."""
    quoted = value[:1] in (b'"', b"\\")
    plain = value.strip(_QUOTES)
    if quoted and _ID.fullmatch(plain):
        return False
    try:
        number = float(plain)
    except ValueError:
        return _is_now(plain, at_us)
    return any(abs(number / unit - at_us / 1e6) <= NOW_SECONDS for unit in _EPOCH_UNITS)


def _is_now(time: bytes, at_us: int) -> bool:
    try:
        told = datetime.fromisoformat(time.decode("ascii").upper())
    except ValueError:
        return False
    told = told if told.tzinfo is not None else told.replace(tzinfo=UTC)
    return abs(told.timestamp() - at_us / 1e6) <= NOW_SECONDS


def _without(text: bytes, spans: list[Span]) -> bytes:
    """The text with a mark in place of each span; they may lie one in another."""
    if not spans:
        return text
    parts: list[bytes] = []
    done = 0
    for begin, end in sorted(spans):
        if begin >= done:
            parts += (text[done:begin], _MARK)
        done = max(done, end)
    parts.append(text[done:])
    return b"".join(parts)
