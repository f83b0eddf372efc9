"""The draft, trained on the verifier's states until the recipe's epochs are through; the best one is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from speculators.algorithms import load
from speculators.errors import MachineError, UsageError
from speculators.pipeline.digests import file_sha256
from speculators.pipeline.machine import multiplies_bfloat16, visible_gpus
from speculators.pipeline.step import Context, Estimate, Scope, Step, View
from speculators.recipe.phases import phases
from speculators.steps.hidden_states import reading_seconds, row_bytes
from speculators.steps.speed import training_seconds, verifier_memory

if TYPE_CHECKING:
    from speculators.recipe.phases import Phase
    from speculators.recipe.shapes.recipe import Recipe
    from speculators.training.batches import Course
    from speculators.training.inputs import DescribedStates
    from speculators.training.loop import TrainingInputs
    from speculators.training.trackers import Tracker

_PROCESS_BYTES = 300 << 20  # Python, torch and what they load, before the first tensor
_OPTIMIZER_COPIES = 4  # weights, gradients and two moments
_BYTES_OF_ACTIVATIONS = 400  # of a token and a unit of the hidden size, for algorithms that nobody has counted
_SAVED_COPIES = 3  # the best draft, and one save with two moments


def run(context: Context) -> None:
    """Write the best draft, its config, metrics and result; what a killed attempt saved is taken up again."""
    from speculators.data.hidden_states import HiddenStates

    if context.processes > 1 or context.nodes.count > 1 or context.sharding == "full":
        _train_together(context)
        return
    _train(context, HiddenStates.open(context.inputs["hidden_states"]))


def run_online(context: Context) -> None:
    """The same, in one process, with states that are made meanwhile; nothing of them is left."""
    from speculators.data.tokens import TokenDataset
    from speculators.engines.states_wanted import states_wanted
    from speculators.training.online import online_states
    from speculators.training.validation import judged_documents

    tokens = TokenDataset.open(context.inputs["tokens"])
    wanted = states_wanted(context, tokens, context.config.algorithm.name)
    with online_states(
        wanted,
        tokens,
        judged_documents(tokens, context.config.train.validation),
        buffer_tokens=context.config.data.hidden_states.buffer_tokens,
        folder=context.output / "held-out",
        report=context.report,
    ) as states:
        _train(context, states, states.begin)


def _train(context: Context, states: DescribedStates, begin: Callable[[Course, int], None] | None = None) -> None:
    from speculators.training.inputs import Artifacts, open_inputs
    from speculators.training.phases import train_in_phases

    artifacts = Artifacts(
        verifier=context.inputs["verifier"], tokens=context.inputs["tokens"], vocabulary=context.inputs["vocabulary"]
    )
    with _tracked(context) as tracker:

        def opened(phase: Phase, output: Path, earlier: Path | None) -> TrainingInputs:
            return open_inputs(
                artifacts,
                states,
                phase.algorithm,
                phase.options,
                seed=context.config.seed,
                output=output,
                earlier=earlier,
                report=context.report,
                begin=begin,
                tracker=tracker,
            )

        train_in_phases(opened, context.config.algorithm, context.config.train, context.output)


def _train_together(context: Context) -> None:
    from speculators.training.rank import Assignment
    from speculators.training.together import train_together

    inputs = {name: str(path) for name, path in context.inputs.items()}
    assignment = Assignment(
        verifier=inputs["verifier"],
        tokens=inputs["tokens"],
        vocabulary=inputs["vocabulary"],
        states=inputs["hidden_states"],
        output=str(context.output),
        algorithm=context.config.algorithm,
        options=context.config.train,
        seed=context.config.seed,
        is_sharded=context.sharding == "full",
        first=context.nodes.number * context.processes,
        meeting=f"tcp://{context.nodes.rendezvous}" if context.nodes.count > 1 else "",
    )
    total = context.nodes.count * context.processes
    if context.nodes.number > 0:  # the first node hears and tells everything
        train_together(assignment, context.processes, total, context.report, None)
        return
    with _tracked(context) as tracker:
        train_together(assignment, context.processes, total, context.report, tracker)


def _tracked(context: Context) -> AbstractContextManager[Tracker]:
    """Whom the training's figures are told, under the names of recipe and run."""
    from speculators.training.trackers import Place
    from speculators.training.tracking import named, tracking

    place = Place(context.recipe_name, context.run_folder.name, context.run_folder)
    return tracking(named(context.config.train.tracking), place, context.report)


def external(config: View) -> Mapping[str, str]:
    """The content of the checkpoint that training begins with, wherever it lies, and what the algorithm takes."""
    pinned = getattr(load(config.algorithm.name, "config"), "external", None)
    outside = {} if pinned is None else dict(pinned(config.algorithm))
    given = config.train.initialize_from
    if given is None:
        return outside
    directory = Path(given)
    files = [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
    if len(files) < 2 or not files[0].is_file():
        raise UsageError(f"`train.initialize_from` is {given}, and there is no checkpoint with weights")
    return outside | {f"initialize_from/{file.name}": file_sha256(file) for file in files}


def needs(config: View) -> None:
    """The libraries of the trackers and of the optimizer that the recipe names."""
    from speculators.recipe.shapes.train import AdamW8bit
    from speculators.training.tracking import check_installed, named

    check_installed(named(config.train.tracking))
    for path, optimizer in config.train.optimizers.items():
        if isinstance(optimizer, AdamW8bit) and find_spec("torchao") is None:
            raise MachineError(
                f"`{path}.type` is adamw8bit, which needs torchao, not installed here: "
                f'pip install "speculators[torchao]", or take full moments with --set {path}.type=adamw'
            )


def estimate(scope: Scope) -> Estimate:
    """From the verifier's sizes, and the speed of an earlier training here when there was one."""
    facts, algorithm, options = scope.facts, scope.config.algorithm, scope.config.train
    disk = seconds = None
    tokens, speed = facts.get("tokens"), facts.get("training_tokens_per_second")
    if "hidden_size" in facts and "vocab_size" in facts:
        hidden, vocabulary = facts["hidden_size"], facts["vocab_size"]
        trained = load(algorithm.name, "config").trained_parameters(algorithm, facts)
        bests = vocabulary * hidden + trained
        saves = (_SAVED_COPIES - 1) * trained
        disk = int(4 * (len(phases(algorithm, options)) * bests + saves))
        if tokens:
            seconds = training_seconds(scope, options.all_epochs * tokens, trained, algorithm.training_passes)
    if tokens and speed:
        seconds = options.all_epochs * tokens / speed
    return Estimate(disk=disk, memory=_memory(scope), seconds=seconds)


def _memory(scope: Scope) -> int | None:
    """Of the GPU where there is one; else the machine's, with what Python and its libraries take."""
    from speculators.steps.training_memory import estimated

    facts, algorithm, options = scope.facts, scope.config.algorithm, scope.config.train
    if "hidden_size" not in facts or "vocab_size" not in facts:
        return None
    has_gpu = visible_gpus() > 0 or "gpu_speed" in facts
    narrow = options.precision == "bfloat16" and (has_gpu or multiplies_bfloat16())
    product = 2 if narrow else 4
    found = [
        estimated(one.algorithm, one.options, facts, product=product, on_gpu=has_gpu)
        for one in phases(algorithm, options)
    ]
    counted = [one for one in found if one is not None]
    if counted:
        return max(counted) if has_gpu else max(counted) + _PROCESS_BYTES
    hidden, vocabulary = facts["hidden_size"], facts["vocab_size"]
    trained = load(algorithm.name, "config").trained_parameters(algorithm, facts)
    tensors = 4 * (3 * vocabulary * hidden + _OPTIMIZER_COPIES * trained)
    return int(tensors + options.tokens_per_step * hidden * _BYTES_OF_ACTIVATIONS)


def estimate_online(scope: Scope) -> Estimate:
    """What training takes, and the verifier beside it, which reads every document once an epoch."""
    facts, options = scope.facts, scope.config.data.hidden_states
    training, reading, row = estimate(scope), reading_seconds(scope), row_bytes(scope, scope.config.algorithm.name)
    if training.disk is None or training.memory is None or row is None:
        return training
    judged = min(scope.config.train.validation.documents or math.inf, facts.get("holdout_documents", 0))
    held_out = judged * facts.get("tokens", 0) / facts.get("documents", 1)
    seconds = None
    if training.seconds is not None and reading is not None:
        seconds = training.seconds + scope.config.train.all_epochs * reading
    return Estimate(
        disk=training.disk + int(row * held_out),
        memory=training.memory + (verifier_memory(scope) or 0) + int(row * options.buffer_tokens),
        seconds=seconds,
    )


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """Training on stored states, or on states that the verifier makes meanwhile (`data.hidden_states.mode`).

    With `data.hidden_states.keep: until_trained` stored states go once the draft is published.
    """
    options = recipe.data.hidden_states
    offline = Step(
        "train",
        version=recipe.algorithm.train_version,
        reads=("algorithm", "train", "seed"),
        inputs=("verifier", "tokens", "hidden_states", "vocabulary"),
        run=run,
        external=external,
        estimate=estimate,
        needs=needs,
        spans_nodes=True,
        releases=("hidden_states",) if options.keep == "until_trained" else (),
    )
    if options.mode == "offline":
        return (offline,)
    return (
        replace(
            offline,
            reads=(*offline.reads, "data.hidden_states", "verifier.dtype", "verifier.engine"),
            inputs=("verifier", "tokens", "vocabulary"),
            run=run_online,
            estimate=estimate_online,
            spans_nodes=False,
            releases=(),
        ),
    )
