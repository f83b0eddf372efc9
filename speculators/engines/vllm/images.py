"""Images for vLLM: its endpoint for tokens takes them beside a prompt with one token for each, which it expands.

The chat endpoint would tokenise a conversation again, and an answer that the verifier sampled may then be other tokens.
vLLM opens the endpoint on request only (`--enable-scale-out`), since 0.32.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speculators.engines.vllm.client import Body, Call
from speculators.verifiers.images import ImageReader

PATH = "/inference/v1/generate"

_NEVER = -100.0
"""The lowest bias of a logit that vLLM takes."""


@dataclass(frozen=True)
class Shown:
    """How prompts with images are shown: `reader` knows which tokens stand for an image."""

    reader: ImageReader

    @property
    def never(self) -> Body:
        """The setting that keeps tokens which stand for images out of an answer; it excludes speculative decoding."""
        return {"logit_bias": {str(one): _NEVER for one in self.reader.placeholder_ids}}

    def call(self, ids: Sequence[int], images: Sequence[Path], sampling: Body) -> Call:
        """Ask for what follows `ids`, which have all tokens of each of the `images`."""
        body = {
            "token_ids": self.reader.collapse(ids, images),
            "content_parts": [{"type": "image_url", "url": _data_url(image)} for image in images],
            "sampling_params": {**sampling, "detokenize": False},
            "return_token_ids": True,
        }
        return Call(body, PATH)


def _data_url(image: Path) -> str:
    kind = mimetypes.guess_type(image.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode('ascii')}"
