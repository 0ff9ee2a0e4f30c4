"""Which names say that their value is a secret: members of JSON, fields, parameters, headers. Pure.

Case and the signs between words do not count: apiKey, API_KEY, x-api-key and auth[api.key] are one.
A name can be plain (its value is shown, but for what looks like a secret), weak (a text under it is
masked, in a list too; what stands in an object is judged by its own names, where they say anything)
or strong (all under it is masked).
"""

import re
from enum import IntEnum


class Weight(IntEnum):
    PLAIN = 0
    WEAK = 1
    STRONG = 2


NAME_CHARACTERS_MAX = 200  # a longer one names nothing

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_STRONG = re.compile(
    r"(?:.*(?:secret|password|passwd|passphrase|passcode|apikey|accesskey|privatekey|secretkey|"
    r"signingkey|authkey|masterkey|passkey|credential|cookie|signature|authorization|accesstoken|refreshtoken|"
    r"idtoken|authtoken|sessiontoken|apitoken|bearertoken|csrftoken|usertoken|token))"
    r"|secrets|passwords|credentials|cookies|creds|pwd|jwt|bearer|hmac|otp|totp|mfa|cvv|cvc|"
    r"assertion|sig|xsrf|"
    r"(?:db|user|root|admin|login|my|smtp|mail|ftp|ssh|mysql|pg|postgres|redis|sql)p(?:ass|w|wd)"
)
_WEAK = frozenset({"auth", "session", "sessions", "sid", "sessid", "pass", "pin", "sessionid",
                   "jsessionid", "phpsessid"})  # fmt: skip

# `key` alone names anything; after one of these it is a secret one.
_OF_KEYS = frozenset({
    "access", "account", "admin", "api", "app", "auth", "client", "consumer", "deploy",
    "encryption", "hmac", "integration", "license", "licence", "master", "private", "rest",
    "secret", "server", "service", "session", "shared", "signing", "ssh", "storage",
    "subscription", "webhook",
})  # fmt: skip
_OF_TOKENS = frozenset({"access", "api", "auth", "bearer", "refresh", "session"})

# A token of these is none: a place in a list, a piece of text that a model counts.
_PLAIN_TOKENS = frozenset({
    "bos", "cls", "continuation", "cont", "cursor", "eos", "mask", "next", "pad", "page", "prev",
    "previous", "sep", "sync", "unk",
})  # fmt: skip
_PLAIN_TOKEN = re.compile(r"(?:next|page|continuation|sync|pad|eos|bos|nextpage)+token")

# What stands last says what the value is: of a secret, but not the secret.
_ABOUT = frozenset({
    "algorithm", "alg", "arn", "at", "budget", "cost", "count", "counts", "description", "details",
    "enabled", "endpoint", "expiration", "expires", "expiry", "expire", "format", "in", "kind",
    "label", "length", "limit", "limits", "max", "method", "methods", "min", "name", "names",
    "policy", "price", "provider", "required", "scope", "scopes", "size", "status", "ttl", "type",
    "types", "uri", "url", "usage", "version",
})  # fmt: skip


# Two letters stand in any random text: they must be a word, and the last.
_PW = re.compile(r"(?:(?:\A|[_\-.\[ ])(?:pw|PW|Pw)|[a-z]Pw)\]?\Z")
# The third of several versions of a key: api_key_v2.
_VERSION = re.compile(r"[_\-.]?[vV]\d{1,3}\Z")


def plain(name: str) -> str:
    """The name without case and signs, as policies name keys."""
    return "".join(char for char in name.lower() if char.isalnum())


def weigh(name: str) -> Weight:
    """How secret what stands under this name is."""
    words = [word.lower() for word in _WORD.findall(_VERSION.sub("", name[:NAME_CHARACTERS_MAX]))]
    if not words or words[-1] in _ABOUT:
        return Weight.PLAIN
    if words[-1] == "pw" and _PW.search(name):
        return Weight.STRONG
    if words[-1] == "token" and _PLAIN_TOKENS.intersection(words):
        return Weight.PLAIN
    if any(_STRONG.fullmatch(word) and not _PLAIN_TOKEN.fullmatch(word) for word in words):
        return Weight.STRONG
    if words[-1] == "tokens":
        return Weight.STRONG if _OF_TOKENS.intersection(words) else Weight.PLAIN
    if words[-1] in {"key", "keys"} and _OF_KEYS.intersection(words):
        return Weight.STRONG
    if words[0] == "code" and words[-1] == "verifier":
        return Weight.STRONG
    is_session = len(words) > 1 and words[-2:] in (["session", "id"], ["session", "key"])
    return Weight.WEAK if words[-1] in _WEAK or is_session else Weight.PLAIN
