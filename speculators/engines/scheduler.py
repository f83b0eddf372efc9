"""Between many HTTP requests and one decoder: a worker thread that queues, batches, counts, and hands tokens back.

The thread alone touches the decoder. Callers meet it in three ways, all safe from any thread: `submit`, `cancel`, and
the callback they gave, which is called from the thread for every piece of a request's answer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request

log = logging.getLogger(__name__)


class QueueFullError(RuntimeError):
    """As many requests wait as may."""


@dataclass(frozen=True)
class Piece:
    """Tokens added to one request; `reason` is "stop" or "length" with the last piece, "error" when decoding failed."""

    tokens: list[int]
    reason: str | None = None


@dataclass(eq=False)
class Ticket:
    """One submitted request."""

    request: Request
    deliver: Callable[[Piece], None]
    slot: int | None = None
    is_cancelled: bool = False


@dataclass
class Counters:
    """Totals since the start; `accepted_at[i]` counts rounds whose proposal i (from 0) was accepted."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    requests: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_at: list[int] = field(default_factory=list)

    def add(self, commit: Commit) -> None:
        """Count one commit."""
        self.generation_tokens += len(commit.tokens)
        if commit.proposed:
            self.drafts += 1
            self.draft_tokens += commit.proposed
            self.accepted_tokens += commit.accepted
            for position in range(commit.accepted):
                self.accepted_at[position] += 1


class Scheduler:
    """Runs `decoder` in a thread of its own for as many requests as come, at most `queue_size` of them waiting."""

    def __init__(self, decoder: Decoder, *, speculative_tokens: int = 0, queue_size: int = 1024) -> None:
        self._decoder, self._queue_size = decoder, queue_size
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._cancelled: list[Ticket] = []
        self._running: dict[int, Ticket] = {}
        self._is_closed = False
        self.counters = Counters(accepted_at=[0] * speculative_tokens)
        self._thread = threading.Thread(target=self._work, name="decoder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests have not started."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many requests hold a slot."""
        return len(self._running)

    @property
    def is_healthy(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def submit(self, request: Request, deliver: Callable[[Piece], None]) -> Ticket:
        """Queue a request; `deliver` is called from the worker's thread. Raises QueueFullError."""
        ticket = Ticket(request, deliver)
        with self._changed:
            if len(self._waiting) >= self._queue_size:
                raise QueueFullError(f"{self._queue_size} requests are waiting already")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request, waiting or running; its slot is free before the next step. A finished one is no error."""
        with self._changed:
            ticket.is_cancelled = True
            self._cancelled.append(ticket)
            self._changed.notify()

    def close(self) -> None:
        """Stop the thread after its current step."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._is_closed or self._waiting or self._cancelled or self._running):
                    self._changed.wait()
                if self._is_closed:
                    return
                self._forget_cancelled()
                self._admit()
            if self._running:
                try:
                    commits = self._decoder.step()
                except Exception:
                    log.exception("a decoding step failed; its requests end with an error")
                    self._fail_running()
                else:
                    self._hand_out(commits)

    def _forget_cancelled(self) -> None:
        for ticket in self._cancelled:
            if ticket.slot is not None and self._running.pop(ticket.slot, None) is not None:
                self._decoder.release(ticket.slot)
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.is_cancelled)
        self._cancelled.clear()

    def _admit(self) -> None:
        while self._waiting and self._decoder.free > 0:
            ticket = self._waiting.popleft()
            ticket.slot = self._decoder.admit(ticket.request)
            self._running[ticket.slot] = ticket
            self.counters.requests += 1
            self.counters.prompt_tokens += len(ticket.request.prompt_ids)

    def _hand_out(self, commits: list[Commit]) -> None:
        for commit in commits:
            self.counters.add(commit)
            ticket = self._running.pop(commit.slot) if commit.finished else self._running[commit.slot]
            ticket.deliver(Piece(commit.tokens, commit.reason))

    def _fail_running(self) -> None:
        for slot, ticket in list(self._running.items()):
            self._decoder.release(slot)
            ticket.deliver(Piece([], "error"))
        self._running.clear()
