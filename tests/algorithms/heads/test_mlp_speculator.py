"""The MLP speculator's training and drafting against the definition, written out position by position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from speculators.algorithms.base import Batch
from speculators.algorithms.heads.objective import HeadsObjective
from speculators.algorithms.heads.proposal import HeadsProposal
from speculators.algorithms.mlp_speculator.config import MLPSpeculatorConfig
from speculators.algorithms.mlp_speculator.network import MLPSpeculatorNetwork
from speculators.errors import RecipeError, UsageError
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.load import load_recipe
from speculators.verifiers.weights import VerifierWeights

H, V, INNER, HEADS = 24, 50, 20, 3
OPTIONS = [
    {"tie_weights": True, "scale_input": True},
    {"tie_weights": False, "scale_input": True},
    {"tie_weights": False, "scale_input": False},
]


def network_of(weights: VerifierWeights, randomly_filled: Any, **options: Any) -> MLPSpeculatorNetwork:
    sizes = {"hidden_size": H, "inner_size": INNER, "vocab_size": V, "verifier_layers": 3, "heads": HEADS}
    network: MLPSpeculatorNetwork = randomly_filled(MLPSpeculatorNetwork(MLPSpeculatorConfig(**(sizes | options))))
    network.double()
    network.attach(weights)
    return network


def root_mean_square(x: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean() + 1e-6).sqrt()


def step_logits(
    w: dict[str, torch.Tensor], state: torch.Tensor, token: int, step: int, *, tied: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next state and its logits."""
    one, projection = (0, min(step, 1)) if tied else (step, step)
    kept = 0.5 ** (0.5 / HEADS)
    let_in = ((1 - kept**2) * (INNER / 2)) ** 0.5
    mixed = w[f"proj.{projection}.weight"] @ state + let_in / kept * w[f"embed_tokens.{one}.weight"][token]
    normed = root_mean_square(mixed) * w[f"norms.{one}.weight"] + w[f"norms.{one}.bias"]
    state = 0.5 * normed * (1 + torch.erf(normed / 2**0.5))
    return state, w[f"lm_heads.{one}.weight"] @ state


@pytest.mark.parametrize("options", OPTIONS, ids=["tied", "untied", "unscaled"])
def test_packed_training_is_the_definition(
    options: dict[str, bool],
    batch: Batch,
    head: VerifierHead,
    section: Any,
    verifier_weights: VerifierWeights,
    randomly_filled: Any,
    check_against: Callable[..., None],
) -> None:
    def logits(w: dict[str, torch.Tensor], state: torch.Tensor, ids: list[int]) -> list[torch.Tensor]:
        if options["scale_input"]:
            state = root_mean_square(state) / 2**0.5
        found = []
        for step, token in enumerate(ids[:HEADS]):
            state, scores = step_logits(w, state, token, step, tied=options["tie_weights"])
            found.append(scores)
        return found

    network = network_of(verifier_weights, randomly_filled, **options)
    objective = HeadsObjective(
        network, section("type: mlp_speculator, decay: 0.9"), head, compute_dtype=torch.float64, chunk=4
    )
    check_against(network, objective, batch, logits, 0.9)


@pytest.mark.parametrize("options", OPTIONS, ids=["tied", "untied", "unscaled"])
def test_every_step_takes_in_the_token_before_it(
    options: dict[str, bool], head: VerifierHead, verifier_weights: VerifierWeights, randomly_filled: Any, plain: Any
) -> None:
    network = network_of(verifier_weights, randomly_filled, **options)
    weights, proposal = dict(network.named_parameters()), HeadsProposal(network)
    generator = torch.Generator().manual_seed(4)
    aux = torch.randn(3, 4, H, generator=generator, dtype=torch.float64)
    next_ids, counts = torch.randint(0, V, (3, 4), generator=generator), [1, 4, 2]
    cache = proposal.new_cache(3, 9)
    found = proposal.propose(cache, torch.arange(3), next_ids, aux, [0, 2, 1], counts, HEADS, None)
    for row, count in enumerate(counts):
        state, token = plain.rms(aux[row, count - 1], head.norm), int(next_ids[row, count - 1])
        if options["scale_input"]:
            state = root_mean_square(state) / 2**0.5
        for step in range(HEADS):
            state, scores = step_logits(weights, state, token, step, tied=options["tie_weights"])
            token = int(scores.argmax())
            assert int(found[row, step]) == token


def test_half_of_the_verifiers_power_is_left_after_all_steps() -> None:
    config = MLPSpeculatorConfig(
        hidden_size=H, inner_size=INNER, vocab_size=V, verifier_layers=3, heads=4, tie_weights=True, scale_input=True
    )
    assert config.state_weight ** (2 * config.heads) == pytest.approx(0.5)
    assert config.token_weight**2 * 2 / INNER == pytest.approx(1 - config.state_weight**2)


def test_one_head_has_nothing_to_tie() -> None:
    with pytest.raises(RecipeError, match="one head has no other to share with"):
        load_recipe("tiny", sets=["algorithm={type: mlp_speculator, heads: 1}", "eval.acceptance.speculative_tokens=1"])
    with pytest.raises(UsageError, match="with one head has no weights to tie"):
        MLPSpeculatorConfig(
            hidden_size=8, inner_size=8, vocab_size=9, verifier_layers=1, heads=1, tie_weights=True, scale_input=True
        )
