"""How the process runs: flags of `up` over PULLCORD_* variables over config/pullcord.yaml.

What agents may do is the policy's (policies/load.py). Nothing here is read again while the
process runs. The command line imports this module only where it needs more than a data directory.
"""

import re
import shlex
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from policies.document import MistakenFileError, read
from policies.mistakes import suggestion
from proxy.channels import Channel, listed, told_apart

FILE = "pullcord.yaml"
POLICY_FILE = "policy.yaml"
PREFIX = "PULLCORD_"
DEFAULT_LISTEN = "127.0.0.1:8640"
DEFAULT_DATA = "~/.pullcord"

SEALS_MAX = 8  # places for copies of the seals
SYSLOG = "syslog"
"""The place for them that is neither a file nor a URL."""
WORKERS_MAX = 64  # one decider answers them all; more engines than cores only wait for it

_ADDRESS = re.compile(r"(\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>\d{1,5})")
_SAYS_SOMETHING = re.compile(r"^\s*[^#\s]", re.MULTILINE)


class SettingsError(Exception):
    """A setting cannot be used; the message says where it stands and what to write."""


def host_and_port(address: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT` in its parts, the host without brackets. Raises ValueError."""
    parts = _ADDRESS.fullmatch(address)
    if parts is None or int(parts["port"]) > 65535:
        raise ValueError(f"{address!r} is no address; write HOST:PORT, such as {DEFAULT_LISTEN}")
    if parts["ipv6"] is None:
        return parts["host"], int(parts["port"])
    return str(ip_address(parts["ipv6"])), int(parts["port"])


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _place(text: str, base: Path) -> str:
    """A place for copies of seals, a file as an absolute path. Raises ValueError."""
    if text == SYSLOG:
        return text
    if is_url(text):
        parts = urlsplit(text)
        if not parts.hostname or parts.port == 0:
            raise ValueError("name a host in the URL: https://HOST/PATH")
        return text
    if not text or "://" in text:
        raise ValueError(f"seals go to a file, to an http(s) URL, or to {SYSLOG}")
    return str(base / Path(text).expanduser())


def _is_an_address(text: str) -> str:
    host_and_port(text)
    return text


def _without_scheme(value: Any) -> Any:
    """Commands take PULLCORD_CONTROL as a URL, too; it names the same place."""
    return value.removeprefix("http://").rstrip("/") if isinstance(value, str) else value


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _words(value: Any) -> Any:
    """A command as a list; one line of it as a shell would split it. Raises ValueError."""
    return shlex.split(value) if isinstance(value, str) else value


def _none_for_off(value: Any) -> Any:
    if value is False or value == "off":  # YAML reads a bare `off` as false
        raise ValueError("to keep nothing write none")
    return value


Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseModel):
    """Every setting. Paths are absolute; `config` is the directory that holds both files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path
    listen: Annotated[str, AfterValidator(_is_an_address)] = DEFAULT_LISTEN
    control: Annotated[str | None, BeforeValidator(_without_scheme)] = None
    data: Annotated[Path, Field(validate_default=True)] = Path(DEFAULT_DATA)
    identity: Literal["token", "open"] = "token"
    upstream_ca: Path | None = None
    invalid_policy: Literal["keep", "freeze"] = "keep"
    failed_drill: Literal["keep", "halt"] = "keep"
    connect_seconds: Seconds = 5.0
    first_byte_seconds: Seconds = 300.0
    idle_seconds: Seconds = 300.0
    body_bytes_max: Annotated[int, Field(ge=1024, le=1024**3)] = 16 * 1024**2
    drain_seconds: Annotated[float, Field(ge=0, le=3_600)] = 10.0
    engine: Literal["mitmproxy", "http1", "auto"] = "mitmproxy"
    log_calls: Literal["refused", "all"] = "refused"
    workers: Annotated[int, Field(ge=1, le=WORKERS_MAX)] = 1
    trace: Annotated[Literal["full", "digest", "none"], BeforeValidator(_none_for_off)] = "full"
    trace_body_bytes_max: Annotated[int, Field(ge=1024, le=16 * 1024**2)] = 1024**2
    trace_keep_days: Annotated[float, Field(gt=0, le=3_650)] = 30.0
    trace_keep_bytes: Annotated[int, Field(ge=1024**2, le=1024**4)] = 10 * 1024**3
    seals: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    notify: Annotated[tuple[Channel, ...], BeforeValidator(listed), AfterValidator(told_apart)] = ()
    rollback: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()

    @field_validator("config", "data", "upstream_ca")
    @classmethod
    def _absolute(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        """What stands in the file is seen from the file, everything else from where we stand."""
        base = (info.context or {}).get(info.field_name)
        return path and (base or Path.cwd()) / path.expanduser()

    @field_validator("seals")
    @classmethod
    def _places(cls, places: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Files are told apart from URLs and from the word for the system's log."""
        if len(places) > SEALS_MAX:
            raise ValueError(f"seals are copied to {SEALS_MAX} places at most")
        base = (info.context or {}).get(info.field_name) or Path.cwd()
        return tuple(_place(place, base) for place in places)

    @field_validator("control")
    @classmethod
    def _control_only_here(cls, address: str | None, info: ValidationInfo) -> str | None:
        if address is None:
            return None
        host, port = host_and_port(address)
        if not is_loopback(host):
            raise ValueError(
                "operators' tokens would cross the network in the clear; give it a loopback "
                f"address and reach it through a tunnel: ssh -L {port}:127.0.0.1:{port} HOST"
            )
        if port == 0:
            raise ValueError("name a port: the engines have to know which one is no destination")
        if port == host_and_port(info.data.get("listen", DEFAULT_LISTEN))[1]:
            raise ValueError("it is the port of `listen`, where agents are; choose another")
        return address

    @model_validator(mode="after")
    def _open_only_here(self) -> Self:
        if self.identity == "open" and not is_loopback(self.host):
            raise ValueError(
                f"identity: open lets every caller name its own run and tenant, so it needs a "
                f"loopback address to listen on, not {self.listen}; use identity: token"
            )
        return self

    @property
    def host(self) -> str:
        return host_and_port(self.listen)[0]

    @property
    def port(self) -> int:
        return host_and_port(self.listen)[1]

    @property
    def own_ports(self) -> frozenset[int]:
        """Ports at which this program listens by these settings, so that nobody is led there."""
        addresses = [self.listen] if self.control is None else [self.listen, self.control]
        return frozenset(host_and_port(address)[1] for address in addresses)

    @property
    def policy_file(self) -> Path:
        return self.config / POLICY_FILE


NAMES = tuple(name for name in Settings.model_fields if name != "config")


def load(config: Path, flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """The settings in force. `flags` are those of `up` by setting; None stands for not given.

    Raises SettingsError with every mistake, one a line.
    """
    path = config / FILE
    values, places = _from_file(path) if path.exists() else ({}, {})
    bases = dict.fromkeys(values, path.absolute().parent)
    for name in NAMES:
        variable = PREFIX + name.upper()
        flag = "--" + name.replace("_", "-")
        for place, value in ((variable, environ.get(variable) or None), (flag, flags.get(name))):
            if value == "":
                raise SettingsError(f"{place}: is empty; leave it out, or give it a value")
            if value is not None:
                values[name], places[name] = value, place
                bases.pop(name, None)
    try:
        return Settings.model_validate({**values, "config": config}, context=bases)
    except ValidationError as error:
        raise SettingsError("\n".join(_told(error, places))) from None


def _told(error: ValidationError, places: Mapping[str, str]) -> list[str]:
    mistakes = []
    for detail in error.errors():
        message = detail["msg"].removeprefix("Value error, ")
        if detail["loc"]:
            name = str(detail["loc"][0])
            if detail["type"] in _NO_NUMBER:
                message = _number_of(name)
            mistakes.append(f"{places[name]}: {_where(detail['loc'])}: {message}{_shown(detail)}")
        else:  # two settings do not go together
            mistakes.append(f"{places.get('identity', FILE)}: {message}")
    return mistakes


def _where(location: tuple[int | str, ...]) -> str:
    """`notify: 2: url` for the second channel's URL."""
    return ": ".join(str(part + 1) if isinstance(part, int) else part for part in location)


def _shown(detail: ErrorDetails) -> str:
    """What stands there; not of a channel, where somebody may have written a secret."""
    return "" if detail["loc"][0] == "notify" else f" (it is {detail['input']!r})"


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


_NO_NUMBER = ("int_parsing", "int_from_float", "int_type", "float_parsing", "float_type")


def _number_of(name: str) -> str:
    """What to write where a number was not understood; the unit is in the setting's name."""
    unit = next((unit for unit in ("seconds", "days", "bytes") if unit in name.split("_")), "")
    example = Settings.model_fields[name].default
    of = f" of {unit}" if unit else ""
    return f"write a number{of} without a unit, such as {_plain(example)}"


def _from_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of the file and the place of each."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SettingsError(f"{path}: cannot be read: {why}") from None
    if not _SAYS_SOMETHING.search(text):
        return {}, {}
    try:
        document = read(text, str(path))
    except MistakenFileError as error:
        raise SettingsError(str(error)) from None
    if not isinstance(document.data, dict):
        raise SettingsError(f"{path}:1:1: write lines like `listen: {DEFAULT_LISTEN}`")
    unknown = [
        document.at((name,), f"there is no setting {name!r}{_nearest(name)}", of_key=True)
        for name in document.data
        if name not in NAMES
    ]
    if unknown:
        raise SettingsError(str(MistakenFileError(str(path), unknown)))
    marks = {name: document.locate((name,)).start_mark for name in document.data}
    places = {name: f"{path}:{at.line + 1}:{at.column + 1}" for name, at in marks.items()}
    return document.data, places


def _nearest(name: str) -> str:
    return suggestion(name, list(NAMES)) or f"; there are {', '.join(NAMES)}"
