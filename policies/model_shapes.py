"""The shapes of model APIs' requests: which members say how much may be answered, and which lead to
text that the request does not hold.

The tables alone; what they mean is read in `model_request.py`. Sources: the API references of
OpenAI, Anthropic, Google (Gemini, Vertex AI), Amazon Bedrock, Ollama, llama.cpp, Hugging Face TGI.
"""

import re

from policies import paths
from policies.meter.picker import Path

_CONFIGS = ("generationConfig", "generation_config")
_GOOGLE = frozenset(
    (config, name) for config in _CONFIGS for name in ("maxOutputTokens", "max_output_tokens")
)
_CONVERSE = frozenset({("inferenceConfig", "maxTokens")})
_MAX_TOKENS: frozenset[Path] = frozenset({("max_tokens",)})

# By the end of the path, in lower case: the names that the server there goes by, as its API says.
# What stands under other names may raise what is reserved, never lower it.
_BY_PATH: tuple[tuple[re.Pattern[str], frozenset[Path]], ...] = (
    (re.compile(r"/responses$"), frozenset({("max_output_tokens",)})),
    (re.compile(r"/chat/completions$"), _MAX_TOKENS | {("max_completion_tokens",)}),
    (re.compile(r"/(?:completions|messages)$|:(?:stream)?rawpredict$"), _MAX_TOKENS),
    (re.compile(r"/complete$"), frozenset({("max_tokens_to_sample",)})),
    (re.compile(r":(?:stream)?generatecontent$"), _GOOGLE),
    (re.compile(r"/model/.+/converse(?:-stream)?$"), _CONVERSE),
    (re.compile(r"/model/.*anthropic\..+/invoke(?:-with-response-stream)?$"), _MAX_TOKENS),
    (re.compile(r"/model/.*amazon\.nova.+/invoke(?:-with-response-stream)?$"), _CONVERSE),
)

LENGTHS: frozenset[Path] = (
    frozenset().union(*(names for _, names in _BY_PATH)) | {
        ("max_new_tokens",), ("max_gen_len",), ("max_length",), ("maxTokens",),
        ("maxOutputTokens",), ("num_predict",), ("n_predict",), ("options", "num_predict"),
        ("parameters", "max_new_tokens"), ("parameters", "max_tokens"),
        ("parameters", "maxOutputTokens"), ("inferenceConfig", "max_new_tokens"),
        ("textGenerationConfig", "maxTokenCount"),
    }
)  # fmt: skip
ANSWERS: frozenset[Path] = frozenset({("n",), ("best_of",)}) | {
    (config, name) for config in _CONFIGS for name in ("candidateCount", "candidate_count")
}
STORED: frozenset[Path] = frozenset({
    ("previous_response_id",), ("conversation",), ("prompt",), ("cachedContent",),
    ("cached_content",), ("input_file_id",), ("assistant_id",), ("training_file",),
})  # fmt: skip

# Anywhere in a body: files and pictures that lie elsewhere.
_ELSEWHERE = re.compile(
    rb'"file_?id"\s*:\s*"|"file_?ur[il]"\s*:|"(?:file|vector_store)_ids"\s*:\s*\[\s*"'
    rb'|"image_?url"\s*:\s*(?!"data:|\{\s*"url"\s*:\s*"data:)["{]|"type"\s*:\s*"url"',
    re.IGNORECASE,
)
# A name with an escaped letter: no client writes one, and it may be any of these.
_HIDDEN_NAME = re.compile(rb'"[^"\\]*+\\u00[4-7][^"]*+"\s*:', re.IGNORECASE)


def lengths_of(path: str) -> frozenset[Path]:
    """The names of the length that the API at a normal path goes by; none where it is unknown."""
    plain = read_leniently(path)
    return next((names for ending, names in _BY_PATH if ending.search(plain)), frozenset())


def read_leniently(path: str) -> str:
    """A normal path as the most lenient servers read it, for a look at how it ends."""
    other = paths.second_reading(path) if paths.has_second_reading(path) else path
    return (other or path).replace("%3A", ":").lower()


def names_stored(body: bytes) -> bool:
    """Whether a body names a file or a picture that lies elsewhere."""
    return _ELSEWHERE.search(body) is not None or (
        b"\\u00" in body and _HIDDEN_NAME.search(body) is not None
    )
