"""Medusa's training against its definition, written out position by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from speculators.algorithms.base import Batch
from speculators.algorithms.building import build_objective
from speculators.algorithms.heads.objective import HeadsObjective
from speculators.algorithms.heads.proposal import HeadsProposal
from speculators.algorithms.medusa.config import MedusaConfig
from speculators.algorithms.medusa.network import MedusaNetwork
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import RecipeError, UsageError
from speculators.layers.products import mix_precision
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.load import load_recipe
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights

H, V = 24, 50


def network_of(weights: VerifierWeights, randomly_filled: Any, **options: Any) -> MedusaNetwork:
    sizes = {"hidden_size": H, "vocab_size": V, "draft_vocab_size": 32, "verifier_layers": 3, "heads": 3}
    network: MedusaNetwork = randomly_filled(MedusaNetwork(MedusaConfig(**(sizes | options))))
    network.double()
    network.attach(weights)
    return network


def logits(w: dict[str, torch.Tensor], state: torch.Tensor, ids: list[int]) -> list[torch.Tensor]:
    found = []
    for head in range(3):
        x, layer = state, 0
        while (name := f"blocks.{head}.layers.{layer}") + ".weight" in w:
            x, layer = x + functional.silu(w[f"{name}.weight"] @ x + w[f"{name}.bias"]), layer + 1
        found.append(w.get("lm_head.weight", w.get(f"lm_heads.{head}.weight")) @ x)
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 2, "draft_vocab_size": V}, {"shared_head": True}],
    ids=["reduced vocabulary", "two blocks, whole vocabulary", "one head for all"],
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
    network = network_of(verifier_weights, randomly_filled, **options)
    chosen = section("type: medusa, heads: 3, decay: 0.8")
    for chunk in (None, 3):
        objective = HeadsObjective(network, chosen, head, compute_dtype=torch.float64, chunk=chunk)
        check_against(network, objective, batch, logits, 0.8)


def test_a_frozen_head_gets_no_gradient_and_a_shared_one_all_of_them(
    make_batch: Any, head: VerifierHead, section: Any, verifier_weights: VerifierWeights, randomly_filled: Any
) -> None:
    network = network_of(verifier_weights, randomly_filled, shared_head=True)
    chosen = section("type: medusa, heads: 3, shared_head: true, train_head: false")
    objective = HeadsObjective(network, chosen, head, compute_dtype=torch.float64)
    objective.evaluate(make_batch(["0001111111"])).loss.backward()
    assert network.lm_head.weight.grad is None
    assert all(one.grad is not None for one in network.blocks.parameters())


def test_bfloat16_products_change_the_gradients_only_a_little(
    make_batch: Any, head: VerifierHead, section: Any, verifier_weights: VerifierWeights, randomly_filled: Any
) -> None:
    batch, found = make_batch(["0001111111111", "0011111111"]), []
    batch = replace(batch, last=batch.last.float())
    for low in (False, True):
        network = network_of(verifier_weights, randomly_filled).float()
        if low:
            mix_precision(network, torch.bfloat16)
        teacher = VerifierHead(head.weight.float(), head.norm.float(), head.eps)
        dtype = torch.bfloat16 if low else torch.float32
        objective = HeadsObjective(network, section("type: medusa, heads: 3"), teacher, compute_dtype=dtype)
        result = objective.evaluate(batch)
        result.loss.backward()
        found.append((result.loss.item(), {name: one.grad for name, one in network.named_parameters()}))
    (exact, exact_gradients), (rounded, rounded_gradients) = found
    assert rounded == pytest.approx(exact, rel=0.02)
    for name, gradient in exact_gradients.items():
        assert rounded_gradients[name].dtype == torch.float32
        assert (rounded_gradients[name] - gradient).norm() < 0.06 * gradient.norm(), name


def test_a_new_draft_says_what_the_verifier_says_next(section: Any, verifier_weights: VerifierWeights) -> None:
    facts = VerifierFacts(
        "llama", (), layers=3, hidden_size=H, intermediate_size=40, attention_heads=6, key_value_heads=2, head_dim=4,
        vocab_size=V, rms_norm_eps=1e-5, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None,
        eos_token_ids=(),
    )  # fmt: skip
    objective = build_objective(
        section("type: medusa, heads: 2"), facts, verifier_weights,
        DraftVocabulary.whole(V), aux_layers=(), precision="float32", seed=0,
    )  # fmt: skip
    network, last = objective.network, torch.randn(4, H)
    state = network.begin(last)
    own = VerifierHead(verifier_weights.head.float(), verifier_weights.norm.float(), verifier_weights.eps)
    for step in (0, 1):
        torch.testing.assert_close(network.logits(step, state), own.normed(last) @ own.weight.T)


def test_no_round_proposes_more_tokens_than_there_are_heads(
    verifier_weights: VerifierWeights, randomly_filled: Any
) -> None:
    proposal = HeadsProposal(network_of(verifier_weights, randomly_filled).float())
    with pytest.raises(UsageError, match="the draft has 3 heads and cannot propose 4 tokens"):
        proposal.propose(
            proposal.new_cache(1, 8), torch.tensor([0]), torch.tensor([[1]]), torch.zeros(1, 1, H), [0], [1], 4, None
        )
    with pytest.raises(RecipeError, match="is 3, but a round of this medusa draft proposes 2"):
        load_recipe("tiny", sets=["algorithm={type: medusa, heads: 2}", "eval.acceptance.speculative_tokens=3"])
