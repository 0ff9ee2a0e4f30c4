"""Usage out of answers: tests/cases/usage.yaml, however the bytes are split, whatever they are."""

import gzip
import json
import tracemalloc
from binascii import crc32
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.meter.framing import FRAME_BYTES_MAX, EventStreamFrames, ServerSentEvents
from policies.meter.meter import EVENT_STREAM, SERVER_SENT_EVENTS, Meter
from policies.meter.picker import KEY_BYTES_MAX, PICKED_BYTES_MAX, Picker
from policies.meter.picker import Path as JsonPath
from policies.meter.usage import TOKENS_MAX, Usage, count
from policies.model_names import NAME_CHARACTERS_MAX
from policies.prices import Prices, UnknownModelError
from tests.policies.aws_frames import chunk, frame

CASES = yaml.safe_load((Path(__file__).parents[1] / "cases" / "usage.yaml").read_text("utf-8"))
ROWS: list[dict[str, Any]] = CASES["rows"]
STREAMED = [row for row in ROWS if "content_type" in row]


def price_list() -> Prices:
    providers = {
        name: {
            "url": f"https://{name}/",
            "models": [{"match": {"starts_with": [model["id"]]}, **model} for model in models],
        }
        for name, models in CASES["prices"].items()
    }
    source = {"package": "cases", "version": "1", "license": "ours"}
    return Prices.load(json.dumps({"date": "2026-11-22", "source": source, "providers": providers}))


PRICES = price_list()


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


def answer(row: dict[str, Any]) -> bytes:
    if "frames" in row:
        return b"".join(frame(payload.encode()) for payload in row["frames"])
    if "chunks" in row:
        return b"".join(map(chunk, row["chunks"]))
    return str(row["body"]).encode()


def a_meter(row: dict[str, Any]) -> Meter:
    return Meter(row.get("content_type", "application/json"), row["asked"])


def expected(row: dict[str, Any]) -> Usage | None:
    if row["usage"] is None:
        return None
    numbers = dict.fromkeys(
        ("input_tokens", "cached_input_tokens", "cache_creation_tokens", "output_tokens",
         "reasoning_tokens"), 0,
    )  # fmt: skip
    return Usage(**{"model": row["asked"], **numbers, **row["usage"]})


def events(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


# ---------------------------------------------------------------------------- the cases


def test_there_are_enough_cases() -> None:
    priced = [row for row in ROWS if isinstance(row.get("microusd"), int)]
    assert len(priced) >= 30
    assert {row["api"] for row in priced} == {"anthropic", "azure", "bedrock", "google", "openai"}
    assert len({named(row) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_usage_is_as_worked_out_by_hand(row: dict[str, Any]) -> None:
    meter = a_meter(row)
    meter.feed(answer(row))
    assert meter.usage() == expected(row)
    assert meter.is_final == row.get("is_final", row["usage"] is not None)


@pytest.mark.parametrize("row", [row for row in ROWS if "microusd" in row], ids=named)
def test_cost_is_as_worked_out_by_hand(row: dict[str, Any]) -> None:
    usage = expected(row)
    assert usage is not None
    provider = row.get("at", row["api"])
    if row["microusd"] == "unknown":
        with pytest.raises(UnknownModelError):
            PRICES.cost_microusd(provider, usage.model, usage)
    else:
        assert PRICES.cost_microusd(provider, usage.model, usage) == row["microusd"]


@pytest.mark.parametrize("row", [row for row in ROWS if "estimate" in row], ids=named)
def test_a_stream_is_estimated_by_its_words(row: dict[str, Any]) -> None:
    meter = a_meter(row)
    meter.feed(answer(row))
    assert meter.output_tokens_estimate == row["estimate"]


# ---------------------------------------------------------------------------- however it is split


@given(st.data())
def test_usage_is_the_same_however_the_answer_is_split(data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(ROWS))
    body = answer(row)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=20).map(sorted))
    split = a_meter(row)
    for begin, end in pairwise([0, *cuts, len(body)]):
        split.feed(body[begin:end])
    whole = a_meter(row)
    whole.feed(body)
    assert split.usage() == whole.usage() == expected(row)
    assert split.output_bytes == whole.output_bytes


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_usage_is_the_same_byte_by_byte_and_the_estimate_never_falls(row: dict[str, Any]) -> None:
    meter, estimates = a_meter(row), []
    for byte in answer(row):
        meter.feed(bytes((byte,)))
        estimates.append(meter.output_tokens_estimate)
    assert meter.usage() == expected(row)
    if row["api"] != "openai":  # whose answers say at their end that they say all again
        assert estimates == sorted(estimates)


# ---------------------------------------------------------------------------- whatever it is


@given(
    st.binary(max_size=400) | st.text('{}[]",:\\0129 usagedt\n\r', max_size=200).map(str.encode),
    st.sampled_from(["application/json", SERVER_SENT_EVENTS, EVENT_STREAM, "", ";;"]),
)
def test_no_bytes_make_it_raise(body: bytes, content_type: str) -> None:
    meter = Meter(content_type, "m")
    meter.feed(body)
    meter.feed(b"data: " + body + b"\n\n")
    meter.usage()
    assert meter.output_tokens_estimate >= 0
    assert meter.so_far(10).input_tokens >= 0


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
NAMES = st.sampled_from(
    ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens",
     "cache_read_input_tokens", "cache_creation_input_tokens", "promptTokenCount",
     "candidatesTokenCount", "totalTokenCount", "cachedContentTokenCount", "inputTokens",
     "outputTokens", "cacheWriteInputTokens"]
)  # fmt: skip
INSIDE = st.dictionaries(
    st.sampled_from(["cached_tokens", "audio_tokens", "reasoning_tokens", "image_tokens"]), NUMBERS
)
DETAILS = st.sampled_from(["prompt_tokens_details", "input_tokens_details", "cache_creation"])


@given(
    st.dictionaries(NAMES, NUMBERS),
    st.dictionaries(DETAILS, INSIDE | NUMBERS),
)
def test_no_part_is_larger_than_its_whole(told: dict[str, Any], details: dict[str, Any]) -> None:
    meter = Meter("application/json", "m")
    meter.feed(json.dumps({"usage": {**told, **details}}).encode())
    usage = meter.usage()
    if usage is None:
        return
    numbers = [value for value in asdict(usage).values() if isinstance(value, int)]
    assert all(0 <= number <= TOKENS_MAX for number in numbers)
    assert usage.cached_input_tokens + usage.cache_creation_tokens <= usage.input_tokens
    assert usage.cache_creation_1h_tokens <= usage.cache_creation_tokens
    assert max(usage.input_audio_tokens, usage.input_image_tokens) <= usage.input_tokens
    assert usage.reasoning_tokens <= usage.output_tokens


@pytest.mark.parametrize(
    "value,expected",
    [(0, 0), (7, 7), (TOKENS_MAX + 1, TOKENS_MAX), (-1, None), (True, None), (1.0, None),
     ("1", None), (None, None), ([1], None)],
)  # fmt: skip
def test_a_count_is_a_whole_number_that_can_be(value: object, expected: int | None) -> None:
    assert count(value) == expected


def test_memory_does_not_grow_with_the_answer() -> None:
    body = b'{"data":[' + b"[" * 1000 + b"0.0123456789," * 80_000 + b'1,"' + b"x" * 1_000_000
    tail = b'"' + b"]" * 1001 + b',"usage":{"prompt_tokens":8,"total_tokens":8}}'
    meter = Meter("application/json", "text-embedding-3-small")
    tracemalloc.start()
    try:
        for begin in range(0, len(body), 16_384):
            meter.feed(body[begin : begin + 16_384])
        meter.feed(tail)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert meter.usage() == Usage("text-embedding-3-small", 8, 0, 0, 0, 0)
    assert peak < 200_000


def test_memory_does_not_grow_with_members_that_a_stream_invents() -> None:
    meter = Meter(SERVER_SENT_EVENTS, "m")
    meter.feed(events('{"usage":{"prompt_tokens":3}}'))
    tracemalloc.start()
    try:
        for number in range(500):
            meter.feed(events(f'{{"usage":{{"{number}":"{"x" * 1000}"}}}}'))
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert meter.usage() == Usage("m", 3, 0, 0, 0, 0)
    assert kept < 50_000


def test_a_value_that_is_too_long_is_not_told() -> None:
    padding = "x" * PICKED_BYTES_MAX
    meter = Meter(SERVER_SENT_EVENTS, "m")
    meter.feed(events(f'{{"usage":{{"prompt_tokens":9,"pad":"{padding}"}}}}'))
    assert meter.usage() is None
    meter.feed(events('{"usage":{"prompt_tokens":3}}'))
    assert meter.usage() == Usage("m", 3, 0, 0, 0, 0)


def test_a_model_whose_name_is_too_long_is_the_one_asked_for() -> None:
    meter = Meter("application/json", "m")
    name = "x" * (NAME_CHARACTERS_MAX + 1)
    meter.feed(f'{{"model":"{name}","usage":{{"prompt_tokens":3}}}}'.encode())
    assert meter.usage() == Usage("m", 3, 0, 0, 0, 0)


def test_a_key_that_is_too_long_is_nobodys() -> None:
    found: list[tuple[JsonPath, bytes]] = []
    key = "k" * (KEY_BYTES_MAX + 1)
    picker = Picker(
        frozenset({("k" * KEY_BYTES_MAX,), (key,)}), lambda *one: found.append(one), lambda: None
    )
    picker.feed(json.dumps({key: 1, "k" * KEY_BYTES_MAX: 2}).encode())
    assert found == [(("k" * KEY_BYTES_MAX,), b" 2")]


# ---------------------------------------------------------------------------- running streams


def test_a_running_stream_grows_by_what_is_seen() -> None:
    meter = Meter(SERVER_SENT_EVENTS, "gpt-4o")
    assert meter.so_far(100) == Usage("gpt-4o", 100, 0, 0, 0, 0)
    for _ in range(10):
        meter.feed(events('{"choices":[{"delta":{"content":"abc"}}]}'))
    assert meter.so_far(100) == Usage("gpt-4o", 100, 0, 0, 10, 0)
    assert not meter.is_final


def test_words_count_before_their_event_is_over() -> None:
    meter = Meter(SERVER_SENT_EVENTS, "gpt-4o")
    meter.feed(b'data: {"choices":[{"delta":{"content":"' + b"x" * 300_000)
    assert meter.output_tokens_estimate == 100_000


def test_words_count_before_their_frame_is_over() -> None:
    meter = Meter(EVENT_STREAM, "m")
    meter.feed(frame(b'{"delta":{"text":"Hello there"}}')[:-6])
    assert meter.output_tokens_estimate == 4


def test_a_stream_that_was_cut_costs_what_was_told_and_what_was_seen_since() -> None:
    meter = Meter(SERVER_SENT_EVENTS, "m")
    meter.feed(
        events('{"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}')
    )
    meter.feed(events('{"type":"content_block_delta","delta":{"text":"' + "x" * 30 + '"}}'))
    assert meter.usage() == Usage("m", 5, 0, 0, 1, 0)
    assert meter.so_far(1000) == Usage("m", 5, 0, 0, 11, 0)


def test_usage_that_is_told_early_does_not_cover_what_follows() -> None:
    meter = Meter(SERVER_SENT_EVENTS, "m")
    meter.feed(events('{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}'))
    assert meter.is_final
    meter.feed(events('{"choices":[{"delta":{"content":"' + "x" * 30 + '"}}]}'))
    assert not meter.is_final
    assert meter.so_far(1000) == Usage("m", 5, 0, 0, 11, 0)
    meter.feed(events('{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":8}}'))
    assert meter.is_final
    assert meter.so_far(1000) == Usage("m", 5, 0, 0, 8, 0)


def test_what_is_told_at_the_end_counts_before_what_was_seen() -> None:
    meter = Meter(SERVER_SENT_EVENTS, "m")
    meter.feed(events('{"choices":[{"delta":{"content":"' + "x" * 300 + '"}}]}'))
    meter.feed(events('{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":7}}'))
    assert meter.is_final
    assert meter.so_far(1000) == Usage("m", 2, 0, 0, 7, 0)


# ---------------------------------------------------------------------------- framing


def test_a_frame_with_a_wrong_crc_tells_nothing() -> None:
    told = frame(b'{"usage":{"inputTokens":47,"outputTokens":20}}')
    damaged = told.replace(b'"inputTokens":47', b'"inputTokens":48')
    meter = Meter(EVENT_STREAM, "m")
    meter.feed(damaged)
    assert meter.usage() is None
    meter.feed(told)  # a whole frame was skipped, so the next one is read
    assert meter.usage() == Usage("m", 47, 0, 0, 20, 0)


@pytest.mark.parametrize("lengths", [(16, 200), (FRAME_BYTES_MAX + 1, 0), (3, 0)])
def test_a_frame_whose_lengths_lie_ends_the_reading(lengths: tuple[int, int]) -> None:
    prelude = b"".join(length.to_bytes(4, "big") for length in lengths)
    seen: list[bytes] = []
    frames = EventStreamFrames(seen.append, lambda _: None)
    frames.feed(prelude + crc32(prelude).to_bytes(4, "big"))
    frames.feed(frame(b"{}"))
    assert not seen


def test_bytes_that_are_no_frames_end_the_reading() -> None:
    meter = Meter(EVENT_STREAM, "m")
    meter.feed(b'{"message":"not a frame"}' + frame(b'{"usage":{"inputTokens":1}}'))
    assert meter.usage() is None


@pytest.mark.parametrize(
    "text",
    ["data: a\ndata: b\n\n", "data: a\r\ndata: b\r\n\r\n", "data: a\rdata: b\r\r",
     "\ufeffdata: a\nid: 1\ndata:b\n\n", "dat: c\ndata: a\n: data: c\ndata: b\n\n"],
)  # fmt: skip
def test_an_events_data_lines_are_joined(text: str) -> None:
    for step in (1, 2, 1000):
        parts: list[bytes] = []
        reader = ServerSentEvents(parts.append, partial(parts.append, b"END"))
        raw = text.encode()
        for begin in range(0, len(raw), step):
            reader.feed(raw[begin : begin + step])
        assert b"".join(parts) == b"a\nb\nEND"


def test_a_coded_answer_tells_nothing() -> None:
    meter = Meter("application/json", "m")
    meter.feed(gzip.compress(b'{"usage":{"prompt_tokens":1}}'))
    assert meter.usage() is None
