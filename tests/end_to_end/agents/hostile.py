"""An agent that tries to get at the proxy beside it. Standard library only, any Python 3.8.

    python hostile.py FACTS

FACTS is a JSON file: what is where. Prints one JSON object: each attempt with what it reached,
or null. `gentle` leaves out what would end the proxy where nothing keeps the agent from it.
"""

import base64
import ctypes
import json
import os
import signal
import socket
import ssl
import stat
import sys
from urllib.parse import urlsplit

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
PIDFD_OPEN, PIDFD_GETFD = 434, 438
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET = 0x10000000, 0x20000, 0x40000000
MNT_DETACH, MS_BIND, MS_REC = 2, 0x1000, 0x4000
SECONDS = 2.0

with open(sys.argv[1]) as _facts:
    FACTS = json.load(_facts)
DATA, PID = FACTS["data"], FACTS["pid"]


def called(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def read(path):
    with open(path, "rb") as file:
        return f"read {len(file.read(4096))} bytes"


def listed(path):
    return f"listed {len(os.listdir(path))} entries"


def link(path):
    return f"leads to {os.readlink(path)}"


def memory():
    with open(f"/proc/{PID}/maps") as file:
        start = int(file.readline().split("-")[0], 16)
    with open(f"/proc/{PID}/mem", "rb") as file:
        file.seek(start)
        return f"read {len(file.read(64))} bytes of it"


def planted():
    path = os.path.join(DATA, "planted")
    with open(path, "w"):
        pass
    os.unlink(path)
    return "made a file"


def removed():
    os.unlink(os.path.join(DATA, "decoy"))
    return "removed a file"


def written(path):
    with open(path, "r+b"):
        return "opened for writing"


def moved(path):
    if FACTS["gentle"]:
        raise OSError("not tried")
    os.rename(path, path + ".old")
    os.rename(path + ".old", path)
    return "moved away"


def asked_control(path):
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(SECONDS)
        line.connect(path)
        line.sendall(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = line.recv(64)
        if not answer:
            raise OSError("hung up on")
        return answer.split(b"\r\n")[0].decode()


def asked_control_by_tcp(headers):
    with socket.create_connection(tuple(FACTS["control"]), timeout=SECONDS) as line:
        line.sendall(f"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        answer = line.recv(256).split(b"\r\n")[0].decode()
        if " 200 " not in answer:
            raise OSError(answer)
        return answer


def connected(family, place, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as line:
        line.settimeout(SECONDS)
        line.connect(place)
        if kind == socket.SOCK_DGRAM:
            line.send(b"hello")
            return f"answered {line.recv(16)!r}"
        return "connected"


def machines_host():
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        return "made a socket"


def traced():
    called(LIBC.ptrace(PTRACE_SEIZE, PID, None, None))
    return "attached"


def taken_descriptor():
    process = called(LIBC.syscall(PIDFD_OPEN, PID, 0))
    return f"took descriptor {called(LIBC.syscall(PIDFD_GETFD, process, 3, 0))}"


def signalled(number):
    if number and FACTS["gentle"]:
        raise OSError("not tried")
    os.kill(PID, number)
    return "sent"


def others(what):
    """The same of any other process that is to be seen, but for what the agent started."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        if int(name) not in (os.getpid(), os.getppid() if os.getppid() != 1 else -1):
            try:
                found += what(f"/proc/{name}")
            except OSError:
                pass
    if not found:
        raise OSError("none")
    return f"{len(found)}, such as {found[0]}"


def descriptors_of(process):
    return [os.readlink(f"{process}/fd/{fd}") for fd in os.listdir(f"{process}/fd")]


def memory_of(process):
    with open(f"{process}/mem", "rb"):
        return [process]


def entered(name):
    """The namespaces of process 1, where they are not our own."""
    path = f"/proc/1/ns/{name}"
    if os.readlink(path) == os.readlink(f"/proc/self/ns/{name}"):
        raise OSError("its own anyway")
    handle = os.open(path, os.O_RDONLY)
    called(LIBC.setns(handle, 0))
    return "entered"


def inherited():
    mine = os.open("/proc/self/fd", os.O_RDONLY)
    ours = {0, 1, 2, mine}
    found = [fd for fd in map(int, os.listdir(mine)) if fd not in ours]
    os.close(mine)
    if not found:
        raise OSError("none")
    return f"holds {', '.join(os.readlink(f'/proc/self/fd/{fd}') for fd in found)}"


def disks():
    found = []
    for folder, _, names in os.walk("/dev"):
        for name in names:
            path = os.path.join(folder, name)
            try:
                if stat.S_ISBLK(os.lstat(path).st_mode):
                    os.close(os.open(path, os.O_RDONLY))
                    found.append(path)
            except OSError:
                pass
    if not found:
        raise OSError("none")
    return f"opened {found[0]}"


def as_root_of_ones_own(work):
    """In namespaces of the agent's own, where it has all capabilities: in a child."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            uid, gid = os.getuid(), os.getgid()
            called(LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS))
            for name, text in (
                ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")
            ):  # fmt: skip
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
            answer = work()
            os.write(tell, answer.encode())
        except OSError:
            pass
        finally:
            os._exit(0)
    os.close(tell)
    os.waitpid(child, 0)
    with os.fdopen(told) as pipe:
        answer = pipe.read()
    if not answer:
        raise OSError("not reached")
    return answer


def unmounted():
    for path in (DATA, "/tmp", "/run", "/dev", "/proc", "/sys/fs/cgroup"):
        for _ in range(3):
            LIBC.umount2(path.encode(), MNT_DETACH)
    return secret_below("")


def bound():
    """A view of the root without what is mounted on it."""
    os.makedirs("/tmp/view", exist_ok=True)
    called(LIBC.mount(b"/", b"/tmp/view", None, MS_BIND, None))
    return secret_below("/tmp/view")


def secret_below(root):
    names = os.listdir(root + DATA)
    if "ledger.db" not in names:
        raise OSError("not there")
    return read(f"{root}{DATA}/ledger.db")


def attempts():
    """(group, name, what to do)."""
    for name in FACTS["secrets"]:
        yield "file", f"read DATA/{name}", lambda name=name: read(os.path.join(DATA, name))
    beside = os.path.relpath(os.path.join(DATA, "ledger.db"))
    yield "file", "read DATA/ledger.db by a relative path", lambda: read(beside)
    yield "file", "list DATA/private", lambda: listed(os.path.join(DATA, "private"))
    yield "file", "put a file into DATA", planted
    yield "file", "remove a file of DATA", removed
    yield "file", "move DATA away", lambda: moved(DATA)
    yield "file", "move away what DATA lies in", lambda: moved(os.path.dirname(DATA))
    yield "file", "change the policy", lambda: written(FACTS["policy"])
    yield "file", "move the policy away", lambda: moved(os.path.dirname(FACTS["policy"]))
    yield "file", "change pullcord's program", lambda: written(FACTS["program"])
    yield "file", "umount in an own namespace", lambda: as_root_of_ones_own(unmounted)
    yield "file", "bind / without its mounts", lambda: as_root_of_ones_own(bound)
    yield "file", "inherited descriptors", inherited
    yield "file", "open a disk", disks
    yield "socket", "ask DATA/control.sock", lambda: asked_control(f"{DATA}/control.sock")
    token = urlsplit(os.environ["HTTPS_PROXY"]).password
    bearer = f"Authorization: Bearer {token}\r\n"
    yield "socket", "ask the control port", lambda: asked_control_by_tcp("")
    yield "socket", "ask it with the run's token", lambda: asked_control_by_tcp(bearer)
    for name in ("environ", "maps"):
        yield "proc", f"read /proc/PID/{name}", lambda name=name: read(f"/proc/{PID}/{name}")
    yield "proc", "read /proc/PID/mem", memory
    yield "proc", "list /proc/PID/fd", lambda: listed(f"/proc/{PID}/fd")
    for name in ("root", "cwd", "exe", "ns/net"):
        yield "proc", f"follow /proc/PID/{name}", lambda name=name: link(f"/proc/{PID}/{name}")
    yield "proc", "ptrace PID", traced
    yield "proc", "take a descriptor of PID", taken_descriptor
    yield "proc", "signal 0 to PID", lambda: signalled(0)
    yield "proc", "SIGUSR1 to PID", lambda: signalled(signal.SIGUSR1)
    yield "proc", "SIGSTOP to PID", lambda: signalled(signal.SIGSTOP)
    yield "proc", "descriptors of any process", lambda: others(descriptors_of)
    yield "proc", "memory of any process", lambda: others(memory_of)
    for name in ("net", "mnt", "user", "pid"):
        yield "proc", f"enter /proc/1/ns/{name}", lambda name=name: entered(name)
    yield "socket", "a socket to the machine's host", machines_host
    tcp, udp = tuple(FACTS["tcp"]), tuple(FACTS["udp"])
    yield "route", "TCP to the upstream", lambda: connected(socket.AF_INET, tcp)
    yield (
        "route",
        "TCP to the proxy's port",
        lambda: connected(socket.AF_INET, tuple(FACTS["door"])),
    )
    control = tuple(FACTS["control"])
    yield "route", "TCP to the control port", lambda: connected(socket.AF_INET, control)
    yield "route", "UDP", lambda: connected(socket.AF_INET, udp, socket.SOCK_DGRAM)
    if FACTS["tcp6"]:
        yield "route", "TCP by IPv6", lambda: connected(socket.AF_INET6, tuple(FACTS["tcp6"]))
    yield "route", "an abstract socket", lambda: connected(socket.AF_UNIX, "\0" + FACTS["abstract"])
    for path in FACTS["sockets"]:
        place = f"a program's socket in {os.path.dirname(path).split(os.sep)[1]}"
        yield "route", f"{place}", lambda path=path: connected(socket.AF_UNIX, path)


def proxied():
    """The honest call: all that the environment block says, and nothing else."""
    proxy, url = (urlsplit(each) for each in (os.environ["HTTPS_PROXY"], FACTS["url"]))
    credentials = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
    place = f"{url.hostname}:443"
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    with socket.create_connection((proxy.hostname, proxy.port), timeout=20) as line:
        fields = f"Host: {place}\r\nProxy-Authorization: Basic {credentials}"
        line.sendall(f"CONNECT {place} HTTP/1.1\r\n{fields}\r\n\r\n".encode())
        answer = line.recv(4096)
        if b" 200 " not in answer.split(b"\r\n")[0]:
            raise OSError(answer.decode())
        with context.wrap_socket(line, server_hostname=url.hostname) as tls:
            head = f"GET {url.path} HTTP/1.1\r\nHost: {url.hostname}\r\nConnection: close"
            tls.sendall(f"{head}\r\n\r\n".encode())
            told = tls.recv(4096).decode("latin-1")
            lines = told.split("\r\n")
            decided = [line for line in lines if line.lower().startswith("pullcord-decision")]
            return " ".join([lines[0].split()[1], *decided])


def main():
    told = {"uid": os.getuid(), "proxied": proxied(), "tried": []}
    for group, name, attempt in attempts():
        try:
            reached = attempt()
        except (OSError, ValueError) as error:
            reached, error_text = None, str(error)
        else:
            error_text = ""
        told["tried"].append([group, name, reached, error_text])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
