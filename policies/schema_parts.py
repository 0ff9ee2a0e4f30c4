"""What single values of the policy file may be: names, hosts, durations, lists of one.

The models that are made of them are in `schema.py` and in `schema_bounds.py`.
"""

import re
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from policies import paths
from policies.policy import UNLISTED

KEEP_SECONDS_MAX = 366 * 86_400
WINDOW_SECONDS_MAX = 366 * 86_400
NAME_CHARACTERS_MAX = 255

_TOOL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")  # RFC 9110, section 5.6.2
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_LOOSE_DURATION = re.compile(
    r"([1-9][0-9]{0,8})\s*(|s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?)", re.IGNORECASE
)
_LOOSE_NUMBER = re.compile(r"\$?\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*(?:\$|usd)?", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_DOMAIN = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")

# Fields that carry the message itself or its credentials: no tag and no key may stand in them.
_TAKEN = frozenset({
    "authorization", "connection", "content-encoding", "content-length", "content-type", "cookie",
    "host", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "user-agent",
})  # fmt: skip


# What is meant by a word that is nearly one of these. Any other word is a method of its own.
_USUAL_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")
# https://www.iana.org/assignments/http-methods, those near a usual one and those seen in the wild.
_METHODS = frozenset({
    *_USUAL_METHODS, "CONNECT", "TRACE", "ACL", "BIND", "CHECKIN", "CHECKOUT", "COPY", "LABEL",
    "LINK", "LOCK", "MERGE", "MKCALENDAR", "MKCOL", "MOVE", "ORDERPATCH", "PROPFIND", "PROPPATCH",
    "PURGE", "REBIND", "REPORT", "SEARCH", "UNBIND", "UNLINK", "UNLOCK", "UPDATE",
})  # fmt: skip
_NEAR = 0.65  # GTE is that near to GET, FETCH is not to PATCH


class AtKeyError(ValueError):
    """What is wrong with a mapping is told at one of its keys."""

    def __init__(self, key: str, wrong: str) -> None:
        super().__init__(wrong)
        self.key = key


def duration_us(text: str) -> int:
    """Microseconds of `30s`, `1m`, `2h` or `1d`. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if not found:
        meant = _LOOSE_DURATION.fullmatch(text)
        hint = f"; write {meant[1]}{meant[2][:1].lower() or 's'}" if meant else ""
        raise ValueError(f"must be a number and a unit, such as 30s, 1m, 2h or 1d{hint}")
    seconds = int(found[1]) * _SECONDS[found[2]]
    if seconds > WINDOW_SECONDS_MAX:
        raise ValueError("must be at most 366d; leave 'within' out for a whole life")
    return seconds * 1_000_000


def _duration(value: object) -> str:
    text = str(value)
    duration_us(text)
    return text


def no_number(value: object) -> str:
    """What is wrong with a value in the place of a number, and the number that is meant by it."""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    meant = _LOOSE_NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    plain = meant and re.sub("[_,]", "", meant[1])
    return f"must be a number, not {shown[:60]}" + (
        f"; write {plain}, without quotes or $" if plain else ""
    )


def _tool_name(name: str) -> str:
    if name == UNLISTED:
        raise ValueError("is taken: it stands for what no tool matches")
    if not _TOOL_NAME.fullmatch(name):
        raise ValueError("must be letters, digits, '.', '_' and '-', at most 128")
    return name


def _host(text: str) -> str:
    host = text.lower().removesuffix(".")
    if "/" in host:
        raise ValueError(f"must be a name without scheme or path, not {text!r}")
    try:
        return ip_address(host.strip("[]")).compressed
    except ValueError:
        pass
    if host == "*":
        raise ValueError("must not be every host; 'unlisted: allow' lets the others pass")
    if ":" in host:
        raise ValueError(f"must not hold a port; give it as 'port', not {text!r}")
    if not _DOMAIN.fullmatch(host) or len(host) > NAME_CHARACTERS_MAX:
        raise ValueError(f"must be a name, an address or '*.' and a name, not {text!r}")
    return host


def _method(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"must be a method such as POST, or '*', not {text!r}")
    method = text.upper()
    near = get_close_matches(method, _USUAL_METHODS, n=1, cutoff=_NEAR)
    if near and method not in _METHODS and abs(len(near[0]) - len(method)) <= 1:
        raise ValueError(f"must be a method, not {text!r}; did you mean {near[0]!r}?")
    return method


def path_template(text: str) -> str:
    paths.template(text)
    return text


def _header(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"must be the name of a header, not {name!r}")
    if name.lower() in _TAKEN or name.lower().startswith(("pullcord-", "x-pullcord-")):
        raise ValueError(f"must not be {name!r}: that header has another meaning")
    return name


def network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError as fault:
        raise ValueError(f"must be an address block such as 10.0.0.0/8: {fault}") from None


def listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def short_form(value: object) -> object:
    if not isinstance(value, list | dict):
        raise ValueError("must be a list of tools or a mapping of scopes")
    return {"tools": value} if isinstance(value, list) else value


def or_one(schema: dict[str, Any]) -> None:
    """In the JSON Schema: the list, or one item of it."""
    _either(schema, schema["items"])


def or_tools(schema: dict[str, Any]) -> None:
    """In the JSON Schema: the mapping, or the list of its tools."""
    _either(schema, {"type": "array", "items": {"type": "string"}})


def _either(schema: dict[str, Any], other: dict[str, Any]) -> None:
    whole, description = dict(schema), schema.get("description", "")
    whole.pop("description", None)
    schema.clear()
    schema |= {"anyOf": [whole, other], "description": description}


Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
Glob = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
ToolName = Annotated[str, AfterValidator(_tool_name)]
Host = Annotated[str, AfterValidator(_host)]
Method = Annotated[str, AfterValidator(_method)]
Header = Annotated[str, AfterValidator(_header)]
Duration = Annotated[
    str, BeforeValidator(_duration), Field(json_schema_extra={"pattern": f"^{_DURATION.pattern}$"})
]


class Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )
