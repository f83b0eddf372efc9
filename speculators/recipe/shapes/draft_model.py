"""The independent draft (`schemas/algorithms/draft_model.schema.json`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.common import DraftOptions, Shape
from speculators.recipe.shapes.losses import LossWeights, loss_findings


class RandomDraft(Shape, frozen=True):
    """A Llama of random weights, with the verifier's vocabulary."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int


class DraftModel(DraftOptions, frozen=True, tag="draft_model", tag_field="type"):
    """Which model drafts, and how it is distilled."""

    states_read: ClassVar[tuple[str, ...]] = ("algorithm.type",)

    model: str | None
    revision: str | None
    random: RandomDraft | None
    steps: int
    loss: LossWeights
    reduction: Literal["token_mean", "sequence_mean", "padded_mean"]

    @property
    def speculative_tokens(self) -> int:
        """As far as validation follows a chain."""
        return self.steps

    @property
    def training_passes(self) -> int:
        """A token is read once, however long chains are."""
        return 1

    def findings(self) -> Iterator[Finding]:
        """No model or two of them, one that cannot be, and a mix of losses that is none."""
        here = ("algorithm",)
        if self.model is None and self.random is None:
            hint = "set `algorithm.model` to a small one with the verifier's tokenizer, or `algorithm.random`"
            yield Finding(here, "`algorithm` names no model to draft with", hint)
        elif self.model is not None and self.random is not None:
            hint = "remove one of them; a value from a base recipe is taken back with null"
            yield Finding((*here, "random"), "`algorithm` has both `model` and `random`", hint)
        is_hub = self.model is not None and not self.model.startswith("/")
        if self.model is not None and ("://" in self.model or self.model.endswith(".gguf")):
            hint = "allowed: a hub id, a directory with a Hugging Face checkpoint"
            yield Finding((*here, "model"), f"`algorithm.model` is '{self.model}'", hint)
        if self.revision is not None and not is_hub:
            yield Finding((*here, "revision"), "`algorithm.revision` is for models of the hub", "remove it")
        if self.random is not None:
            yield from _random(self.random)
        yield from loss_findings(self.loss, renormalized=False)


def _random(shape: RandomDraft) -> Iterator[Finding]:
    here = ("algorithm", "random")
    if shape.hidden_size % (2 * shape.attention_heads):
        what = (
            f"`algorithm.random.hidden_size` is {shape.hidden_size}, "
            f"no even multiple of the {shape.attention_heads} attention heads"
        )
        yield Finding((*here, "hidden_size"), what, f"such as {16 * shape.attention_heads}")
    if shape.attention_heads % shape.key_value_heads:
        what = (
            f"`algorithm.random.key_value_heads` is {shape.key_value_heads}, "
            f"which does not divide the {shape.attention_heads} attention heads"
        )
        yield Finding((*here, "key_value_heads"), what)
