"""Uploads and sockets, whose content goes by after the verdict, as the detectors see them."""

import hashlib
from collections.abc import Iterable

from policies.call import Dialect, Effect, Request, ToolCall
from policies.detectors import noticing
from policies.detectors.progress import INFORMATION, Progress
from policies.detectors.progress import WRITE as WRITTEN
from policies.detectors.runs import Runs
from policies.detectors.step import Finding, Kind, Severity, Step

START_US = 1_795_392_900_000_000
SECOND_US = 1_000_000
WRITE = ToolCall("put", Effect.WRITE, "op", b"")
SOCKET = (("upgrade", "websocket"), ("connection", "Upgrade"))

Call = tuple[Request, bytes]
"""What is asked, and the digest of what went by."""


def upload(content: str, target: str = "/x", **headers: str) -> Call:
    request = Request(
        "PUT", "https", "a.example", 443, target,
        (("content-length", str(len(content))), *headers.items()), streamed=True,
    )  # fmt: skip
    answer = noticing.result(200, b"", Dialect.HTTP).digest
    return request, noticing.with_body(answer, hashlib.sha256(content.encode()).digest())


def socket(said: str, target: str = "/chat", **headers: str) -> Call:
    """Its result is the digest of the upstream's messages."""
    request = Request("GET", "https", "a.example", 443, target, (*SOCKET, *headers.items()))
    return request, hashlib.sha256(said.encode()).digest() if said else b""


def step(at_us: int, number: int, request: Request, result: bytes) -> Step:
    return Step(
        at_us, Kind.TOOL, f"c{number}", "r1", "r1", "acme", tool="put",
        action=noticing.traits(request, WRITE, at_us).action, result=result, is_write=True,
    )  # fmt: skip


def found(calls: Iterable[Call], every_us: int) -> list[Finding]:
    runs, findings = Runs(), list[Finding]()
    for number, (request, result) in enumerate(calls):
        findings += runs.feed(step(START_US + number * every_us, number, request, result))
    return findings


def trips(calls: Iterable[Call], every_us: int = 2 * SECOND_US) -> bool:
    return any(one.severity is Severity.TRIP for one in found(calls, every_us))


def test_the_same_upload_again_and_again_is_a_loop() -> None:
    assert trips(upload("same") for _ in range(12))
    assert trips(upload("same", **{"x-any": str(number)}) for number in range(12))
    assert trips(upload("same", **{"sec-websocket-version": "13"}) for _ in range(12))


def test_files_to_many_paths_are_work() -> None:
    assert found([upload("same", f"/x/{number}") for number in range(200)], SECOND_US) == []


def test_new_versions_of_one_file_and_its_parts_are_work() -> None:
    assert not trips(upload(f"version {number:03}") for number in range(200))
    ranges = (f"bytes {9 * number}-{9 * number + 8}/*" for number in range(200))
    assert found([upload("same part", **{"content-range": one}) for one in ranges], SECOND_US) == []


def test_a_head_counts_as_a_distinct_write_once() -> None:
    """Else a byte changed in each would be progress, in a body that nobody has read."""
    progress = Progress.begun(START_US)
    earned = []
    for number in range(3):
        request, result = upload(f"{number}")
        progress.feed(step(START_US + number * SECOND_US, number, request, result))
        earned.append(progress.credit)
    assert earned == [WRITTEN, INFORMATION, INFORMATION]


def test_a_socket_that_brings_the_same_again_and_again_is_a_loop() -> None:
    assert trips(socket("welcome") for _ in range(12))
    assert trips(socket("", **{"sec-websocket-key": str(number)}) for number in range(12))


def test_sockets_that_bring_news_and_those_to_many_rooms_are_work() -> None:
    assert not trips(socket(f"answer {number}") for number in range(200))
    assert found([socket("", f"/room/{number}") for number in range(200)], SECOND_US) == []


def test_a_socket_that_is_opened_anew_each_half_minute_trips_nothing() -> None:
    assert not trips((socket("welcome") for _ in range(100)), 30 * SECOND_US)
