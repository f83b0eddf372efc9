"""How the draft is judged (`schemas/sections/eval.schema.json`)."""

from __future__ import annotations

from typing import Literal

from speculators.recipe.shapes.common import Shape


class Acceptance(Shape, frozen=True):
    """Real drafting and verifying on every prompt of the suites.

    A suite is `holdout` (the run's held-out prompts) or the name of a shipped suite.
    """

    suites: tuple[str, ...]
    temperature: tuple[float, ...]
    speculative_tokens: int
    max_new_tokens: int
    prompts: int | None
    concurrency: int


class Profile(Shape, frozen=True):
    """A GuideLLM load profile; `levels` are the numbers of concurrent streams."""

    type: Literal["synchronous", "concurrent", "throughput"]
    levels: tuple[int, ...]


class Variant(Shape, frozen=True):
    """What is served: the verifier alone (`dense`) or with the draft (`speculator`)."""

    name: Literal["dense", "speculator"]


class Benchmark(Shape, frozen=True):
    """A GuideLLM run against the served model, once per variant."""

    profile: Profile
    requests_per_level: int
    max_tokens: int
    variants: tuple[Variant, ...]


class Eval(Shape, frozen=True):
    """Acceptance, benchmark and the gates on their figures."""

    acceptance: Acceptance | None
    benchmark: Benchmark | None
    gates: tuple[str, ...]
