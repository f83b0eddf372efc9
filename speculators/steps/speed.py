"""How long the verifier's work and the draft's training take, from sizes and the machine; earlier runs know better.

On GPUs: operations through the share of the makers' figure that such work reaches. On processors: the two-core machine
that these models were fitted on. A weight counts as two operations a token; of experts, those that a token meets.
"""

from __future__ import annotations

from speculators.pipeline.step import Scope

READING_SHARE, WRITING_SHARE, TRAINING_SHARE = 0.35, 0.12, 0.25
"""Of a GPU's speed: whole documents at once; many answers token by token; a draft's small matrices."""
CORES_READ, CORES_WRITE = 6e11, 3e11
"""Bytes of weights times tokens a second, on two cores of a recent processor."""
PROMPT_TOKENS = 300
"""Assumed of a prompt that is not there yet."""
_HOST_MEMORY = 16e9
"""Beside a GPU that holds the verifier."""
_PASSES = 3
"""A training step costs a forward pass and two backward ones."""


def verifier_seconds(scope: Scope, tokens: float | None, *, writes: bool) -> float | None:
    """How long the verifier takes to read `tokens`, or to write them."""
    facts = scope.facts
    weights = facts.get("active_weight_bytes") or facts.get("weight_bytes")
    if tokens is None or not weights:
        return None
    if "gpu_speed" not in facts:
        return tokens * weights / (CORES_WRITE if writes else CORES_READ)
    operations = tokens * weights * (2 if facts.get("is_quantized") else 1)  # two bytes a weight, or about one
    return operations / (facts["gpus"] * facts["gpu_speed"] * (WRITING_SHARE if writes else READING_SHARE))


def verifier_memory(scope: Scope) -> int | None:
    """Bytes of the machine's own memory that the verifier takes."""
    weights = scope.facts.get("weight_bytes")
    if weights is None:
        return None
    return int(min(1.5 * weights, _HOST_MEMORY) if "gpu_speed" in scope.facts else 1.5 * weights)


def training_seconds(scope: Scope, tokens: float, trained: float, steps: int) -> float | None:
    """How long `trained` parameters take on one GPU for `tokens`, each in `steps` unrolled steps; at most."""
    speed = scope.facts.get("gpu_speed")
    return None if speed is None else tokens * steps * 2 * _PASSES * trained / (speed * TRAINING_SHARE)
