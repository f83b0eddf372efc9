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


class LossChanges(Shape, frozen=True):
    """Other weights in `algorithm.loss`, and `ce_target`; null leaves one as it is."""

    kl: float | None
    rkl: float | None
    jsd: float | None
    ce: float | None
    tv: float | None
    nla: float | None
    lk: float | None
    top_k: float | None
    smooth_l1: float | None
    soft_ce: float | None
    ce_target: Literal["teacher", "data"] | None

    def named(self) -> dict[str, float | str]:
        """Those that change something."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not None}


class SecondPhase(Shape, frozen=True):
    """A phase that begins with the first's best draft; a null optimizer or schedule is the first's."""

    epochs: int
    optimizer: AdamW | AdamW8bit | Muon | None
    schedule: Schedule | None
    loss: LossChanges


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
    second_phase: SecondPhase | None
    validation: Validation
    checkpoint: TrainingCheckpoints
    execution: Execution
    tracking: TrackerName | tuple[TrackerName, ...]

    @property
    def all_epochs(self) -> int:
        """Of both phases."""
        return self.epochs + (0 if self.second_phase is None else self.second_phase.epochs)

    @property
    def optimizers(self) -> dict[str, AdamW | AdamW8bit | Muon]:
        """Those that the recipe names, by their paths."""
        found = {"train.optimizer": self.optimizer}
        if self.second_phase is not None and self.second_phase.optimizer is not None:
            found["train.second_phase.optimizer"] = self.second_phase.optimizer
        return found
