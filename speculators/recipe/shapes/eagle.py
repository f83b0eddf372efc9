"""EAGLE-1 and HASS (`schemas/algorithms/{eagle,hass}.schema.json`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.common import DraftOptions
from speculators.recipe.shapes.losses import LossWeights, target_findings


class FeatureLoss(LossWeights, frozen=True):
    """The losses between distributions, and that between features; `soft_ce` is how the papers write their `kl`."""

    smooth_l1: float
    soft_ce: float

    def named(self) -> dict[str, float]:
        """Those between distributions."""
        return {name: weight for name, weight in super().named().items() if name != "smooth_l1"}


class FeatureDraft(DraftOptions, frozen=True):
    """What drafts that foretell the verifier's features have in common."""

    states_read: ClassVar[tuple[str, ...]] = ("algorithm.type",)
    drafts_trees: ClassVar[bool] = True

    loss: FeatureLoss
    feature_noise: float
    fc_bias: bool
    judged_steps: int

    @property
    def trained_steps(self) -> int:
        """Steps of a chain that have a part in the loss."""
        raise NotImplementedError

    @property
    def speculative_tokens(self) -> int:
        """As many as validation judges."""
        return max(self.judged_steps, self.trained_steps)

    def findings(self) -> Iterator[Finding]:
        """A draft that never learns what its features mean to the head."""
        yield from target_findings(self.loss)
        if not self.loss.named():
            what = "`algorithm.loss` compares no distributions, so nothing would be learnt about tokens"
            yield Finding(("algorithm", "loss"), what, "such as loss: {smooth_l1: 1.0, soft_ce: 0.1}")


class Eagle(FeatureDraft, frozen=True, tag="eagle", tag_field="type"):
    """An EAGLE-1 draft: its shape and its objective."""

    @property
    def trained_steps(self) -> int:
        """The first alone."""
        return 1


class Hass(FeatureDraft, frozen=True, tag="hass", tag_field="type"):
    """A HASS draft: EAGLE-1's, trained over several aligned steps."""

    aligned_steps: int

    @property
    def trained_steps(self) -> int:
        """All aligned ones."""
        return self.aligned_steps
