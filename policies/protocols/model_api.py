"""Model APIs: which calls ask a model for something and keep nothing but what they answer.

All else that such an API offers (files, batches, fine-tuning, stored objects) is judged as any
other HTTP call. Paths are normal ones; a gateway's prefix before the version is accepted.
"""

import re
from typing import Literal

from policies.call import Dialect

ModelApi = Literal["openai", "anthropic", "google"]

_INFERENCE: dict[ModelApi, re.Pattern[str]] = {
    "openai": re.compile(
        r"(?:/[^/]+)*/(?:v1|deployments/[^/]+)/(?:chat/completions|completions|responses"
        r"|responses/input_tokens|embeddings|moderations|images/(?:generations|edits|variations)"
        r"|audio/(?:speech|transcriptions|translations))"
    ),
    "anthropic": re.compile(r"(?:/[^/]+)*/v1/(?:messages|messages/count_tokens|complete)"),
    "google": re.compile(
        r"/v1[a-z0-9]*/(?:(?:models|tunedModels)/[^/:]+"
        r"|projects/[^/]+/locations/[^/]+/(?:publishers/[^/]+/models|endpoints)/[^/:]+)"
        r":(?:generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents"
        r"|predict|rawPredict|streamRawPredict)"
    ),
}
DIALECT: dict[ModelApi, Dialect] = {
    "openai": Dialect.OPENAI,
    "anthropic": Dialect.ANTHROPIC,
    "google": Dialect.GOOGLE,
}


def infers(api: ModelApi, method: str, path: str) -> bool:
    return method == "POST" and _INFERENCE[api].fullmatch(path) is not None
