"""Hydra's training and its drafting against their definitions, written out position by position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from speculators.algorithms.base import Batch
from speculators.algorithms.heads.objective import HeadsObjective
from speculators.algorithms.heads.proposal import HeadsProposal
from speculators.algorithms.hydra.config import HydraConfig
from speculators.algorithms.hydra.network import HydraNetwork
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.vocabulary import VerifierHead
from speculators.verifiers.weights import VerifierWeights

H, V = 24, 50


def network_of(weights: VerifierWeights, randomly_filled: Any, **options: Any) -> HydraNetwork:
    sizes = {"hidden_size": H, "vocab_size": V, "draft_vocab_size": 32, "verifier_layers": 3, "heads": 3}
    network: HydraNetwork = randomly_filled(HydraNetwork(HydraConfig(**(sizes | options))))
    network.double()
    network.attach(weights)
    return network


def head_logits(
    w: dict[str, torch.Tensor], state: torch.Tensor, ids: list[int], embedding: torch.Tensor, head: int
) -> torch.Tensor:
    """Head `head` after the state and the tokens `ids`, of which it reads the first head + 1."""
    x, name = torch.cat([state, *(embedding[token] for token in ids[: head + 1])]), f"blocks.{head}."
    first = functional.silu(w[f"{name}layers.0.weight"] @ x + w[f"{name}layers.0.bias"])
    x, layer = w[f"{name}residual.weight"] @ x + w[f"{name}residual.bias"] + first, 1
    while f"{name}layers.{layer}.weight" in w:
        x = x + functional.silu(w[f"{name}layers.{layer}.weight"] @ x + w[f"{name}layers.{layer}.bias"])
        layer += 1
    return w.get("lm_head.weight", w.get(f"lm_heads.{head}.weight")) @ x


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 3, "draft_vocab_size": V}, {"shared_head": True}],
    ids=["reduced vocabulary", "three blocks, whole vocabulary", "one head for all"],
)
def test_packed_training_is_the_definition(
    options: dict[str, Any],
    batch: Batch,
    head: VerifierHead,
    section: Any,
    verifier_weights: VerifierWeights,
    randomly_filled: Any,
    check_against: Callable[..., None],
) -> None:
    def logits(w: dict[str, torch.Tensor], state: torch.Tensor, ids: list[int]) -> list[torch.Tensor]:
        heads = range(min(3, len(ids)))  # a later one would read tokens beyond the document
        return [head_logits(w, state, ids, verifier_weights.embedding, number) for number in heads]

    network = network_of(verifier_weights, randomly_filled, **options)
    objective = HeadsObjective(network, section("type: hydra, heads: 3"), head, compute_dtype=torch.float64, chunk=5)
    check_against(network, objective, batch, logits, 1.0)


def test_every_head_reads_what_was_drafted_before_it(
    head: VerifierHead, verifier_weights: VerifierWeights, randomly_filled: Any, plain: Any
) -> None:
    network = network_of(verifier_weights, randomly_filled)
    weights, proposal = {**dict(network.named_parameters()), **dict(network.named_buffers())}, HeadsProposal(network)
    generator = torch.Generator().manual_seed(4)
    aux = torch.randn(3, 4, H, generator=generator, dtype=torch.float64)
    next_ids, counts = torch.randint(0, V, (3, 4), generator=generator), [1, 4, 2]
    rows = torch.arange(3)
    found = proposal.propose(proposal.new_cache(3, 9), rows, next_ids, aux, [0, 2, 1], counts, 3, None)
    assert network.target_ids is not None
    for row, count in enumerate(counts):
        state, ids = plain.rms(aux[row, count - 1], head.norm), [int(next_ids[row, count - 1])]
        for number in range(3):
            best = head_logits(weights, state, ids, verifier_weights.embedding, number).argmax()
            ids.append(int(network.target_ids[best]))
        assert found[row].tolist() == ids[1:]


def test_a_new_draft_says_what_the_verifier_says_next(head: VerifierHead, verifier_weights: VerifierWeights) -> None:
    sizes = {"hidden_size": H, "vocab_size": V, "draft_vocab_size": V, "verifier_layers": 3, "heads": 3, "layers": 2}
    network = HydraNetwork(HydraConfig(**sizes)).double()
    network.start_from(verifier_weights, DraftVocabulary.whole(V), torch.Generator())
    last = torch.randn(5, H, dtype=torch.float64)
    state = network.begin(last)
    for step in range(3):
        state = network.follow(step, state, torch.randint(0, V, (5,)))
        torch.testing.assert_close(network.logits(step, state), head.normed(last) @ head.weight.T)
