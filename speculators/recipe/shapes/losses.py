"""The mix of losses that several algorithms have (`schemas/parts/loss.schema.json`), and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.common import Shape

_OF_ACCEPTANCE = ("tv", "nla", "lk")


class LossWeights(Shape, frozen=True):
    """The weight of every named loss in the mix; zero leaves it out."""

    kl: float
    rkl: float
    jsd: float
    ce: float
    tv: float
    nla: float
    lk: float

    def named(self) -> dict[str, float]:
        """The losses that weigh something."""
        weights = {name: float(getattr(self, name)) for name in self.__struct_fields__}
        return {name: weight for name, weight in weights.items() if weight}


def loss_findings(loss: LossWeights, *, renormalized: bool) -> Iterator[Finding]:
    """A mix of nothing; and losses of acceptance, where p is scaled to sum to one over a reduced vocabulary."""
    here, weights = ("algorithm", "loss"), loss.named()
    if not weights:
        what = "every weight of `algorithm.loss` is 0, so nothing would be learnt"
        yield Finding(here, what, "such as loss: {kl: 1.0}")
    for name in _OF_ACCEPTANCE:
        if name in weights and renormalized:
            what = f"`algorithm.loss.{name}` needs the verifier's own probabilities, but the teacher is renormalized"
            yield Finding((*here, name), what, "set `algorithm.teacher` to unrenormalized")
