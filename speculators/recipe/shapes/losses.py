"""The mix of losses that several algorithms have (`schemas/parts/loss.schema.json`), and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.common import Shape

_OF_ACCEPTANCE = ("tv", "nla", "lk")


class LossWeights(Shape, frozen=True):
    """The weight of every named loss in the mix; zero leaves it out. `ce_target` is what `ce` compares with."""

    kl: float
    rkl: float
    jsd: float
    ce: float
    tv: float
    nla: float
    lk: float
    top_k: float
    ce_target: Literal["teacher", "data"]

    def named(self) -> dict[str, float]:
        """The losses that weigh something, all of them between distributions (`losses/distributions.py`)."""
        weights = {name: float(getattr(self, name)) for name in self.__struct_fields__ if name != "ce_target"}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def follows_data(self) -> bool:
        """Whether `ce` is against the text's own next token."""
        return self.ce_target == "data"


def target_findings(loss: LossWeights) -> Iterator[Finding]:
    """A target of a loss that weighs nothing."""
    if loss.follows_data and not loss.ce:
        what = "`algorithm.loss.ce_target` says what `ce` compares with, and that weighs nothing"
        yield Finding(("algorithm", "loss", "ce_target"), what, "give `algorithm.loss.ce` a weight, or remove this")


def loss_findings(loss: LossWeights, *, renormalized: bool) -> Iterator[Finding]:
    """A mix of nothing; and losses of acceptance, where p is scaled to sum to one over a reduced vocabulary."""
    yield from target_findings(loss)
    here, weights = ("algorithm", "loss"), loss.named()
    if not weights:
        what = "every weight of `algorithm.loss` is 0, so nothing would be learnt"
        yield Finding(here, what, "such as loss: {kl: 1.0}")
    for name in _OF_ACCEPTANCE:
        if name in weights and renormalized:
            what = f"`algorithm.loss.{name}` needs the verifier's own probabilities, but the teacher is renormalized"
            yield Finding((*here, name), what, "set `algorithm.teacher` to unrenormalized")
