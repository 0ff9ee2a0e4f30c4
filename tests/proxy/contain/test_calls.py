"""The filter in a process of its own: it cannot be taken off again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.contain import calls

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not calls.is_known(), reason="no filter for this machine"
)

TRIED = """
import ctypes, errno, fcntl, json, os, pty, socket, sys, termios
from proxy.contain import calls, kernel

def tell(work):
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def ring():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring")

pid, terminal = pty.fork()
if pid == 0:
    kernel.no_new_privileges()
    if sys.argv[1] == "filtered":
        calls.filter_calls()
    told = {
        "type into the terminal": tell(lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x")),
        "its size": tell(lambda: fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))),
        "AF_VSOCK": tell(lambda: socket.socket(40, socket.SOCK_STREAM).close()),
        "AF_ALG": tell(lambda: socket.socket(38, socket.SOCK_SEQPACKET).close()),
        "AF_INET": tell(lambda: socket.socket(socket.AF_INET).close()),
        "AF_INET6": tell(lambda: socket.socket(socket.AF_INET6).close()),
        "AF_UNIX": tell(lambda: socket.socket(socket.AF_UNIX).close()),
        "AF_NETLINK": tell(lambda: socket.socket(16, socket.SOCK_RAW).close()),
        "io_uring": tell(ring),
        "write": tell(lambda: os.write(1, b"")),
    }
    with open(sys.argv[2], "w") as file:
        json.dump(told, file)
    os._exit(0)
os.waitpid(pid, 0)
"""


def told(tmp_path: Path, word: str) -> dict[str, str]:
    answer = tmp_path / "told.json"
    subprocess.run([sys.executable, "-c", TRIED, word, answer], cwd=ROOT, check=True)
    answers: dict[str, str] = json.loads(answer.read_text())
    return answers


def test_what_goes_past_namespaces_and_users_is_refused_and_all_else_goes(tmp_path: Path) -> None:
    filtered = told(tmp_path, "filtered")
    assert {what: how for what, how in filtered.items() if how != "done"} == {
        "type into the terminal": "EPERM",
        "AF_VSOCK": "EAFNOSUPPORT",
        "AF_ALG": "EAFNOSUPPORT",
        "io_uring": "ENOSYS",
    }


def test_it_is_the_filter_that_refuses(tmp_path: Path) -> None:
    """Some kernels lack some of these, but none answers as the filter does to all."""
    free = told(tmp_path, "free")
    assert free["write"] == free["its size"] == "done"
    assert free != told(tmp_path, "filtered")


def test_machines_without_a_filter_are_told() -> None:
    assert calls.is_known("x86_64")
    assert calls.is_known("aarch64")
    assert not calls.is_known("riscv64")
