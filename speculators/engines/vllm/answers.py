"""Answers from vLLM, as every engine gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speculators.decoding.request import Request
from speculators.engines.base import Answer
from speculators.engines.vllm.client import Body, Call, complete
from speculators.engines.vllm.images import Shown
from speculators.errors import StepError

NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}
"""Sampling that bends nothing; a server fills what a request leaves out from what the model's makers recommend."""


def answers(
    urls: Sequence[str], model: str, requests: Sequence[Request], *, at_once: int, shown: Shown | None = None
) -> Iterator[Answer]:
    """Answer every request; the ids are the server's own, with the stop token when there was one.

    `shown` is there where requests have images. Raises StepError when a server read them as other tokens than ours.
    """
    calls = [_call(request, shown) for request in requests]
    for number, (token_ids, reason, read) in complete(urls, model, calls, _received, at_once=at_once):
        request = requests[number]
        if request.images and read != list(request.prompt_ids):
            raise StepError(f"vLLM read the images of prompt {number} as other tokens than those that were sent")
        ended = reason == "stop" and token_ids and token_ids[-1] in request.stop_ids
        yield Answer(number, token_ids, "stop" if ended else "length")


def _call(request: Request, shown: Shown | None) -> Call:
    sampling: Body = {
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k or -1,
        "seed": request.seed,
        "ignore_eos": True,  # what ends an answer is the request's to say, as with every engine
        "stop_token_ids": sorted(request.stop_ids),
        **NEUTRAL,
    }
    if request.images and shown is not None:
        return shown.call(request.prompt_ids, request.images, sampling | shown.never)
    return Call({"prompt": list(request.prompt_ids), "return_token_ids": True, **sampling})


def _received(answer: Body) -> tuple[list[int], str, list[int] | None]:
    (choice,) = answer["choices"]
    return choice["token_ids"], choice["finish_reason"], answer.get("prompt_token_ids")
