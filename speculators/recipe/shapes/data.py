"""What the draft is trained on (`schemas/sections/data.schema.json`)."""

from __future__ import annotations

from typing import Literal

from speculators.recipe.shapes.common import Dtype, Shape


class Source(Shape, frozen=True):
    """One source of prompts: a `file`, a hub `dataset`, or `synthesize`; exactly one of the three is set."""

    file: str | None
    dataset: str | None
    subset: str | None
    split: str | None
    revision: str | None
    synthesize: Literal["magpie"] | None
    samples: int | None
    temperature: float
    top_p: float
    max_new_tokens: int


class Regenerate(Shape, frozen=True):
    """How the verifier answers the prompts in its own words."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    samples_per_prompt: int
    dtype: Dtype | Literal["verifier"]


class HiddenStates(Shape, frozen=True):
    """Whether the verifier's states are stored or made in training, and in what precisions.

    `buffer_tokens`: online, tokens whose states may be on their way to the training at once (operational).
    """

    mode: Literal["offline", "online"]
    buffer_tokens: int
    dtype: Dtype
    compute_dtype: Dtype | Literal["verifier"]
    keep: Literal["forever", "until_trained"]


class Data(Shape, frozen=True):
    """Sources, answers, masks and hidden states."""

    sources: tuple[Source, ...]
    regenerate: Regenerate | None
    max_length: int
    train_on: Literal["assistant", "all"]
    holdout: float
    hidden_states: HiddenStates
