"""What the loss takes for a moment (`losses/chunked.py`): whole distributions over the vocabulary of some positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from speculators.recipe.shapes.losses import LossWeights
from speculators.steps.training_memory.setting import FLOAT, Setting

CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, CHUNK_POSITIONS = 1 << 20, 1 << 23, 128
"""Those of `losses/chunked.py`, which planning cannot import; a test holds them equal."""

WHILE_COMPUTED: Mapping[str, int] = {
    "kl": 3,
    "ce": 3,
    "soft_ce": 3,
    "top_k": 4,
    "tv": 5,
    "nla": 5,
    "rkl": 6,
    "lk": 8,
    "jsd": 8,
}
"""Tensors beside the verifier's, [positions, vocabulary], while a loss is computed, the draft's own two among them."""
_RESULT = 3
"""Once it is: the draft's two, and the gradient."""
_OF_LOGARITHMS = frozenset({"rkl", "jsd", "lk"})


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is compared: over how many tokens of which vocabulary, by which losses, how many steps of a chain.

    `trained` are the columns of the head that have a gradient.
    """

    draft_vocabulary: int
    loss: LossWeights
    steps: int
    is_renormalized: bool
    trained: int = 0

    def has_mass(self, setting: Setting) -> bool:
        """Whether the verifier's whole vocabulary is summed over, to tell how much of it the draft has."""
        return not self.is_renormalized and self.draft_vocabulary < setting.vocabulary


def chunk_bytes(setting: Setting, judged: Judged) -> float:
    """Bytes of the largest of the moments in which the loss works off a chunk of positions."""
    load, vocabulary = setting.load, judged.draft_vocabulary
    elements = GPU_CHUNK_ELEMENTS if setting.on_gpu else CHUNK_ELEMENTS
    size = setting.train.execution.loss_positions or max(CHUNK_POSITIONS, elements // vocabulary)
    positions = min(size, load.answers)
    row, share = positions * vocabulary * FLOAT, min(1.0, load.chains / load.answers)
    has_mass, target = judged.has_mass(setting), _target_tensors(judged, setting)
    # Rows of a step that has them at every position are the chunk's own; another step's are copies.
    there = 1 + share * target if share < 1 else target * (1 if judged.steps == 1 else 2)
    low = setting.product / FLOAT if setting.is_rounded else 0.0
    compared = row * (there + share * (_draft_tensors(judged.loss) + low))
    learnt = row * (there + share * setting.product / FLOAT) + setting.product * vocabulary * judged.trained
    summed = positions * setting.vocabulary * FLOAT * (1 + low) if has_mass else 0.0
    return max(compared, learnt if judged.trained else 0.0, summed)


def _target_tensors(judged: Judged, setting: Setting) -> int:
    """The verifier's logits, and what the losses make of them once for all steps: probabilities, logarithms.

    Where the draft's vocabulary has not all of the probability, probabilities are there as they are and scaled.
    """
    names, has_mass = set(judged.loss.named()), judged.has_mass(setting)
    logarithms = bool(_OF_LOGARITHMS & names) or (has_mass and "kl" in names)
    probabilities = bool(names - ({"ce", "rkl"} if has_mass else {"ce"}))
    return 1 + logarithms + probabilities * (1 + has_mass)


def _draft_tensors(loss: LossWeights) -> int:
    """The draft's logits and distributions, and what losses and their gradients need beside them."""
    weights = loss.named()
    several, is_scaled = len(weights) > 1, any(weight != 1 for weight in weights.values())
    return max(max(WHILE_COMPUTED[name] for name in weights) + several, _RESULT + several + is_scaled)
