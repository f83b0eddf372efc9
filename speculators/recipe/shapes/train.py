"""How the draft is trained (`schemas/sections/train.schema.json`)."""

from __future__ import annotations

from typing import Literal

from speculators.recipe.shapes.common import Shape


class AdamW(Shape, frozen=True, tag="adamw", tag_field="type"):
    """AdamW for every parameter."""

    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float


class AdamW8bit(Shape, frozen=True, tag="adamw8bit", tag_field="type"):
    """AdamW whose running means of matrices take one byte a value."""

    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float


class Muon(Shape, frozen=True, tag="muon", tag_field="type"):
    """Muon for the hidden matrices; AdamW with `adamw_learning_rate` for norms, embeddings and heads."""

    learning_rate: float
    adamw_learning_rate: float
    weight_decay: float
    momentum: float


class Schedule(Shape, frozen=True):
    """The learning rate over time; `warmup` is a share of all optimizer steps."""

    type: Literal["cosine", "linear", "constant"]
    warmup: float
    final: float


class Validation(Shape, frozen=True):
    """How often the held-out documents are evaluated, in optimizer steps; null: at the end of each epoch."""

    every: int | None
    documents: int | None


class TrainingCheckpoints(Shape, frozen=True):
    """How often training saves its whole state, and how many are kept (operational)."""

    every: int
    keep: int


class Execution(Shape, frozen=True):
    """What training costs here, and never what is learnt (operational)."""

    recompute: bool
    loss_positions: int | None
    compile: bool


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Train(Shape, frozen=True):
    """Optimizer, schedule, precision, validation; `tracking` is where the figures go as well (operational).

    `initialize_from` is the directory of a checkpoint to begin with; its content, not its place, enters the key.
    """

    epochs: int
    tokens_per_step: int
    optimizer: AdamW | AdamW8bit | Muon
    schedule: Schedule
    gradient_clip: float | None
    gradient_clip_value: float | None
    precision: Literal["float32", "bfloat16"]
    initialize_from: str | None
    validation: Validation
    checkpoint: TrainingCheckpoints
    execution: Execution
    tracking: TrackerName | tuple[TrackerName, ...]
