"""An OpenAI-compatible server over the embedded engine: completions, chat, streaming, metrics.

Requests are checked here, tokenised, and handed to the scheduler's thread; what it decodes comes back into the event
loop token by token. A client that goes away takes its request with it.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from speculators.decoding.request import Request
from speculators.engines.openai_requests import BadRequestError, Wanted, read_messages, read_prompts, read_wanted
from speculators.engines.prometheus import CONTENT_TYPE, exposition
from speculators.engines.scheduler import Piece, QueueFullError, Scheduler, Ticket
from speculators.engines.text_stream import TextStream

SECONDS_BETWEEN_LOOKS = 0.2
"""How often a request that is not streamed looks whether its client is still there."""


@dataclass(frozen=True)
class Served:
    """What is served: the scheduler, the texts' way in and out, and the limits.

    `encode` makes token ids of a text, `render` of a conversation (with the opening of the answer), `decode` a text of
    token ids. `capacity` is the most tokens of prompt and answer together.
    """

    scheduler: Scheduler
    model_name: str
    capacity: int
    stop_ids: frozenset[int]
    vocab_size: int
    encode: Callable[[str], list[int]]
    render: Callable[[list[dict[str, str]]], list[int]]
    decode: Callable[[Sequence[int]], str]
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass
class _Answer:
    """One prompt's answer while it comes."""

    index: int
    prompt_ids: list[int]
    ticket: Ticket
    pieces: asyncio.Queue[Piece]
    text: TextStream
    token_ids: list[int] = field(default_factory=list)
    reason: str | None = None


def make_app(served: Served) -> Starlette:
    """The ASGI application; its scheduler is closed when the server shuts down."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        served.scheduler.close()

    async def health(request: HttpRequest) -> Response:
        return Response(status_code=200 if served.scheduler.is_healthy else 503)

    async def metrics(request: HttpRequest) -> Response:
        return PlainTextResponse(exposition(served.scheduler, served.model_name), media_type=CONTENT_TYPE)

    async def models(request: HttpRequest) -> Response:
        model = {"id": served.model_name, "object": "model", "created": served.created, "owned_by": "speculators"}
        return JSONResponse({"object": "list", "data": [{**model, "max_model_len": served.capacity}]})

    async def chat(request: HttpRequest) -> Response:
        return await _complete(served, request, is_chat=True)

    async def completions(request: HttpRequest) -> Response:
        return await _complete(served, request, is_chat=False)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        exception_handlers={BadRequestError: _bad_request, HTTPException: _http_error},
        lifespan=lifespan,
    )


async def _complete(served: Served, http: HttpRequest, *, is_chat: bool) -> Response:
    try:
        body = await http.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    wanted = read_wanted(body, is_chat=is_chat)
    if wanted.model is not None and wanted.model != served.model_name:
        raise BadRequestError(
            f"the model `{wanted.model}` does not exist; this server has `{served.model_name}`",
            param="model",
            status=404,
            code="model_not_found",
        )
    prompts: list[str | list[int]] = (
        [served.render(read_messages(body))] if is_chat else [_checked_ids(served, one) for one in read_prompts(body)]
    )
    requests = [_to_request(served, wanted, ids if isinstance(ids, list) else served.encode(ids)) for ids in prompts]
    answers = _submit(served, wanted, requests)
    shape = _Shape(served.model_name, is_chat=is_chat, has_token_ids=wanted.returns_token_ids)
    if wanted.streams:
        return StreamingResponse(_stream(served, wanted, answers, shape), media_type="text/event-stream")
    return await _collect(served, http, answers, shape)


def _checked_ids(served: Served, prompt: str | list[int]) -> str | list[int]:
    if isinstance(prompt, list) and not all(0 <= token < served.vocab_size for token in prompt):
        raise BadRequestError(f"`prompt` holds a token id outside 0..{served.vocab_size - 1}", param="prompt")
    return prompt


def _to_request(served: Served, wanted: Wanted, prompt_ids: list[int]) -> Request:
    if not prompt_ids:
        raise BadRequestError("the prompt is empty", param="prompt")
    room = served.capacity - len(prompt_ids)
    if room < 1 or (wanted.max_tokens or 1) > room:
        asked = f" and {wanted.max_tokens} tokens of answer are asked for" if wanted.max_tokens else ""
        raise BadRequestError(
            f"the context holds {served.capacity} tokens; the prompt has {len(prompt_ids)}{asked}",
            param="max_tokens" if wanted.max_tokens else "messages",
            code="context_length_exceeded",
        )
    return Request(
        prompt_ids=prompt_ids,
        max_new_tokens=wanted.max_tokens or room,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        seed=wanted.seed,
        stop_ids=wanted.stop_ids | (frozenset() if wanted.ignores_eos else served.stop_ids),
    )


def _submit(served: Served, wanted: Wanted, requests: list[Request]) -> list[_Answer]:
    loop = asyncio.get_running_loop()
    answers: list[_Answer] = []
    try:
        for index, request in enumerate(requests):
            pieces: asyncio.Queue[Piece] = asyncio.Queue()

            def deliver(piece: Piece, pieces: asyncio.Queue[Piece] = pieces) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)

            ticket = served.scheduler.submit(request, deliver)
            text = TextStream(served.decode, wanted.stop)
            answers.append(_Answer(index, list(request.prompt_ids), ticket, pieces, text))
    except QueueFullError as error:
        for answer in answers:
            served.scheduler.cancel(answer.ticket)
        raise BadRequestError(f"the server is busy: {error}", status=503, code="overloaded") from error
    return answers


async def _texts(served: Served, answer: _Answer) -> AsyncIterator[str]:
    """The answer's text as it becomes certain; sets `reason` and `token_ids`. Frees the slot however it ends."""
    try:
        while answer.reason is None:
            piece = await answer.pieces.get()
            shown = ""
            for token in piece.tokens:
                answer.token_ids.append(token)
                shown += answer.text.push(token)
                if answer.text.is_stopped:
                    break
            answer.reason = "stop" if answer.text.is_stopped else piece.reason
            if answer.reason is not None:
                shown += answer.text.finish()
            if shown:
                yield shown
    finally:
        served.scheduler.cancel(answer.ticket)


async def _collect(served: Served, http: HttpRequest, answers: list[_Answer], shape: _Shape) -> Response:
    async def whole(answer: _Answer) -> str:
        return "".join([text async for text in _texts(served, answer)])

    gathered = asyncio.gather(*(whole(answer) for answer in answers))
    try:
        while not gathered.done():
            await asyncio.wait([gathered], timeout=SECONDS_BETWEEN_LOOKS)
            if not gathered.done() and await http.is_disconnected():
                return Response(status_code=499)
        texts = gathered.result()
    finally:
        gathered.cancel()
        for answer in answers:
            served.scheduler.cancel(answer.ticket)
    if any(answer.reason == "error" for answer in answers):
        raise BadRequestError("decoding failed; the server's log says why", status=500, code="server_error")
    choices = [
        shape.choice(answer, text=text, reason=answer.reason) for answer, text in zip(answers, texts, strict=True)
    ]
    return JSONResponse(shape.body(choices, usage=_usage(answers)))


async def _stream(served: Served, wanted: Wanted, answers: list[_Answer], shape: _Shape) -> AsyncIterator[str]:
    lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def feed(answer: _Answer) -> None:
        if shape.is_chat:
            lines.put_nowait(shape.delta(answer, {"role": "assistant", "content": ""}))
        async for text in _texts(served, answer):
            lines.put_nowait(shape.delta(answer, {"content": text}))
        lines.put_nowait(shape.delta(answer, {}, reason=answer.reason))
        lines.put_nowait(None)

    feeds = [asyncio.create_task(feed(answer)) for answer in answers]
    try:
        unfinished = len(feeds)
        while unfinished:
            line = await lines.get()
            if line is None:
                unfinished -= 1
            else:
                yield f"data: {json.dumps(line)}\n\n"
        if wanted.includes_usage:
            yield f"data: {json.dumps(shape.body([], usage=_usage(answers), is_chunk=True))}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        for task, answer in zip(feeds, answers, strict=True):
            task.cancel()
            served.scheduler.cancel(answer.ticket)


class _Shape:
    """OpenAI's JSON for answers and their pieces: chat and plain completions differ in a few names."""

    def __init__(self, model_name: str, *, is_chat: bool, has_token_ids: bool) -> None:
        self.is_chat, self._model_name, self._created = is_chat, model_name, int(time.time())
        self._has_token_ids = has_token_ids
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"

    def choice(self, answer: _Answer, *, text: str, reason: str | None) -> dict[str, Any]:
        """A whole answer."""
        content = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        ids = {"prompt_token_ids": answer.prompt_ids, "token_ids": answer.token_ids} if self._has_token_ids else {}
        return {"index": answer.index, **content, "logprobs": None, "finish_reason": reason, **ids}

    def delta(self, answer: _Answer, delta: dict[str, str], *, reason: str | None = None) -> dict[str, Any]:
        """One piece of a streamed answer."""
        content = {"delta": delta} if self.is_chat else {"text": delta.get("content", "")}
        choice = {"index": answer.index, **content, "logprobs": None, "finish_reason": reason}
        return self.body([choice], usage=None, is_chunk=True)

    def body(
        self, choices: list[dict[str, Any]], *, usage: dict[str, int] | None, is_chunk: bool = False
    ) -> dict[str, Any]:
        """What surrounds the choices."""
        name = ("chat.completion.chunk" if is_chunk else "chat.completion") if self.is_chat else "text_completion"
        head = {"id": self._id, "object": name, "created": self._created, "model": self._model_name}
        return {**head, "choices": choices, "usage": usage}


def _usage(answers: list[_Answer]) -> dict[str, int]:
    prompt, completion = sum(len(one.prompt_ids) for one in answers), sum(len(one.token_ids) for one in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _bad_request(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, BadRequestError)  # noqa: S101 - starlette calls this for no other
    return _error(str(error), error.status, error.code, error.param)


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - starlette calls this for no other
    return _error(f"{request.method} {request.url.path}: {error.detail}", error.status_code, "invalid_request_error")


def _error(message: str, status: int, code: str, param: str | None = None) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status_code=status)
