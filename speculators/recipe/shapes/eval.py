"""How the draft is judged (`schemas/sections/eval.schema.json`)."""

from __future__ import annotations

from typing import Literal

from speculators.recipe.shapes.common import Shape

SUITES = ("holdout",)
"""What suites there are: `holdout`, the prompts of the run that were kept out of training."""


class DynamicTree(Shape, frozen=True, tag="dynamic", tag_field="type"):
    """Levels, nodes of each that are continued and by how many tokens, nodes that are verified."""

    depth: int
    width: int
    nodes: int


class StaticTree(Shape, frozen=True, tag="static", tag_field="type"):
    """The nodes, each by the ranks of the tokens that lead to it."""

    paths: tuple[tuple[int, ...], ...]

    @property
    def depth(self) -> int:
        """Levels."""
        return max(map(len, self.paths))


class Acceptance(Shape, frozen=True):
    """Real drafting and verifying on every prompt of the suites."""

    suites: tuple[str, ...]
    temperature: tuple[float, ...]
    speculative_tokens: int | Literal["auto"]
    most_speculative_tokens: int
    max_new_tokens: int
    prompts: int | None
    tree: DynamicTree | StaticTree | None
    least_confidence: float
    concurrency: int


class Synchronous(Shape, frozen=True, tag="synchronous", tag_field="type"):
    """One request after another."""


class Concurrent(Shape, frozen=True, tag="concurrent", tag_field="type"):
    """`levels` are numbers of streams at once, measured one after another."""

    levels: tuple[int, ...]


class Throughput(Shape, frozen=True, tag="throughput", tag_field="type"):
    """All requests at once."""


class Constant(Shape, frozen=True, tag="constant", tag_field="type"):
    """`rates` are requests per second, measured one after another."""

    rates: tuple[float, ...]


class Sweep(Shape, frozen=True, tag="sweep", tag_field="type"):
    """Synchronous, throughput, and constant rates between the two: `points` in all."""

    points: int


Profile = Synchronous | Concurrent | Throughput | Constant | Sweep
"""How the server is loaded."""


class Variant(Shape, frozen=True):
    """What is served: the verifier alone (`dense`), with the draft (`speculator`), or another `verifier` (else)."""

    name: str
    verifier: str | None
    revision: str | None
    draft: bool

    @property
    def uses_draft(self) -> bool:
        """Whether it is served with the draft."""
        return self.name != "dense" and self.draft


class Benchmark(Shape, frozen=True):
    """GuideLLM runs against the served model: every point of the profile, for every variant."""

    profile: Profile
    requests_per_level: int
    max_tokens: int
    variants: tuple[Variant, ...]


class Eval(Shape, frozen=True):
    """Acceptance, benchmark and the gates on their figures."""

    acceptance: Acceptance | None
    benchmark: Benchmark | None
    gates: tuple[str, ...]
