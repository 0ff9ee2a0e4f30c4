"""Secrets out of texts of any length: by their names, by their look, and by what is known of them.

Pure, and linear in the text's length whatever it holds: each pattern passes once, and no part of
one is tried twice over the same characters. What a body is, is read in redaction.py.
"""

import base64
import re
from binascii import Error as NotBase64Error
from collections.abc import Iterable
from urllib.parse import quote, unquote

from ledger import json_masking
from ledger.redact import mark, mask, mask_base64
from ledger.remembered import Known, times
from ledger.secret_names import Weight, plain, weigh
from policies.policy import Redaction

STEPS_MAX = 400_000  # of one message; 1 MiB of plain JSON takes some 100,000
RUN_CHARS_MAX = 4_096  # no key is longer; what is, is a file in base64
PATTERN_CHARS_MAX = 8_192  # of a text at once, to a pattern of the policy
NAMES_MAX = 4_096  # of which it is remembered how secret they are
NESTED_MAX = 6  # JSON in texts of JSON

_MARK = re.compile(r"\[redacted:[0-9a-f]{8}\]")
_CANDIDATE = re.compile(r"[A-Za-z0-9_\-+=.~:%/]{13,}")
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,60}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[A-Za-z0-9+/=\s\\:,.()]|-(?!----(?:BEGIN|END)))*+(?:-----END[^-]{0,60}-----)?"
)
_USER = re.compile(  # a port and a path are no password
    r"://([^\s/@:\"'<>]{0,256})(?::([^\s/\"'<>]{1,512}|(?!\d{1,5}/)[^\s\"'<>?#@:]{1,128}))?@"
)
_SCHEMES = r"(?:AWS4-[A-Z0-9-]{1,40}|ApiKey|Basic|Bearer|Bot|Digest|Key|Negotiate|OAuth|Token)"
_SCHEME = re.compile(rf"({_SCHEMES} +)(\S.*)", re.IGNORECASE | re.DOTALL)
_SCHEMED = re.compile(rf"\b({_SCHEMES} {{1,3}})([A-Za-z0-9+/=._~-]{{8,}})", re.IGNORECASE)

_NAME = r"(?<![\w.\-])([\w.\-]++(?:\[[\w.\-]{0,64}\])?)"
_IS = r"[\"'\\]{0,3}[ \t]{0,3}(?:=>|:=|[:=])[ \t]{0,3}"
_REST = r"[&;](?![\w.\-\[\]%]*+=)"  # no further pair of a query
_LINE = re.compile(
    r"^(?:[ \t>*#$\-]*+(?:(?:export|set|ENV)[ \t]+)?)([\w.\-]++)(?:"
    rf"{_IS.replace('=>|:=|[:=]', ':')}((?:[^\n&;\"']|{_REST})++)|"
    rf"{_IS.replace('=>|:=|[:=]', ':?=')}((?:[^\n&;\"' \t]|{_REST}|[ \t](?![\w.\-]*+=))++))",
    re.MULTILINE,
)
_QUOTED = (
    r"\\[\"']((?:[^\"'\\\n]|\\[^\"'\n])++)"  # as it stands in another text
    r"|\"((?:[^\"\\\n]|\\.)++)|'((?:[^'\\\n]|\\.)++)"
)
_PAIR = re.compile(_NAME + _IS)
_WHOLE = (  # texts in three quotes; a list or an object under a secret name
    r"\"{3}((?:[^\"\\]|\\.|\"(?!\"\"))++)|'{3}((?:[^'\\]|\\.|'(?!''))++)"
    r"|\[(?!redacted:)([^\[\]]{1,4096})\]|\{([^{}]{1,4096})\}"
)
_OBJECT = 4  # its group
_VALUE = re.compile(
    rf"(?:{_SCHEMES} {{1,3}})?(?:{_WHOLE}|{_QUOTED}|((?:[^\s\"'&;<>]|{_REST})++))",
    re.IGNORECASE | re.DOTALL,
)
_BLOCK = re.compile(
    r"^([ \t]*+)(?:- )?[\"']?([\w.\-]++)[\"']?:[ \t]*+(?:[|>][+\-\d]{0,2})?[ \t\r]*+$", re.M
)
_OPTION = re.compile(
    rf"(?<![\w\-])(--?[A-Za-z][\w\-]*+)(?:[ \t]+|=)(?:{_QUOTED}|([^\s\"'\-][^\s\"']*+))"
)
_ELEMENT = re.compile(
    r"<(?:[\w\-]{1,64}:)?([A-Za-z][\w.\-]{0,63})(?:\s[^<>]*)?+>"
    r"(<!\[CDATA\[[^\]]{0,4096}\]\]>|[^<]++)"
)
_TREE = re.compile(r"<([\w\-]{1,64}:)?([A-Za-z][\w.\-]{0,63})(?:\s[^<>]*)?+>(?=\s*+<[\w])")
_LEAF = re.compile(r">(\s*+[^<>\s][^<>]*+)(?=<|\Z)")
_TREE_CHARS = 16_384  # where it ends nowhere
_TAG = re.compile(r"<[A-Za-z][^<>]*+>")
_TAG_NAME = re.compile(r"\b(?:name|key|id)=[\"']([^\"'<>]{1,200})[\"']", re.IGNORECASE)
_TAG_VALUE = re.compile(r"\b(?:value|content)=(?:\"([^\"<>]++)|'([^'<>]++))", re.IGNORECASE)
_HINT = re.compile(
    "pass|secret|token|key|auth|cred|cookie|sig|sess|sid|jwt|otp|bearer|pwd|hmac|pin|verifier|"
    "assertion|mfa|cv|basic|xsrf|negotiate|digest|bot|pw|-u|identified"
)
_SHOWN = frozenset({"true", "false", "null", "None", "|", ">", "|-", ">-", "|+", ">+"})
_NO_VALUE = frozenset({"", "|", ">"})  # what begins a block of lines
_SQL = re.compile(r"\b((?:identified[ \t]++by|password)[ \t]++')((?:[^'\n])++)(?=')", re.IGNORECASE)
_SAFE = "[]:@!$&'()*+,;="


class TooMuchError(Exception):
    """Reading this message would take too long."""


class Rules:
    """What is masked under one policy. `key` makes the marks. For one thread."""

    def __init__(self, key: bytes, redaction: Redaction) -> None:
        self.key = key
        self.headers = frozenset(redaction.headers)
        self.patterns = tuple(re.compile(pattern) for pattern in redaction.patterns)
        self.has_keys = bool(redaction.keys)
        self._keys = frozenset(plain(name) for name in redaction.keys)
        self._weights: dict[str, Weight] = {}
        self.harmless: set[tuple[str, str]] = set()  # headers in which nothing is masked

    def weight(self, name: str) -> Weight:
        found = self._weights.get(name)
        if found is None:
            found = Weight.STRONG if self._keys and plain(name) in self._keys else weigh(name)
            if len(self._weights) >= NAMES_MAX:
                self._weights.clear()
            self._weights[name] = found
        return found


class Masking:
    """One message's texts masked. Raises TooMuchError when that took more than STEPS_MAX steps."""

    def __init__(self, rules: Rules, known: Known) -> None:
        self.rules = rules
        self.known = known
        self._steps = STEPS_MAX
        self._before = len(known)
        self._newer: set[str] = set()
        self._hidden = 0  # how often one of these
        self._texts: list[str] = []

    def saw(self, text: str) -> None:
        """A text of the message, as it is before anything is masked."""
        self._texts.append(text)

    def left_echoes(self) -> bool:
        """Whether what became known in this message stands in it oftener than under its name."""
        newer = self.known.since(self._before)
        return sum(times(text, newer, self.step) for text in self._texts) > self._hidden

    def step(self, steps: int = 1) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise TooMuchError

    def hide(self, secret: str) -> str:
        """What stands for a secret whose name told it. The scheme of a credential stays."""
        if _MARK.fullmatch(secret) or not secret.strip():
            return secret
        scheme = _SCHEME.fullmatch(secret)
        kept, secret = scheme.groups() if scheme else ("", secret)
        if _MARK.fullmatch(secret):
            return kept + secret
        shown = mark(secret, self.rules.key)
        if self.known.add(secret, shown):
            self._newer.add(secret)
        self._hidden += secret in self._newer
        if kept[:5].lower() == "basic":
            self._add_basic(secret)
        return kept + shown

    def _add_basic(self, secret: str) -> None:
        try:
            user, _, password = base64.b64decode(secret + "==").decode("utf-8").partition(":")
        except (NotBase64Error, ValueError):
            return
        for part in (f"{user}:{password}", password):
            self.known.add(part, mark(part, self.rules.key))

    def weight(self, name: str) -> Weight:
        return self.rules.weight(name)

    def by_value(self, text: str) -> str:
        return self.known.masked(text, self.step)

    def own(self, text: str) -> str:
        """Without what the patterns of the policy match, looked for piece by piece."""
        if not self.rules.patterns:
            return text
        return "".join(self._own(piece) for piece in _pieces(text))

    def _own(self, text: str) -> str:
        for pattern in self.rules.patterns:
            self.step()
            text = pattern.sub(lambda found: mark(found[0], self.rules.key), text)
        return text

    def text(self, text: str, depth: int = 0) -> str:
        """Any text; one that is JSON is read as such."""
        self.step(1 + (len(text) >> 6))
        begin = text.lstrip()[:1]
        is_text = begin == '"' and "\\" in text and text.rstrip()[-1] == '"'
        if is_text or (begin in {"{", "["} and '"' in text):
            if depth >= NESTED_MAX:
                return mark(text, self.rules.key)
            return json_masking.masked(text, self, depth + 1)
        return self.prose(text)

    def prose(self, text: str) -> str:
        """A text that is no JSON: names and values in lines, in pairs, in elements; any."""
        if "-----BEGIN" in text:
            text = _PEM.sub(lambda found: mark(found[0], self.rules.key), text)
        if "://" in text:
            text = _USER.sub(self._user, text)
        if self.rules.has_keys or _HINT.search(text.lower()):
            text = self._named(text)
        return _CANDIDATE.sub(self._run, text)

    def _named(self, text: str) -> str:
        if "\n" in text or ":" in text or "=" in text:
            text = self._blocks(text) if "\n" in text else text
            text = _LINE.sub(self._line, text)
            text = self._pairs(text)
        if "-" in text:
            text = _OPTION.sub(self._option, text)
        if "<" in text and ">" in text:
            text = _TAG.sub(self._tag, _ELEMENT.sub(self._element, self._trees(text)))
        if "'" in text:
            text = _SQL.sub(lambda found: found[1] + self.hide(found[2]), text)
        return _SCHEMED.sub(self._schemed, text)

    def _user(self, found: re.Match[str]) -> str:
        user, password = found.groups()
        if password is not None:
            return f"://{user}:{self.hide(password)}@"
        return f"://{self.hide(user)}@" if len(user) >= 16 else found[0]

    def _line(self, found: re.Match[str]) -> str:
        """The rest of a line that begins with a name is its value, in YAML and in settings."""
        self.step()
        at = found.lastindex or 0
        value = found[at]
        if self.rules.weight(found[1]) is not Weight.STRONG or value.strip()[:1] in _NO_VALUE:
            return found[0]
        end = value[len(value.rstrip(" \t\r,")) :]
        return _replaced(found, at, self.hide(value[: len(value) - len(end)]) + end)

    def _blocks(self, text: str) -> str:
        """The deeper lines below a name of YAML."""
        out, end = [], 0
        for found in _BLOCK.finditer(text):
            self.step()
            if found.start() < end or self.rules.weight(found[2]) is not Weight.STRONG:
                continue
            start = stop = min(found.end() + 1, len(text))
            indent = found[1]
            while stop < len(text):
                self.step()
                line_end = text.find("\n", stop) + 1 or len(text)
                line = text[stop:line_end]
                if line.strip() and not (line.startswith(indent) and line[len(indent)] in " \t"):
                    break
                stop = line_end
            below = text[start:stop]
            if below.strip():
                left = below[: len(below) - len(below.lstrip())]
                right = below[len(below.rstrip()) :]
                out += [text[end:start], left, self.hide(below.strip()), right]
                end = stop
        return "".join((*out, text[end:])) if out else text

    def _trees(self, text: str) -> str:
        """What stands in elements below one that is named as a secret."""
        out, end = [], 0
        for found in _TREE.finditer(text):
            self.step()
            start = found.end() - 1
            if start < end or self.rules.weight(found[2]) is not Weight.STRONG:
                continue
            stop = start + _TREE_CHARS
            closing = text.find(f"</{found[1] or ''}{found[2]}", start, stop)
            stop = closing if closing >= 0 else stop
            inner = _LEAF.sub(lambda leaf: f">{self.hide(leaf[1])}", text[start:stop])
            out += [text[end:start], inner]
            end = stop
        return "".join((*out, text[end:])) if out else text

    def _pairs(self, text: str) -> str:
        """`name=value` and `name: value`, wherever they stand."""
        out, end = [], 0
        for found in _PAIR.finditer(text):
            self.step()
            weight = self.rules.weight(found[1])
            if found.start() < end or not weight:
                continue
            value = _VALUE.match(text, found.end())
            if value is None:
                continue
            at = value.lastindex or 0
            if at == _OBJECT and weight is not Weight.STRONG:
                continue
            if value[at] not in _SHOWN:
                out += [text[end : value.start()], _replaced(value, at, self.hide(value[at]))]
                end = value.end()
        return "".join((*out, text[end:])) if out else text

    def _option(self, found: re.Match[str]) -> str:
        at = found.lastindex or 0
        value = found[at]
        if found[1] in {"-u", "--user"} and ":" in value:
            user, _, password = value.partition(":")
            return _replaced(found, at, f"{user}:{self.hide(password)}")
        return _replaced(found, at, self.hide(value)) if self.rules.weight(found[1]) else found[0]

    def _element(self, found: re.Match[str]) -> str:
        if not self.rules.weight(found[1]) or not found[2].strip():
            return found[0]
        value = found[2].removeprefix("<![CDATA[").removesuffix("]]>")
        return found[0][: len(found[0]) - len(found[2])] + self.hide(value.strip())

    def _tag(self, found: re.Match[str]) -> str:
        """The field of a page's form, an entry of a file of settings."""
        name = _TAG_NAME.search(found[0])
        if name is None or not self.rules.weight(name[1]):
            return found[0]
        return _TAG_VALUE.sub(
            lambda m: _replaced(m, m.lastindex or 0, self.hide(m[m.lastindex or 0])), found[0]
        )

    def _schemed(self, found: re.Match[str]) -> str:
        """`Basic` and `Bearer` are words, too: what follows must look like no other word."""
        value = found[2]
        is_word = value.strip(".").isalpha() and len(value) < 24
        is_basic = found[1][:5].lower() == "basic" and b":" in _decoded(value)
        return found[1] + self.hide(value) if is_basic or not is_word else found[0]

    def _run(self, found: re.Match[str]) -> str:
        run = found[0]
        self.step()
        if len(run) > RUN_CHARS_MAX:
            return mark(run, self.rules.key)
        if "%" in run:
            clear = unquote(unquote(run))
            hidden = self._looks(clear)
            if hidden != clear:
                return quote(hidden, safe=_SAFE + "/")
        return self._looks(run)

    def _looks(self, run: str) -> str:
        return mask_base64(mask(run, self.rules.key), self.rules.key)


def _replaced(found: re.Match[str], group: int, shown: str) -> str:
    """What was found, with the text of one group replaced."""
    start = found.start()
    text = found[0]
    return text[: found.start(group) - start] + shown + text[found.end(group) - start :]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "==")
    except (NotBase64Error, ValueError):
        return b""


def _pieces(text: str) -> Iterable[str]:
    """The text in pieces of bounded length, cut between lines or words where there are any."""
    start = 0
    while len(text) - start > PATTERN_CHARS_MAX:
        end = start + PATTERN_CHARS_MAX
        cut = max(text.rfind("\n", start, end), text.rfind(" ", start, end)) + 1
        yield text[start : cut or end]
        start = cut or end
    yield text[start:]
