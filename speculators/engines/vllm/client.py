"""Completions of many prompts from one or more servers at once: token ids in, token ids out, as they finish.

Nothing is tokenised on the way. Each server has at most `at_once` requests; a slow reader holds them back. Connections
that break and servers that are busy are tried again with growing pauses by the OpenAI client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from anyio.streams.memory import MemoryObjectSendStream
from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from speculators.errors import StepError

TRIES = 5
TIMEOUT_SECONDS = 3600.0
"""For one answer: a busy server may take long, and a dead one is noticed by its process."""

Body = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """What is asked of a server: a body without the model's name, for a path below its address."""

    body: Body
    path: str = "/v1/completions"


Received = Callable[[Body], Any]
"""Makes of an answer, as JSON, what is handed on; called in a thread, so it may wait for a file."""


def complete(
    urls: Sequence[str], model: str, calls: Sequence[Call], received: Received, *, at_once: int
) -> Iterator[tuple[int, Any]]:
    """Make every call, and give its number and what `received` made of the answer.

    Raises StepError when a server refuses a request, and when it cannot be reached.
    """
    with start_blocking_portal() as portal:
        sending, receiving = anyio.create_memory_object_stream[tuple[int, Any]](at_once)
        work = portal.start_task_soon(_send_all, urls, model, calls, received, at_once, sending)
        try:
            while True:
                try:
                    found = portal.call(receiving.receive)
                except anyio.EndOfStream:
                    break
                yield found
            work.result()
        finally:
            work.cancel()


def served_model(url: str) -> str:
    """The name of the model that a running server serves."""
    import json
    from urllib.error import URLError

    from speculators.engines.process import read

    try:
        return str(json.loads(read(f"{url}/v1/models"))["data"][0]["id"])
    except (URLError, OSError, ValueError, KeyError, IndexError) as error:
        raise StepError(f"no OpenAI-compatible server answers at {url}: {error}") from error


async def _send_all(
    urls: Sequence[str],
    model: str,
    calls: Sequence[Call],
    received: Received,
    at_once: int,
    sending: MemoryObjectSendStream[tuple[int, Any]],
) -> None:
    waiting = iter(enumerate(calls))
    failed: list[Exception] = []
    clients = [AsyncOpenAI(base_url=url, api_key="none", max_retries=TRIES, timeout=TIMEOUT_SECONDS) for url in urls]

    async def send_one_after_another(client: AsyncOpenAI, scope: anyio.CancelScope) -> None:
        try:
            for number, call in waiting:
                answer = await client.post(call.path, body={"model": model, **call.body}, cast_to=httpx.Response)
                made = await anyio.to_thread.run_sync(received, answer.json())
                await sending.send((number, made))
        except Exception as error:  # noqa: BLE001  told to the reader below, once all others are stopped
            failed.append(error)
            scope.cancel()

    async with sending:
        async with anyio.create_task_group() as group:
            for client in clients:
                for _ in range(at_once):
                    group.start_soon(send_one_after_another, client, group.cancel_scope)
        for client in clients:
            await client.close()
        if failed:
            raise _told(failed[0])


def _told(error: Exception) -> Exception:
    if isinstance(error, APIStatusError):
        return StepError(f"the server refused a request ({error.status_code}): {error.message}")
    if isinstance(error, APIConnectionError):
        return ConnectionError(f"the server cannot be reached any more: {error.__cause__ or error}")
    return error
