"""What a request's headers say of its body: its type, and whether it is text as it stands.

A body in another charset or behind a content coding is one text to who reads the bytes and another
to the server, so where a body decides what a request means, such a body is refused, never guessed.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

FORM = "application/x-www-form-urlencoded"
UTF_8 = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})
# In these every ASCII byte is that character, which is enough to find the fields of a form.
ASCII_BASED = UTF_8 | {"iso-8859-1", "latin1", "windows-1252", "iso-8859-15"}

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110, section 5.6.2
_PARAMETER = re.compile(rf'\s*;\s*(?:({_TOKEN})\s*=\s*("[^"\\]*"|[^\s;",\\]*)\s*(?=;|\Z))?')
_MEDIA_TYPE = re.compile(rf"\s*{_TOKEN}(?:/{_TOKEN})?")
_NOT_CODED = frozenset({"", "identity"})
_NOT_CODED_TRANSFER = frozenset({"", "identity", "chunked"})


class Content(NamedTuple):
    """`media_type` is lower case and without parameters; `parameters` is None when they can be
    read in two ways. `is_coded` says that the bytes are compressed, or may be."""

    media_type: str = ""
    parameters: Mapping[str, str] | None = MappingProxyType({})
    is_coded: bool = False

    @property
    def is_json(self) -> bool:
        return self.media_type.endswith("json")

    @property
    def is_form(self) -> bool:
        return self.media_type == FORM or self.media_type.startswith("multipart/")

    def hidden(self, charsets: frozenset[str]) -> str:
        """Why the body is not text in one of these charsets; empty when it is."""
        if self.is_coded:
            return "a content coding hides the body, which decides what the request means"
        if self.parameters is None:
            return "the parameters of its content type can be read in two ways"
        if self.parameters.get("charset", "").lower() not in charsets:
            return "its charset is not UTF-8, and the body decides what the request means"
        return ""


def read_content(content_type: str, codings: str, transfer_codings: str) -> Content:
    """`codings` and `transfer_codings` are the values of those headers, joined by commas."""
    media_type = content_type.partition(";")[0].rstrip()
    is_coded = not (
        _NOT_CODED.issuperset(_listed(codings))
        and _NOT_CODED_TRANSFER.issuperset(_listed(transfer_codings))
    )
    is_one = not media_type or _MEDIA_TYPE.fullmatch(media_type)
    parameters = _parameters(content_type, len(media_type)) if is_one else None
    return Content(media_type.strip().lower(), parameters, is_coded)


def _listed(value: str) -> list[str]:
    return [item.strip().lower() for item in value.split(",")]


def _parameters(content_type: str, begin: int) -> Mapping[str, str] | None:
    """None for what two parsers may take for two things: a name that stands twice, its extended
    form (RFC 2231), a backslash, a quote that is never closed."""
    found: dict[str, str] = {}
    while begin < len(content_type):
        parameter = _PARAMETER.match(content_type, begin)
        if parameter is None:
            return None
        begin = parameter.end()
        if parameter[1] is None:
            continue
        name = parameter[1].lower()
        if name in found or "*" in name:
            return None
        found[name] = parameter[2].strip('"')
    return found
