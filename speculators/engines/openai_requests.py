"""Bodies of OpenAI's completion requests, checked field by field and turned into what the decoder understands.

Fields that would change the answer and that we do not support are refused, not ignored; unknown ones are ignored, as
clients of other servers expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; chat answers run to the end of the context instead."""

MUST_BE_ABSENT: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "prompt_logprobs": (None, 0),
    "min_tokens": (None, 0),
    "repetition_penalty": (None, 1),
}
"""Fields that we do not support, with the values that ask for nothing."""


class BadRequestError(ValueError):
    """A request that cannot be answered: an HTTP status, OpenAI's error code, and the field it is about."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True)
class Wanted:
    """What one request asks for, prompt aside. `max_tokens` None: as many as the context holds."""

    model: str | None
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int | None
    seed: int | None
    stop: tuple[str, ...]
    stop_ids: frozenset[int]
    ignores_eos: bool
    returns_token_ids: bool
    streams: bool
    includes_usage: bool


def read_wanted(body: Any, *, is_chat: bool) -> Wanted:
    """Check everything but the prompt. Raises BadRequestError naming the field."""
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    for name, allowed in MUST_BE_ABSENT.items():
        if body.get(name) not in allowed:
            raise BadRequestError(f"`{name}` is not supported by this server", param=name)
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise BadRequestError(f"`{name}` must be 1: this server gives one answer to a prompt", param=name)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError("`stream_options` must be an object", param="stream_options")
    limit = "max_completion_tokens" if is_chat and body.get("max_completion_tokens") is not None else "max_tokens"
    max_tokens = _integer(body, limit, least=1)
    return Wanted(
        model=_text(body, "model"),
        max_tokens=max_tokens if max_tokens is not None or is_chat else DEFAULT_MAX_TOKENS,
        temperature=_number(body, "temperature", default=1.0, least=0.0, most=10.0),
        top_p=_number(body, "top_p", default=1.0, least=0.0, most=1.0, may_be_least=False),
        top_k=_top_k(body),
        seed=_integer(body, "seed"),
        stop=_stop(body.get("stop")),
        stop_ids=_stop_ids(body),
        ignores_eos=_flag(body, "ignore_eos"),
        returns_token_ids=_flag(body, "return_token_ids"),
        streams=_flag(body, "stream"),
        includes_usage=bool(options.get("include_usage") or options.get("continuous_usage_stats")),
    )


def read_messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """The conversation of a chat request, as role and text; parts of type `text` are joined."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("`messages` must be a list with at least one message", param="messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def read_prompts(body: Mapping[str, Any]) -> list[str | list[int]]:
    """The prompts of a completion request: texts or lists of token ids, one or several."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(_is_integer(token) for token in prompt):
            return [prompt]
        if all(
            isinstance(one, str) or (isinstance(one, list) and one and all(map(_is_integer, one))) for one in prompt
        ):
            return prompt
    raise BadRequestError("`prompt` must be a text, a list of token ids, or a non-empty list of either", param="prompt")


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequestError(f"`{where}` must be an object with a `role`", param=where)
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRequestError(f"`{where}.content` may hold parts of type `text` only", param=f"{where}.content")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise BadRequestError(f"`{where}.content` must be a text", param=f"{where}.content")
    return {"role": message["role"], "content": content}


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(body: Mapping[str, Any], name: str, least: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not _is_integer(value) or (least is not None and value < least):
        wanted = "an integer" if least is None else f"an integer of at least {least}"
        raise BadRequestError(f"`{name}` is {value!r}; it must be {wanted}", param=name)
    return int(value)


def _number(
    body: Mapping[str, Any], name: str, *, default: float, least: float, most: float, may_be_least: bool = True
) -> float:
    value = body.get(name)
    if value is None:
        return default
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (least < value or (may_be_least and value == least)) or value > most:
        low = f"at least {least:g}" if may_be_least else f"above {least:g}"
        raise BadRequestError(f"`{name}` is {value!r}; it must be a number {low} and at most {most:g}", param=name)
    return float(value)


def _top_k(body: Mapping[str, Any]) -> int | None:
    value = _integer(body, "top_k")
    return None if value in (None, 0, -1) else _integer(body, "top_k", least=1)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequestError(f"`{name}` is {value!r}; it must be true or false", param=name)
    return bool(value)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequestError(f"`{name}` must be a text", param=name)
    return value


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or len(texts) > 16:
        raise BadRequestError("`stop` must be a text or a list of at most 16 texts", param="stop")
    return tuple(text for text in texts if text)


def _stop_ids(body: Mapping[str, Any]) -> frozenset[int]:
    ids = body.get("stop_token_ids") or []
    if not isinstance(ids, list) or not all(map(_is_integer, ids)):
        raise BadRequestError("`stop_token_ids` must be a list of token ids", param="stop_token_ids")
    return frozenset(ids)
