"""Secrets that look like those of real services and are none. Put together here, so that no tool
that scans sources for secrets takes them for real ones."""

import base64
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

MIXED = string.ascii_letters + string.digits
UPPER = string.ascii_uppercase + string.digits
HEX = "0123456789abcdef"
PIECE_CHARACTERS = 12  # so much of a secret is a leak


@dataclass(frozen=True, slots=True)
class Secret:
    """`pieces` are its random parts. `in_path`: services or people put it into paths."""

    kind: str
    text: str
    pieces: tuple[str, ...]
    in_path: bool

    def traces(self) -> Iterator[bytes]:
        """What of it must stand nowhere, in any of its spellings."""
        for piece in self.pieces:
            yield piece[:PIECE_CHARACTERS].encode()
            yield piece[-PIECE_CHARACTERS:].encode()
        for spelled in (quote(self.text, safe=""), quote_plus(self.text)):
            yield spelled.encode()
        yield base64.b64encode(self.text.encode()).rstrip(b"=")[:-1]


class _Maker:
    """The same secrets for the same seed."""

    def __init__(self, seed: int) -> None:
        self._choice = random.Random(seed)
        self._pieces: list[str] = []

    def random(self, length: int, alphabet: str = MIXED) -> str:
        """A random part; its first characters are a letter and a digit, as in most real ones."""
        start = self._choice.choice(alphabet[:6]) + self._choice.choice("23456789")
        piece = start + "".join(self._choice.choices(alphabet, k=length - 2))
        self._pieces.append(piece)
        return piece

    def made(self, kind: str, text: str, *, in_path: bool = True) -> Secret:
        pieces, self._pieces = tuple(self._pieces), []
        return Secret(kind, text, pieces, in_path)


def corpus(seed: int = 1) -> list[Secret]:
    make = _Maker(seed)
    word = make.random
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    pem = f"-----BEGIN {'PRIVATE'} KEY-----"
    return [
        make.made("stripe", f"sk_{'live'}_{word(24)}"),
        make.made("stripe restricted", f"rk_{'live'}_{word(40)}"),
        make.made("stripe webhook", f"whsec_{word(32)}"),
        make.made("github", f"ghp_{word(36)}"),
        make.made("github fine-grained", f"github_pat_{word(22)}_{word(59)}"),
        make.made("gitlab", f"glpat-{word(20)}"),
        make.made("slack bot", f"xoxb-{word(12, '0123456789')}-{word(24)}"),
        make.made("slack app", f"xapp-1-{word(12, UPPER)}-{word(32, HEX)}"),
        make.made("hugging face", f"hf_{word(34)}"),
        make.made("slack webhook", f"T{word(14, UPPER)}/B{word(14, UPPER)}/{word(24)}"),
        make.made("aws key id", f"AKIA{word(16, UPPER)}"),
        make.made("aws secret", word(40, MIXED + "/+"), in_path=False),
        make.made("openai", f"sk-proj-{word(48)}"),
        make.made("anthropic", f"sk-ant-api03-{word(93)}AA"),
        make.made("google", f"AIza{word(35)}"),
        make.made("google oauth", f"ya29.{word(60)}"),
        make.made("sendgrid", f"SG.{word(22)}.{word(43)}"),
        make.made("npm", f"npm_{word(36)}"),
        make.made("telegram", f"bot{word(14, '0123456789')}:{word(35)}"),
        make.made("jwt", f"{head}.{word(60)}.{word(43)}"),
        make.made("hex key", word(64, HEX)),
        make.made("basic", f"{'admin'}:{word(20)}", in_path=False),
        make.made("password", f"{word(14)} horse, battery & staple!", in_path=False),
        make.made("pem", f"{pem}\n{word(64)}\n{word(64)}\n", in_path=False),
    ]


SHAPELESS = frozenset({"basic", "password"})
"""Kinds that nothing but the name they stand under gives away."""


def fifty() -> list[Secret]:
    """Of all kinds, twice and more."""
    return [secret for seed in (1, 2, 3) for secret in corpus(seed)][:50]
