"""Whether the memory of the GPUs that a recipe is given suffices: for the verifier's weights, and for training."""

from __future__ import annotations

from speculators.errors import MachineError
from speculators.pipeline.hardware import Hardware
from speculators.pipeline.plan import Plan
from speculators.recipe.shapes.recipe import Recipe
from speculators.recipe.shapes.train import Train
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine

_ROOM = 1.15
"""Of the weights' own size: what activations and a small cache of keys and values take at least."""


def check_gpus(recipe: Recipe, plan: Plan, hardware: Hardware) -> None:
    """Raise MachineError when something that the plan would run does not fit these GPUs."""
    from speculators.verifiers.source import known_facts

    running = {planned.name: planned for planned in plan.to_run if planned.step.uses_gpu and planned.step.cached}
    facts = known_facts(recipe.verifier)
    if facts is not None and running.keys() - {"train"}:
        verifier_fits(recipe.verifier.engine, facts.weight_bytes, hardware)
    if "train" in running:
        training_fits(running["train"].estimate.memory or 0, recipe.train, hardware)


def training_fits(memory: int, train: Train, hardware: Hardware) -> None:
    """Raise MachineError, saying what to change, when training takes more bytes than one of the GPUs has."""
    if memory <= hardware.memory:
        return
    advice = [f"a smaller `train.tokens_per_step` (it is {train.tokens_per_step})"]
    if not train.execution.recompute:
        advice.append("`train.execution.recompute: true`")
    raise MachineError(
        f"training takes about {memory / 1e9:.0f} GB of a GPU's memory, and {hardware.name} has "
        f"{hardware.memory / 1e9:.0f} GB; less is taken with {' or '.join(advice)}"
    )


def verifier_fits(engine: TransformersEngine | VllmEngine, weight_bytes: int, hardware: Hardware) -> None:
    """Raise MachineError, saying what to change, when the weights do not fit, or when GPUs are asked for twice."""
    if isinstance(engine, TransformersEngine):
        advice = "an engine of type vllm shares it out over several"
        _check_room(weight_bytes, 1, hardware.memory, hardware, advice)
        return
    if engine.endpoint is not None:
        return
    memory = hardware.memory * engine.memory_fraction
    enough = next((count for count in (2, 4, 8, 16) if weight_bytes * _ROOM <= count * memory), None)
    advice = f"write `verifier.engine.tensor_parallel: {enough}`" if enough else "take larger GPUs"
    _check_room(weight_bytes, engine.tensor_parallel, memory, hardware, advice)
    count = engine.tensor_parallel * engine.data_parallel * engine.replicas
    if count > hardware.count:
        raise MachineError(f"`verifier.engine` asks for {count} GPUs, and there are {hardware.text}")


def _check_room(weight_bytes: int, share: int, memory: float, hardware: Hardware, advice: str) -> None:
    if weight_bytes * _ROOM > share * memory:
        raise MachineError(
            f"the verifier's weights are {weight_bytes / 1e9:.0f} GB and with what is needed beside them do not fit "
            f"into {share}x {hardware.name} ({share * memory / 1e9:.0f} GB for them); {advice}"
        )
