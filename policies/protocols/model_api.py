"""Model APIs: which calls ask a model for something and keep nothing but what they answer, and
which cost nothing.

All else that such an API offers (batches, fine-tuning, runs of assistants) has the effect of any
other HTTP call, and costs what nobody can say: `costs.py` reserves for it. Paths are normal ones; a
gateway's prefix before the version is accepted.
"""

import re
from typing import Literal

from policies import paths
from policies.call import Dialect
from policies.model_shapes import read_leniently

ModelApi = Literal["openai", "anthropic", "google"]

_INFERENCE: dict[ModelApi, re.Pattern[str]] = {
    "openai": re.compile(
        r"(?:/[^/]+)*/(?:v1|openai|models|deployments/[^/]+)/(?:chat/completions|completions"
        r"|responses|responses/compact|responses/input_tokens|embeddings|moderations|images/(?:generations|edits|variations)"
        r"|audio/(?:speech|transcriptions|translations))"
    ),
    "anthropic": re.compile(r"(?:/[^/]+)*/v1/(?:messages|messages/count_tokens|complete)"),
    "google": re.compile(
        r"/v1[a-z0-9]*/(?:(?:models|tunedModels)/[^/:]+"
        r"|(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/[^/]+/models|endpoints)/[^/:]+)"
        r":(?:generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents"
        r"|predict|rawPredict|streamRawPredict)"
    ),
}
DIALECT: dict[ModelApi, Dialect] = {
    "openai": Dialect.OPENAI,
    "anthropic": Dialect.ANTHROPIC,
    "google": Dialect.GOOGLE,
}
_COMMON: ModelApi = "openai"
_FREE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "DELETE", "CONNECT"})
# What is asked there uses no tokens: to count them, to moderate, to keep objects, to stop work.
_FREE = re.compile(
    r"(?:/[^/]+)*/(?:v1[a-z0-9]*|openai)/(?:messages/count_tokens|responses/input_tokens|moderations"
    r"|files|uploads|uploads/[^/]+/(?:parts|complete)|threads|threads/[^/]+/messages|assistants"
    r"|conversations|conversations/[^/]+/items"
    r"|vector_stores|vector_stores/[^/]+/(?:files|file_batches)|containers/[^/]+/files"
    r"|(?:[^/]+/)*(?:responses|batches|jobs|runs|uploads)/[^/]+/cancel)"
    r"|/.*/[^/:]+:(?:countTokens|cancel)"
)
_BATCH = re.compile(r"batches$|:[a-z]*batch[a-z]*$|:predictlongrunning$")


def infers(api: ModelApi, method: str, path: str) -> bool:
    """Other makers offer OpenAI's API beside their own."""
    if method != "POST":
        return False
    return any(_INFERENCE[one].fullmatch(path) for one in (api, _COMMON))


def is_free(method: str, path: str, *, has_body: bool = True) -> bool:
    """Whether a model API charges nothing for what is asked there. What servers may read in two
    ways is not free, nor is a read that sends something."""
    if method in _FREE_METHODS and not has_body:
        return True
    return not paths.has_second_reading(path) and _FREE.fullmatch(path) is not None


def tells_later(path: str) -> bool:
    """Whether it is a batch, or a long task: the answer comes before the work is done."""
    return _BATCH.search(read_leniently(path)) is not None
