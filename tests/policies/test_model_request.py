"""What a request to a model asks for, also where the agent writes it twice."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.meter.usage import TOKENS_MAX
from policies.model_names import NAME_CHARACTERS_MAX
from policies.model_request import (
    ANSWERS_MAX,
    MARKS_MAX,
    ModelRequest,
    read_model_request,
)
from policies.protocols.model_api import is_free

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "path,body,expected",
    [
        (CHAT, '{"model":"gpt-4o","messages":[{"content":"\\"max_tokens\\":9"}]}',
         ModelRequest("gpt-4o", None, False, False)),
        (CHAT, '{"model":"gpt-4o","max_tokens":100,"stream":true}',
         ModelRequest("gpt-4o", 100, True, False)),
        (CHAT, '{"model":"o3","max_completion_tokens":100,"stream":true,'
               '"stream_options":{"include_usage":true}}',
         ModelRequest("o3", 100, True, True)),
        (CHAT, '{"model":"gpt-4o","max_tokens":100,"n":4}',
         ModelRequest("gpt-4o", 400, False, False, 4)),
        ("/v1/completions", '{"model":"m","max_tokens":16,"n":1,"best_of":5}',
         ModelRequest("m", 80, False, False, 5)),
        ("/v1/responses", '{"model":"gpt-5.1","max_output_tokens":300,"input":"hi"}',
         ModelRequest("gpt-5.1", 300, False, False)),
        ("/v1/messages", '{"model":"claude-haiku-4-5","max_tokens":1024,"stream":false}',
         ModelRequest("claude-haiku-4-5", 1024, False, False)),
        ("/v1/embeddings", '{"model":"text-embedding-3-small","input":["a"]}',
         ModelRequest("text-embedding-3-small", None, False, False)),
        ("/v1beta/models/gemini-2.5-pro:generateContent",
         '{"contents":[],"generationConfig":{"maxOutputTokens":50,"candidateCount":2}}',
         ModelRequest("gemini-2.5-pro", 100, False, False, 2)),
        ("/v1beta/models/gemini-2.5-pro:streamGenerateContent",
         '{"generation_config":{"max_output_tokens":50}}',
         ModelRequest("gemini-2.5-pro", 50, True, False)),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/claude-sonnet-4-5@2:rawPredict",
         '{"anthropic_version":"v","max_tokens":7}',
         ModelRequest("claude-sonnet-4-5@2", 7, False, False)),
        ("/model/us.anthropic.claude%3A0/converse-stream", '{"inferenceConfig":{"maxTokens":60}}',
         ModelRequest("us.anthropic.claude:0", 60, True, False)),
        ("/model/amazon.nova-lite-v1:0/invoke", '{"inferenceConfig":{"maxTokens":60}}',
         ModelRequest("amazon.nova-lite-v1:0", 60, False, False)),
        ("/openai/deployments/prod/chat/completions", '{"max_tokens":5}',
         ModelRequest("prod", 5, False, False)),
    ],
)  # fmt: skip
def test_what_is_asked_for(path: str, body: str, expected: ModelRequest) -> None:
    assert read_model_request(path, body.encode()) == expected


@pytest.mark.parametrize(
    "body,expected",
    [
        # the largest of several bounds counts, whichever the provider reads
        ('{"model":"m","max_tokens":1,"max_completion_tokens":70}', 70),
        ('{"model":"m","max_tokens":null}', None),
        ('{"model":"m","max_tokens":null,"max_completion_tokens":3}', 3),
        ('{"model":"m","max_tokens":-1}', None),  # no bound to some servers
        ('{"model":"m","max_tokens":99999999999}', TOKENS_MAX),
        # names of other APIs bound nothing
        ('{"model":"m","max_output_tokens":1}', None),
        ('{"generationConfig":{"maxOutputTokens":1}}', None),
    ],
)
def test_of_bounds_the_largest_counts(body: str, expected: int | None) -> None:
    asked = read_model_request(CHAT, body.encode())
    assert asked is not None
    assert asked.max_tokens == expected
    assert not asked.unclear


ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in "max_completion_tokens")


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m","max_tokens":9000,"max_tokens":1}',
        '{"model":"m","max_tokens":1,"max_tokens":null}',
        '{"model":"m","max_tokens":1,"max\\u005ftokens":70}',
        f'{{"max_tokens":1,"{ESCAPED}":70}}',
        '{"max_tokens":1,"MAX_TOKENS":70}',
        '{"max_tokens":1,"max_to\u212aens":70}',
        '{"max_tokens":1,"maxTokens":70}',
        '{"max_tokens":"1"}',
        '{"max_tokens":1.5,"max_completion_tokens":3}',
        '{"max_tokens":true}',
        '{"n":2.0}',
        '{"n":"128"}',
        '{"n":-1}',
        '{"model":"cheap","model":"dear"}',
        '{"stream_options":{"include_usage":true},"stream_options":null}',
        '{"generationConfig":{"candidateCount":1},"generation_config":{"candidateCount":8}}',
        '{"generationConfig":{"candidateCount":1,"candidate_count":8}}',
        '{"n":1}{"n":128}',
        '{"background":true}',
        '{"background":1}',
    ],
)
def test_a_body_that_can_be_read_in_two_ways_is_unclear(body: str) -> None:
    asked = read_model_request(CHAT, body.encode())
    assert asked is not None
    assert asked.unclear


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_body_in_another_encoding_is_unclear(encoding: str) -> None:
    asked = read_model_request(CHAT, '{"max_tokens":1}'.encode(encoding))
    assert asked is not None
    assert asked.unclear


@pytest.mark.parametrize(
    "body",
    [
        '{"metadata":{"n":"1","n":"2","\\u00e9":1},"tools":[{"parameters":{"n":{"type":"x"}}}]}',
        '{"messages":[{"content":"\\"n\\": 1.0"},{"content":"max_tokens"},{"n":1},{"n":2}]}',
        '{"background":false,"n":null,"max_tokens":null}',
    ],
)
def test_what_an_honest_client_writes_is_clear(body: str) -> None:
    asked = read_model_request(CHAT, body.encode())
    assert asked == ModelRequest("", None, False, False)


@pytest.mark.parametrize("body", ['{"model":7}', '{"model":"\\ud800"}', "{}"])
def test_a_model_that_is_not_plain_is_none(body: str) -> None:
    asked = read_model_request(CHAT, body.encode())
    assert asked is not None
    assert not asked.model


def test_a_name_that_is_too_long_is_none() -> None:
    body = json.dumps({"model": "m" * (NAME_CHARACTERS_MAX + 1)}).encode()
    assert read_model_request(CHAT, body) == ModelRequest("", None, False, False)


def test_no_more_answers_are_believed_than_there_can_be() -> None:
    asked = read_model_request(CHAT, b'{"model":"m","n":100000000,"max_tokens":1}')
    assert asked == ModelRequest("m", ANSWERS_MAX, False, False, ANSWERS_MAX)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"model":"m"', b"\x1f\x8b\x08", b'"{}"'])
def test_a_body_that_is_no_object_is_not_guessed_at(body: bytes) -> None:
    assert read_model_request(CHAT, body) is None


def test_a_body_that_would_keep_others_waiting_is_not_read() -> None:
    for count, is_read in ((MARKS_MAX // 4, True), (MARKS_MAX, False)):
        body = b'{"messages":[' + b"[]," * count + b'[]],"model":"m","max_tokens":5}'
        asked = read_model_request(CHAT, body)
        assert asked is not None
        assert (not asked.unclear) == is_read


def test_words_with_every_escape_are_passed_over() -> None:
    words = json.dumps('\\"]}\n' * 1000 + "\\")
    body = f'{{"messages":[{{"content":{words}}},[{words}]],"system":{words},"max_tokens":5}}'
    assert read_model_request(CHAT, body.encode()) == ModelRequest("", 5, False, False)


@given(st.binary(max_size=200) | st.text('{}[]",: maxtokens_1n', max_size=100).map(str.encode))
def test_no_body_makes_it_raise(body: bytes) -> None:
    read_model_request(CHAT, body)


@pytest.mark.parametrize(
    "path,free",
    [
        ("/v1/messages/count_tokens", True),
        ("/gateway/v1/responses/input_tokens", True),
        ("/v1/moderations", True),
        ("/v1beta/models/gemini-2.5-pro:countTokens", True),
        ("/v1/files", True),
        ("/upload/v1beta/files", True),
        ("/openai/files", True),
        ("/v1/threads/t-1/messages", True),
        ("/v1/threads/t-1/runs/r-1/cancel", True),
        ("/v1/messages/batches/b-1/cancel", True),
        ("/v1/messages", False),
        ("/v1/threads/runs", False),
        ("/v1/batches", False),
        ("/v1/fine_tuning/jobs", False),
        ("/v1/FILES/x/../chat", False),
        ("/v1/messages/count_tokens/../../messages", False),
        ("/v1/messages;/count_tokens", False),
        ("/v1/messages%2Ffiles", False),
        ("/v1/x%2F/files", False),
        ("/v1beta/models/gemini-2.5-pro:generateContent", False),
        ("/v1beta/models/x:countTokens:generateContent", False),
    ],
)
def test_what_is_free(path: str, free: bool) -> None:
    assert is_free("POST", path) is free


def test_reads_are_free_if_they_send_nothing() -> None:
    assert is_free("GET", "/v1/models", has_body=False)
    assert is_free("DELETE", "/v1/files/f1", has_body=False)
    assert not is_free("GET", "/v1/chat/completions", has_body=True)
    assert not is_free("get", "/v1/models", has_body=False)
