"""From artifacts to a training that can be run: what does not belong together is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speculators.algorithms import load
from speculators.algorithms.base import Objective
from speculators.data.hidden_states import HiddenStates
from speculators.data.tokens import TokenDataset
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import ArtifactMismatch
from speculators.pipeline.step import Reporter
from speculators.recipe.shapes.recipe import Algorithm
from speculators.recipe.shapes.train import Train
from speculators.training.batches import TrainingData
from speculators.training.loop import Silent, TrainingInputs
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.source import read_verifier
from speculators.verifiers.weights import VerifierWeights


@dataclass(frozen=True)
class Artifacts:
    """The directories that a training reads."""

    verifier: Path
    tokens: Path
    hidden_states: Path
    vocabulary: Path


def open_inputs(
    artifacts: Artifacts,
    algorithm: Algorithm,
    options: Train,
    *,
    seed: int,
    output: Path,
    report: Reporter | None = None,
    device: torch.device | str | None = None,
) -> TrainingInputs:
    """Open the artifacts and build the draft, freshly initialised from `seed`.

    `device` None is a GPU where there is one. Raises ArtifactMismatch when the states were not made by this verifier,
    with this tokenizer and chat template, at the layers that the algorithm wants, or for these tokens.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    verifier = read_verifier(artifacts.verifier)
    facts = VerifierFacts.from_directory(verifier.directory)
    tokens = TokenDataset.open(artifacts.tokens)
    vocabulary = DraftVocabulary.open(artifacts.vocabulary)
    record = json.loads((artifacts.hidden_states / "states.json").read_text(encoding="utf-8"))
    check_states(record, tokens, algorithm, hidden_size=facts.hidden_size, verifier_digest=verifier.digest)
    if vocabulary.verifier_vocab_size not in (tokens.vocab_size, facts.vocab_size):
        raise ArtifactMismatch(
            f"the draft vocabulary was made for a verifier of {vocabulary.verifier_vocab_size} tokens, "
            f"this one has {facts.vocab_size}"
        )
    build = load(str(type(algorithm).__struct_config__.tag), "objective").build_objective
    objective: Objective = build(
        algorithm,
        facts,
        VerifierWeights.read(verifier.directory),
        vocabulary,
        aux_layers=record["layer_ids"],
        precision=options.precision,
        seed=seed,
        device=place,
    )
    states = HiddenStates.open(artifacts.hidden_states)
    return TrainingInputs(
        objective=objective,
        data=TrainingData(tokens, states, place),
        options=options,
        seed=seed,
        output=output,
        draft=objective.draft_config(),
        report=report or Silent(),
    )


def check_states(
    record: Mapping[str, Any], tokens: TokenDataset, algorithm: Algorithm, *, hidden_size: int, verifier_digest: str
) -> None:
    """Raise ArtifactMismatch, naming what differs, when `record` (states.json) does not fit everything else."""
    problems = []
    if algorithm.aux_layers != "auto" and tuple(record["layer_ids"]) != tuple(algorithm.aux_layers):
        wanted, found = list(algorithm.aux_layers), list(record["layer_ids"])
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
