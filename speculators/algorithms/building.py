"""A fresh draft and its training, for any algorithm: its config for a verifier, its network, its objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from speculators.algorithms import load
from speculators.algorithms.base import DraftNetwork, Objective
from speculators.algorithms.judging import verifier_head
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.products import mix_precision, product_dtype
from speculators.recipe.shapes.recipe import Algorithm
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights


def build_objective(
    options: Algorithm,
    facts: VerifierFacts,
    weights: VerifierWeights,
    vocabulary: DraftVocabulary,
    *,
    aux_layers: Sequence[int],
    precision: str,
    seed: int,
    device: torch.device | str = "cpu",
) -> Objective:
    """A draft for a verifier, freshly initialised from `seed`, ready to be trained on `device`.

    `aux_layers` are the streams that the features really have; `precision` is the type of the matrix products, where
    the device has units for it (`product_dtype`). Raises UsageError for a verifier that cannot have such a draft.
    """
    config = load(options.name, "config").Config.for_verifier(
        facts, options, draft_vocab_size=vocabulary.draft_vocab_size, aux_layers=aux_layers
    )
    kind: type[DraftNetwork] = load(options.name, "network").Network
    network = kind.started(config, weights, vocabulary, torch.Generator().manual_seed(seed))
    network.to(device)
    compute_dtype = product_dtype(getattr(torch, precision), device)
    if compute_dtype != torch.float32:
        mix_precision(network, compute_dtype)
    objective = load(options.name, "objective").Objective
    return cast(Objective, objective(network, options, verifier_head(weights, device), compute_dtype=compute_dtype))
