"""From artifacts to a training that can be run: what does not belong together is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from speculators.algorithms import load
from speculators.algorithms.base import Objective
from speculators.algorithms.building import build_objective
from speculators.data.tokens import TokenDataset
from speculators.data.vocabulary import DraftVocabulary
from speculators.engines.states_wanted import check_images
from speculators.errors import ArtifactMismatch
from speculators.layers.products import product_dtype
from speculators.pipeline.step import Reporter
from speculators.recipe.shapes.recipe import Algorithm
from speculators.recipe.shapes.train import Train
from speculators.training.batches import Course, States, TrainingData
from speculators.training.beginning import begin_with, read_before, take_draft
from speculators.training.execution import apply_execution
from speculators.training.loop import Before, Silent, TrainingInputs
from speculators.training.ranks import ALONE, Ranks
from speculators.training.sharding import ShardedObjective
from speculators.training.trackers import Tracker
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.source import read_verifier
from speculators.verifiers.weights import VerifierWeights


@dataclass(frozen=True)
class Artifacts:
    """The directories that a training reads."""

    verifier: Path
    tokens: Path
    vocabulary: Path


class DescribedStates(States, Protocol):
    """States that say what they are."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What stands in `states.json` of stored states."""


def open_inputs(
    artifacts: Artifacts,
    states: DescribedStates,
    algorithm: Algorithm,
    options: Train,
    *,
    seed: int,
    output: Path,
    earlier: Path | None = None,
    report: Reporter | None = None,
    begin: Callable[[Course, int], None] | None = None,
    tracker: Tracker | None = None,
    device: torch.device | str | None = None,
    ranks: Ranks = ALONE,
) -> TrainingInputs:
    """Open the artifacts and build the draft, freshly initialised from `seed` or as in a checkpoint.

    `earlier` is the folder of this training's finished first phase, whose draft the second begins with. `device` None
    is a GPU where there is one; `begin`, `tracker` and `ranks` are `TrainingInputs`' own. Raises
    ArtifactMismatch when the states were not made by this verifier, with this tokenizer and chat template, at the
    layers that the algorithm wants, or for these tokens.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    verifier = read_verifier(artifacts.verifier)
    facts = VerifierFacts.from_directory(verifier.directory)
    tokens = TokenDataset.open(artifacts.tokens)
    check_images(algorithm.name, tokens)  # again: another algorithm may have had these states made
    vocabulary = DraftVocabulary.open(artifacts.vocabulary)
    layers = load(algorithm.name, "config").verifier_layers(algorithm, facts.layers)
    check_states(states.record, tokens, layers, hidden_size=facts.hidden_size, verifier_digest=verifier.digest)
    if vocabulary.verifier_vocab_size not in (tokens.vocab_size, facts.vocab_size):
        raise ArtifactMismatch(
            f"the draft vocabulary was made for a verifier of {vocabulary.verifier_vocab_size} tokens, "
            f"this one has {facts.vocab_size}"
        )
    report = report or Silent()
    asked = getattr(torch, options.precision)
    if product_dtype(asked, place) != asked:
        report.message(f"this processor has no units for {options.precision}; products are taken in float32")
    objective: Objective = build_objective(
        algorithm,
        facts,
        VerifierWeights.read(verifier.directory),
        vocabulary,
        aux_layers=states.record["layer_ids"],
        precision=options.precision,
        seed=seed,
        device=place,
    )
    if options.initialize_from is not None:
        begin_with(objective.network, Path(options.initialize_from))
    if earlier is not None:
        take_draft(objective.network, earlier)
    apply_execution(objective, options.execution, report)
    if ranks.is_sharded:
        objective = ShardedObjective(objective, ranks)
    return TrainingInputs(
        objective=objective,
        data=TrainingData(tokens, states, place),
        options=options,
        seed=seed,
        output=output,
        draft=objective.network.config.to_config_json(),
        report=report,
        begin=begin,
        ranks=ranks,
        tracker=tracker,
        before=Before() if earlier is None else read_before(earlier),
    )


def check_states(
    record: Mapping[str, Any],
    tokens: TokenDataset,
    layers: tuple[int, ...],
    *,
    hidden_size: int,
    verifier_digest: str,
) -> None:
    """Raise ArtifactMismatch, naming what differs, when `record` (states.json) does not fit everything else."""
    problems = []
    if tuple(record["layer_ids"]) != layers:
        wanted, found = list(layers), list(record["layer_ids"])
        problems.append(f"layers: `algorithm.aux_layers` is {wanted}, the states are of {found}")
    if record["last"] != "pre_norm":
        problems.append(f"last state: it must be from before the final norm (pre_norm), this one is {record['last']}")
    if record["hidden_size"] != hidden_size:
        problems.append(f"hidden size: the verifier has {hidden_size}, the states have {record['hidden_size']}")
    if record["verifier_digest"] != verifier_digest:
        problems.append(f"verifier: the states are from {record['verifier_digest']}, this one is {verifier_digest}")
    for key, what in (("tokenizer_sha256", "tokenizer"), ("chat_template_sha256", "chat template")):
        if record[key] != getattr(tokens.origin, key):
            problems.append(
                f"{what}: the states were made with {record[key][:12]}, the tokens with "
                f"{getattr(tokens.origin, key)[:12]}"
            )
    if (record["documents"], record["tokens"]) != (len(tokens), tokens.tokens):
        problems.append(
            f"documents: the states cover {record['documents']} with {record['tokens']} tokens, "
            f"there are {len(tokens)} with {tokens.tokens}"
        )
    if problems:
        raise ArtifactMismatch("\n".join(["the hidden states do not fit:", *problems]), step="train")
