"""Answers from vLLM, as every engine gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from speculators.decoding.request import Request
from speculators.engines.base import Answer
from speculators.engines.vllm.client import Body, complete

NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}
"""Sampling that bends nothing; a server fills what a request leaves out from what the model's makers recommend."""


def answers(urls: Sequence[str], model: str, requests: Sequence[Request], *, at_once: int) -> Iterator[Answer]:
    """Answer every request; the ids are the server's own, with the stop token when there was one."""
    bodies = [_body(request) for request in requests]
    for number, (token_ids, reason) in complete(urls, model, bodies, _received, at_once=at_once):
        ended = reason == "stop" and token_ids and token_ids[-1] in requests[number].stop_ids
        yield Answer(number, token_ids, "stop" if ended else "length")


def _body(request: Request) -> Body:
    extra: dict[str, Any] = {
        "return_token_ids": True,
        "ignore_eos": True,  # what ends an answer is the request's to say, as with every engine
        "stop_token_ids": sorted(request.stop_ids),
        "top_k": request.top_k or -1,
        **NEUTRAL,
    }
    return {
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "extra_body": extra,
    }


def _received(answer: Body) -> tuple[list[int], str]:
    (choice,) = answer["choices"]
    return choice["token_ids"], choice["finish_reason"]
