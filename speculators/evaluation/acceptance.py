"""Acceptance as serving sees it: really drafting and verifying, and counting what stood.

A *round* is one verifier pass of a running answer; the pass that reads the prompt and gives the first token is none.
The acceptance length is tokens over rounds, all prompts together, the verifier's own token included. The acceptance at
position i is a share of the rounds that came to judge it: those in which all proposals before stood.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from speculators.decoding.loop import Decoder, Drafting
from speculators.decoding.models import Proposal, SeeingVerifier, Verifier
from speculators.decoding.request import Commit, Request
from speculators.layers.trees import AnyShape

Images = Sequence[Sequence[Path]]
"""The files of each prompt's images."""

_REFILL = 4
"""Free slots are filled when a quarter of them is free: reading one prompt alone costs as much as reading several."""


@dataclass(frozen=True)
class Settings:
    """How answers are made. `seed` is of the whole measurement; every prompt gets its own from it."""

    temperature: float
    speculative_tokens: int
    max_new_tokens: int
    concurrency: int
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0
    drafting: Drafting = "greedy"
    tree: AnyShape | None = None
    """Trees of this shape instead of chains; `speculative_tokens` is then their depth."""
    least_confidence: float = 0.0
    """A proposal ends where the draft's trust that all so far will stand falls below it; 0: proposals are whole."""


@dataclass
class Answer:
    """One answer: its tokens, which of them a draft had proposed, and its commits, the first from the prompt."""

    tokens: list[int] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)

    def add(self, commit: Commit) -> None:
        """Append what one step committed."""
        self.commits.append(commit)
        self.tokens += commit.tokens
        self.accepted += [i < commit.accepted for i in range(len(commit.tokens))]


@dataclass(frozen=True)
class Difference:
    """Where an answer with the draft parts from the plain one.

    `gap` is the verifier's logit of the plain token minus that of the other, read over the text they share: near zero
    (1e-3 and less in float32) it is a tie that rounding decided, not a fault.
    """

    prompt: int
    token: int
    with_draft: int | None
    without: int | None
    gap: float | None


def decode(
    verifier: Verifier,
    proposal: Proposal | None,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    tell: Callable[[int], None] = lambda finished: None,
    images: Images | None = None,
) -> list[Answer]:
    """Answer all prompts (token ids), `concurrency` at a time; `tell` hears how many are finished."""
    longest = max(len(prompt) for prompt in prompts)
    slots = min(settings.concurrency, len(prompts))
    decoder = Decoder(
        verifier,
        proposal,
        slots=slots,
        capacity=longest + settings.max_new_tokens,
        speculative_tokens=settings.speculative_tokens if proposal is not None else 0,
        drafting=settings.drafting,
        tree=settings.tree if proposal is not None else None,
        least_confidence=settings.least_confidence if proposal is not None else 0.0,
    )
    answers = [Answer() for _ in prompts]
    # Prompts of like length are read together; the order changes no answer.
    waiting = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    number_of: dict[int, int] = {}
    finished = 0
    while waiting or not decoder.is_idle:
        if decoder.is_idle or decoder.free >= max(1, slots // _REFILL):
            now, waiting = waiting[: decoder.free], waiting[decoder.free :]
            for number in now:
                shown = () if images is None else images[number]
                number_of[decoder.admit(_request(prompts[number], number, settings, shown))] = number
        for commit in decoder.step():
            answers[number_of[commit.slot]].add(commit)
            finished += commit.finished
        tell(finished)
    return answers


def measure(
    verifier: Verifier,
    proposal: Proposal,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    tell: Callable[[int], None] = lambda finished: None,
    images: Images | None = None,
) -> tuple[dict[str, Any], list[Answer]]:
    """The figures of one suite at one temperature, and the answers they come from."""
    begun = time.perf_counter()
    answers = decode(verifier, proposal, prompts, settings, tell, images)
    seconds = time.perf_counter() - begun
    figures = {
        **round_figures(answers, settings.speculative_tokens),
        "prompts": len(prompts),
        "temperature": settings.temperature,
        "speculative_tokens": settings.speculative_tokens,
        "concurrency": settings.concurrency,
        "max_new_tokens": settings.max_new_tokens,
        "proposals": settings.drafting,
        "output_tokens": sum(len(answer.tokens) for answer in answers),
        "seconds": seconds,
        "tokens_per_second": sum(len(answer.tokens) for answer in answers) / seconds,
        "lossless": None,
    }
    if settings.tree is not None:
        figures["tree"] = asdict(settings.tree)
    if settings.least_confidence:
        figures["least_confidence"] = settings.least_confidence
        figures["proposed_length"] = figures["proposed_tokens"] / figures["rounds"] if figures["rounds"] else None
    return figures, answers


def round_figures(answers: Sequence[Answer], speculative_tokens: int) -> dict[str, Any]:
    """Acceptance length, conditional acceptance by position, and the counts they are made of.

    A rate is None where no round came as far; so is the length when there was no round at all.
    """
    rounds = [commit for answer in answers for commit in answer.commits[1:]]
    tokens = sum(len(commit.tokens) for commit in rounds)
    positions: list[float | None] = []
    judged_at: list[int] = []
    for position in range(speculative_tokens):
        judged = [commit for commit in rounds if commit.accepted >= position and commit.proposed > position]
        judged_at.append(len(judged))
        stood = sum(commit.accepted > position for commit in judged)
        positions.append(stood / len(judged) if judged else None)
    return {
        "acceptance_length": tokens / len(rounds) if rounds else None,
        "positions": positions,
        "judged": judged_at,
        "rounds": len(rounds),
        "tokens": tokens,
        "accepted_tokens": sum(commit.accepted for commit in rounds),
        "proposed_tokens": sum(commit.proposed for commit in rounds),
    }


def check_lossless(
    verifier: Verifier,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    settings: Settings,
    tell: Callable[[int], None] = lambda finished: None,
    images: Images | None = None,
) -> tuple[dict[str, Any], list[Difference]]:
    """Compare greedy answers with plain greedy decoding, token for token: `lossless`, `equal_prompts`, differences."""
    begun = time.perf_counter()
    plain = decode(verifier, None, prompts, settings, tell, images)
    seconds = time.perf_counter() - begun
    differences = [
        _difference(verifier, number, prompt, answer.tokens, other.tokens, images)
        for number, (prompt, answer, other) in enumerate(zip(prompts, answers, plain, strict=True))
        if answer.tokens != other.tokens
    ]
    figures = {
        "lossless": not differences,
        "equal_prompts": len(prompts) - len(differences),
        "dense_tokens_per_second": sum(len(answer.tokens) for answer in plain) / seconds,
    }
    return figures, differences


def _difference(
    verifier: Verifier,
    number: int,
    prompt: Sequence[int],
    with_draft: list[int],
    without: list[int],
    images: Images | None,
) -> Difference:
    shared = 0
    while shared < min(len(with_draft), len(without)) and with_draft[shared] == without[shared]:
        shared += 1
    if shared == min(len(with_draft), len(without)):
        return Difference(number, shared, _at(with_draft, shared), _at(without, shared), None)
    ids = torch.tensor([[*prompt, *without[:shared]]])
    read = verifier.forward
    if images is not None and images[number]:
        read = partial(cast("SeeingVerifier", verifier).forward, images=[images[number]])
    logits = read(ids, verifier.new_cache(1, ids.shape[1]), torch.tensor([0]), "last").logits
    assert logits is not None  # noqa: S101  asked for
    gap = float(logits[0, -1, without[shared]] - logits[0, -1, with_draft[shared]])
    return Difference(number, shared, with_draft[shared], without[shared], gap)


def _at(tokens: list[int], place: int) -> int | None:
    return tokens[place] if place < len(tokens) else None


def _request(prompt: Sequence[int], number: int, settings: Settings, images: Sequence[Path]) -> Request:
    # Seeds are far apart between measurements, so that no two prompts of a run share one.
    seed = settings.seed * 1_000_003 + number
    return Request(
        prompt,
        settings.max_new_tokens,
        temperature=settings.temperature,
        seed=seed,
        stop_ids=settings.stop_ids,
        images=images,
    )
