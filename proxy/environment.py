"""The environment block that sends an agent's calls through pullcord, and how shells read it.

Pure: from a proxy address, an identity and two files to names, values and text. Nothing here
reads the environment, makes a token or looks at a file. Each name is here because a client was
seen to need it.
"""

import ipaddress
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

# Both cases: curl, wget and git ignore an upper-case HTTP_PROXY, gRPC reads lower case only.
PROXY_NAMES = (
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "WS_PROXY",
    "ws_proxy",
    "WSS_PROXY",
    "wss_proxy",
)

# Set to nothing, not left out: an inherited exception would let calls past pullcord.
NO_PROXY_NAMES = ("NO_PROXY", "no_proxy")

# Without these, Node's fetch and an aiohttp session that trusts its environment go direct.
SWITCHES = {"NODE_USE_ENV_PROXY": "1", "AIOHTTP_TRUST_ENV": "True"}

# These replace a client's own store, so they name the bundle that holds the usual roots too.
BUNDLE_NAMES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CARGO_HTTP_CAINFO",
    "npm_config_cafile",
    "CODEX_CA_CERTIFICATE",
    "WEBSOCKET_CLIENT_CA_BUNDLE",
    "HTTPLIB2_CA_CERTS",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "NIX_SSL_CERT_FILE",
    "BUNDLE_SSL_CA_CERT",
)

# These add to a client's own store.
CA_NAMES = ("NODE_EXTRA_CA_CERTS", "DENO_CERT")

RUN_NAMES = ("PULLCORD_RUN_ID", "PULLCORD_URL", "TRACEPARENT", "BAGGAGE")

NAMES = (*PROXY_NAMES, *NO_PROXY_NAMES, *SWITCHES, *BUNDLE_NAMES, *CA_NAMES, *RUN_NAMES)

# The agent's own view; the name resolves nowhere and is answered by the proxy alone.
SELF_URL = "http://pullcord.invalid"

_CREDENTIAL = re.compile(r"[A-Za-z0-9._~-]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")


def proxy_url(host: str, port: int, run: str, token: str) -> str:
    """`http://RUN:TOKEN@HOST:PORT`. In the mode `open` the second part is the tenant.

    Raises ValueError: several clients mangle any other character of a credential, and a host
    is a name or an address without brackets.
    """
    for word, value in (("run", run), ("token", token)):
        if not _CREDENTIAL.fullmatch(value):
            # A token is a secret, so a wrong one is not repeated.
            shown = f" {value!r}" if word == "run" else ""
            raise ValueError(
                f"the {word}{shown} does not fit into a proxy URL: use one or more of the "
                "letters A-Z and a-z, the digits, and . _ ~ -"
            )
    if not 1 <= port <= 65535:
        raise ValueError(f"the proxy's port is {port}; it must be from 1 to 65535")
    return f"http://{run}:{token}@{_bracketed(host)}:{port}"


def block(
    *,
    host: str,
    port: int,
    run: str,
    token: str,
    bundle_file: Path,
    ca_file: Path,
    trace_id: str,
    span_id: str,
    baggage: str = "",
) -> dict[str, str]:
    """Every variable of the block, in the order in which it is shown.

    `trace_id` and `span_id` are 32 and 16 random lower-case hex digits (W3C Trace Context,
    section 3.2.2); `baggage` is a ready header value (W3C Baggage, section 3.2) or empty.
    Raises ValueError.
    """
    if not (_TRACE_ID.fullmatch(trace_id) and _SPAN_ID.fullmatch(span_id)):
        raise ValueError(
            "trace_id and span_id must be 32 and 16 lower-case hex digits, not all of them 0"
        )
    if not (baggage.isascii() and baggage.isprintable()):
        raise ValueError(f"baggage must be printable ASCII (percent-encode the rest): {baggage!r}")
    variables = dict.fromkeys(PROXY_NAMES, proxy_url(host, port, run, token))
    variables |= dict.fromkeys(NO_PROXY_NAMES, "")
    variables |= SWITCHES
    variables |= dict.fromkeys(BUNDLE_NAMES, _path(bundle_file))
    variables |= dict.fromkeys(CA_NAMES, _path(ca_file))
    variables["PULLCORD_RUN_ID"] = run
    variables["PULLCORD_URL"] = SELF_URL
    variables["TRACEPARENT"] = f"00-{trace_id}-{span_id}-01"
    if baggage:
        variables["BAGGAGE"] = baggage
    return variables


def _path(file: Path) -> str:
    path = str(file)
    if not file.is_absolute():
        raise ValueError(f"{path!r} must be an absolute path: agents run in other directories")
    # A line break would end the line that holds it in most formats, an odd byte has no text.
    if not path.isprintable():
        raise ValueError(
            f"the path {path!r} holds a character that cannot be printed; "
            "choose another directory with --data"
        )
    return path


def _bracketed(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    # An address with a zone (fe80::1%eth0) has no spelling in a URL that clients agree on.
    if "%" in host or (address is None and not _HOST_NAME.fullmatch(host)):
        raise ValueError(f"{host!r} is neither a host name nor an address without a zone")
    if address is None:
        return host
    return f"[{address}]" if address.version == 6 else str(address)


# ---------------------------------------------------------------------------- formats


@dataclass(frozen=True, slots=True)
class Format:
    """`unset` is None where a file of this format cannot take a variable away."""

    render: Callable[[Mapping[str, str]], str]
    unset: Callable[[], str] | None


def render(variables: Mapping[str, str], format_name: str) -> str:
    """The block as text that ends with a line break. Raises ValueError."""
    return _format(format_name).render(variables)


def render_unset(format_name: str) -> str:
    """What takes every variable of the block away again. Raises ValueError."""
    unset = _format(format_name).unset
    if unset is None:
        able = ", ".join(name for name, format_ in FORMATS.items() if format_.unset)
        raise ValueError(
            f"a file of the format {format_name} cannot unset a variable: stop using the file, "
            f"or choose --format {able}"
        )
    return unset()


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"there is no format {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _lines(template: Callable[[str, str], str], variables: Mapping[str, str]) -> str:
    return "".join(template(name, value) + "\n" for name, value in variables.items())


def _sh(variables: Mapping[str, str]) -> str:
    """POSIX shells: `eval "$(pullcord env)"`."""
    return _lines(lambda name, value: f"export {name}={shlex.quote(value)}", variables)


def _unset_sh() -> str:
    return f"unset {' '.join(NAMES)}\n"


def _fish(variables: Mapping[str, str]) -> str:
    """fish: `pullcord env --format fish | source`."""

    def line(name: str, value: str) -> str:
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"set -gx {name} '{escaped}'"

    return _lines(line, variables)


def _unset_fish() -> str:
    return f"set -ge {' '.join(NAMES)}\n"


def _pwsh(variables: Mapping[str, str]) -> str:
    """PowerShell: `pullcord env --format pwsh | Out-String | Invoke-Expression`."""

    def line(name: str, value: str) -> str:
        # PowerShell also ends a string at the typographic single quotes; doubling keeps each.
        return f"$env:{name} = '{re.sub("(['\u2018-\u201b])", r'\1\1', value)}'"

    return _lines(line, variables)


def _unset_pwsh() -> str:
    return "".join(f"Remove-Item -ErrorAction Ignore Env:{name}\n" for name in NAMES)


def _dotenv(variables: Mapping[str, str]) -> str:
    """A file for dotenv libraries, `docker compose`, systemd and `. ./file`.

    They share no escape. In single quotes all take a value as it stands, but for `${`, which
    some expand; in double quotes all do when nothing in it could be an escape or a reference.
    """

    def line(name: str, value: str) -> str:
        if "'" not in value and "${" not in value:
            return f"{name}='{value}'"
        if not re.search(r'["\\$`]', value):
            return f'{name}="{value}"'
        raise ValueError(
            f"dotenv readers do not agree on any quoting of {name}={value}; choose another "
            "directory with --data, or another --format"
        )

    return _lines(line, variables)


def _json(variables: Mapping[str, str]) -> str:
    """One object."""
    return json.dumps(dict(variables), indent=2, ensure_ascii=False) + "\n"


def _unset_json() -> str:
    """A merge patch (RFC 7396): null takes a member away."""
    return json.dumps(dict.fromkeys(NAMES), indent=2) + "\n"


def _docker(variables: Mapping[str, str]) -> str:
    """A file for `docker run --env-file`, which has no quoting: a value is the rest of its line.

    Both files must be mounted in the container at the same paths, and the host be reachable
    from there.
    """
    return _lines(lambda name, value: f"{name}={value}", variables)


def _k8s(variables: Mapping[str, str]) -> str:
    """The `env` list of a container. Kubernetes expands `$(NAME)` in values; `$$` is one `$`."""
    entries = [
        {"name": name, "value": value.replace("$", "$$")} for name, value in variables.items()
    ]
    return _yaml({"env": entries})


def _unset_k8s() -> str:
    """The `env` list of a strategic merge patch (`kubectl patch`)."""
    return _yaml({"env": [{"name": name, "$patch": "delete"} for name in NAMES]})


def _yaml(document: object) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


FORMATS: Mapping[str, Format] = {
    "sh": Format(_sh, _unset_sh),
    "fish": Format(_fish, _unset_fish),
    "pwsh": Format(_pwsh, _unset_pwsh),
    "dotenv": Format(_dotenv, None),
    "json": Format(_json, _unset_json),
    "docker": Format(_docker, None),
    "k8s": Format(_k8s, _unset_k8s),
}
