"""What an agent stands beside: a proxy, its files and processes, and other programs' sockets."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.end_to_end import origin
from tests.end_to_end.origin import HOST
from tests.end_to_end.running import AGENTS, PULLCORD, ROOT, Proxy
from tests.ports import free_port

POLICY = """\
version: 1
tools:
  things: {match: {host: api.origin.example}, allow_addresses: [127.0.0.0/8]}
"""

# What an operator's directory holds, some of it only when it is in use.
MADE_UP = ("operator.token", "credentials.yaml", "decoy")
KEEPING = {
    "same user": (),
    "other user": ("--user", "nobody"),
    "contained": ("--contain",),
    "contained, by root": ("--contain",),
}
AS_ROOT = ("other user", "contained, by root")
COMMAND_SECONDS = 60.0

PROGRAM = [sys.executable, "-c", PULLCORD]
PLAIN_USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]


@dataclass(frozen=True, slots=True)
class Beside:
    """A proxy, and what else an agent could find on the machine."""

    proxy: Proxy
    work: Path
    facts: dict[str, Any]

    def types(
        self, *words: str, plain: bool = False, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """What somebody types, to its end; `plain`: as a user who is not root."""
        prefix = PLAIN_USER if plain and os.geteuid() == 0 else []
        return finished(self.starts([*prefix, *PROGRAM, *words], **options))

    def command(self, keeping: str, *words: str) -> list[str]:
        """What root types for `contained` runs as root without its rights, in a user namespace:
        as the owner of the proxy's files, which is what an ordinary user is."""
        if keeping in AS_ROOT and os.geteuid() != 0:
            missing("only root can start agents as other users")
        plain = PLAIN_USER if keeping == "contained" and os.geteuid() == 0 else []
        options = (*KEEPING[keeping], "--run", f"run-{keeping.replace(' ', '-').replace(',', '')}")
        return [*plain, *PROGRAM, "run", *options, "--", *words]

    def start(self, keeping: str, *words: str, **options: Any) -> "subprocess.Popen[str]":
        return self.starts(self.command(keeping, *words), **options)

    def starts(self, command: list[str], **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=options.pop("cwd", self.work),
            env={
                **self.proxy._environment,
                "PULLCORD_CONFIG": str(self.proxy.folder / "config"),
                "SSH_AUTH_SOCK": "/tmp/ssh-agent",
                **options.pop("environ", {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, keeping: str, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return finished(self.start(keeping, *words, **options))


def finished(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    with process:
        try:
            out, err = process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def standing(certificates: Path) -> Iterator[Beside]:
    """Neither in /tmp, which a contained agent has its own of, nor where nobody can enter."""
    if subprocess.run([*PLAIN_USER, "true"], check=False).returncode != 0:
        missing("this system gives no user namespaces")
    folder = Path(tempfile.mkdtemp(prefix="pullcord-contained-", dir="/var/tmp"))
    folder.chmod(0o755)
    with ExitStack() as closing:
        closing.callback(shutil.rmtree, folder)
        served = closing.enter_context(origin.serving(certificates))
        proxy = Proxy(folder, POLICY, served.ca, served.routes)
        control = free_port()
        with (folder / "config" / "pullcord.yaml").open("a") as settings:
            settings.write(f"control: 127.0.0.1:{control}\n")
        proxy.start()
        closing.callback(_stopped, proxy)
        for name in MADE_UP:
            (folder / "data" / name).touch(0o600)
        work = folder / "work"
        work.mkdir()
        work.chmod(0o755)
        shutil.copy(AGENTS / "hostile.py", work)
        facts = _facts(proxy, served.routes[f"{HOST}:443"], work, closing)
        yield Beside(proxy, work, {**facts, "control": ["127.0.0.1", control]})


def missing(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def _stopped(proxy: Proxy) -> None:
    if proxy.process is not None:
        proxy.end(signal.SIGKILL)


def _facts(proxy: Proxy, upstream: int, work: Path, closing: ExitStack) -> dict[str, Any]:
    data = proxy.folder / "data"
    abstract = f"pullcord-test-{os.getpid()}"
    udp = _bound(closing, socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM)
    threading.Thread(target=_echo, args=(udp,), daemon=True).start()
    tcp6 = None
    with suppress(OSError):
        tcp6 = _bound(closing, socket.AF_INET6, ("::1", 0)).getsockname()[:2]
    _bound(closing, socket.AF_UNIX, f"\0{abstract}")
    (work / "others").mkdir()
    sockets = [work / "others" / "agent.sock", Path(f"/tmp/{abstract}.sock")]
    for path in sockets:
        _bound(closing, socket.AF_UNIX, str(path))
        closing.callback(path.unlink)
        path.chmod(0o777)
    assert proxy.process is not None
    return {
        "data": str(data),
        "pid": proxy.process.pid,
        "secrets": sorted(
            str(path.relative_to(data))
            for path in data.rglob("*")
            if path.is_file() and path.parent.name != "ca"
        ),
        "policy": str(proxy.folder / "config" / "policy.yaml"),
        "program": str(ROOT / "proxy" / "gate.py"),
        "url": f"https://{HOST}/things",
        "door": ["127.0.0.1", proxy.port],
        "tcp": ["127.0.0.1", upstream],
        "udp": udp.getsockname(),
        "tcp6": tcp6,
        "abstract": abstract,
        "sockets": [str(path) for path in sockets],
    }


def _bound(
    closing: ExitStack, family: int, place: Any, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    listener = closing.enter_context(socket.socket(family, kind))
    listener.bind(place)
    if kind == socket.SOCK_STREAM:
        listener.listen(64)
    return listener


def _echo(udp: socket.socket) -> None:
    with suppress(OSError):
        while True:
            text, sender = udp.recvfrom(64)
            udp.sendto(text, sender)


def python_for_all() -> str:
    """One that `nobody` can start: the tests' own may lie in root's home."""
    for path in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")):
        places = [Path(path), *Path(os.path.realpath(path)).parents] if path else []
        if path and all(place.stat().st_mode & 0o001 for place in places):
            return path
    return missing("no Python that every user can start")


@contextmanager
def watched(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    """One that hangs fails its test instead of holding it."""
    watchdog = threading.Timer(COMMAND_SECONDS, process.kill)
    watchdog.start()
    try:
        with process:
            yield process
    finally:
        watchdog.cancel()
        process.kill()
