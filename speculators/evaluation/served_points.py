"""Something served under every load of a benchmark: each point with its speed, its latencies and its acceptance."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from speculators.errors import UsageError
from speculators.evaluation.guidellm import AnswersUnheard, Load, measure
from speculators.evaluation.points import Figures, Point, fixed_points, measure_points, number_of_points
from speculators.evaluation.served_acceptance import served_acceptance
from speculators.evaluation.served_process import read_metrics, warm_up
from speculators.evaluation.served_variant import MODEL, Variant, serving
from speculators.recipe.shapes.eval import Profile
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine

OPEN_SLOTS = 8
"""Requests that the embedded engine decodes at once where the load has no number of streams; `serve`'s own default."""

ATTEMPTS = 3
"""At one point, when GuideLLM does not hear of all the answers."""

Tell = Callable[[int, int, Figures], None]
"""Hears of every point that is measured: its number from 1, how many there are, and its figures."""


def measure_served(
    variant: Variant,
    engine: TransformersEngine | VllmEngine,
    profile: Profile,
    load: Load,
    tokenizer: Path,
    folder: Path,
    tell: Tell,
) -> list[Figures]:
    """Serve a variant, warm it up, and measure every point of the profile; files of server and GuideLLM in `folder`."""
    count, done = number_of_points(profile), 0
    with serving(variant, engine, folder) as url:
        warm_up(url, MODEL, load.max_tokens)

        def measured(point: Point) -> Figures:
            nonlocal done
            done += 1
            files = "." if count == 1 else f"{done:02}-{point.profile}"
            found = measure_until_heard(lambda: measure(url, MODEL, tokenizer, load, folder / files, point), url) | {
                "files": files
            }
            tell(done, count, found)
            return found

        return measure_points(profile, measured)


def measure_until_heard(measure_point: Callable[[], Figures], url: str) -> Figures:
    """Speed and acceptance under one load, measured again where GuideLLM did not hear of every answer.

    Raises AnswersUnheard after the last of ATTEMPTS, and at once whatever else `measure_point` raises.
    """

    def once() -> Figures:
        before = read_metrics(url)
        return measure_point() | served_acceptance(before, read_metrics(url))

    for _ in range(ATTEMPTS - 1):
        with suppress(AnswersUnheard):
            return once()
    return once()


def slots(profile: Profile, requests: int) -> int:
    """As many requests as there are streams, or some of those that a load without streams sends at once."""
    streams = [point.streams for point in fixed_points(profile)]
    return max(min(requests, OPEN_SLOTS) if number is None else number for number in streams)


def held_out_load(prompts: Path, asked: Any, seed: int) -> Load:
    """The held-out prompts of one turn in a prompts artifact, as the recipe's `eval.benchmark` asks for them.

    Prompts with images are left out; raises UsageError when these are all.
    """
    rows = map(json.loads, (prompts / "prompts.jsonl").read_text(encoding="utf-8").splitlines())
    asked_once = [row["messages"][-1] for row in rows if row["split"] == "holdout" and len(row["messages"]) == 1]
    texts = [message["content"] for message in asked_once if isinstance(message["content"], str)]
    if asked_once and not texts:
        raise UsageError("the benchmark asks about texts alone, and every held-out prompt has images; add some without")
    # One request of each category after the other, so that a few requests are as varied as many.
    chosen = tuple(_spread_out(texts, asked.requests_per_level))
    return Load(requests=asked.requests_per_level, max_tokens=asked.max_tokens, prompts=chosen, seed=seed)


def _spread_out(prompts: list[str], count: int) -> list[str]:
    """At most `count` prompts at even distances."""
    taken = min(count, len(prompts))
    return [prompts[number * len(prompts) // taken] for number in range(taken)]
