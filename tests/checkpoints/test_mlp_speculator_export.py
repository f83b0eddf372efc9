"""An MLP speculator to its authors' form and back, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speculators.algorithms.mlp_speculator.config import MLPSpeculatorConfig
from speculators.algorithms.mlp_speculator.network import MLPSpeculatorNetwork
from speculators.checkpoints.exporters import mlp_speculator as exporter
from speculators.checkpoints.importers.mlp_speculator import copies, draft, names
from speculators.checkpoints.layout import tensor_problems
from speculators.checkpoints.save import VerifierName, speculators_config
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights

FACTS = VerifierFacts(
    "llama", (), layers=3, hidden_size=16, intermediate_size=40, attention_heads=4, key_value_heads=2, head_dim=4,
    vocab_size=50, rms_norm_eps=1e-5, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None,
    eos_token_ids=(),
)  # fmt: skip

WEIGHTS = VerifierWeights(torch.zeros(50, 16), torch.zeros(50, 16), torch.ones(16), 1e-5)


def checkpoint(*, tied: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    network = MLPSpeculatorNetwork(
        MLPSpeculatorConfig(
            hidden_size=16, inner_size=12, vocab_size=50, verifier_layers=3, heads=4, tie_weights=tied, scale_input=True
        )
    )
    network.start_from(WEIGHTS, DraftVocabulary.whole(50), torch.Generator().manual_seed(0))
    config = speculators_config(network.config.to_config_json(), VerifierName("a/b", ()), 3, "float32")
    return config, network.state_dict()


def export(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    found = exporter.export(config, tensors)
    assert not found.tensors
    return found.config, found.made


@pytest.mark.parametrize("tied", [True, False])
def test_a_draft_goes_there_and_back_bit_for_bit(tied: bool) -> None:
    config, tensors = checkpoint(tied=tied)
    exported, weights = export(config, tensors)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    back = draft(exported, shapes, FACTS, "exported")
    assert {name: config[name] for name in back} == back
    returned = {ours: weights[theirs] for ours, theirs in names(exported, shapes).items()}
    assert tensor_problems(returned, back) == []
    assert returned.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in returned.items())
    same = copies(exported, shapes)
    assert set(same) | set(names(exported, shapes).values()) == set(weights)
    assert all(torch.equal(weights[one], weights[other]) for one, other in same.items())
    assert bool(same) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_it_has_the_config_and_the_tensors_that_vllm_s_model_looks_for(tied: bool) -> None:
    """As its `MLPSpeculatorConfig` and `MLPSpeculator` have them (0.32): a head for each step, the rest maybe once."""
    exported, weights = export(*checkpoint(tied=tied))
    assert len(exported["top_k_tokens_per_head"]) == exported["n_predict"] == 4
    assert (exported["emb_dim"], exported["inner_dim"], exported["vocab_size"]) == (16, 12, 50)
    steps = range(1) if tied else range(4)
    wanted = {f"emb.{i}.weight": (50, 12) for i in steps} | {f"head.{i}.weight": (50, 12) for i in range(4)}
    wanted |= {f"ln.{i}.{kind}": (12,) for i in steps for kind in ("weight", "bias")}
    wanted |= {f"proj.{i}.weight": (12, 12 if i else 16) for i in (range(2) if tied else range(4))}
    found = {name.replace("speculator.", ""): tuple(value.shape) for name, value in weights.items()}
    assert wanted.items() <= found.items()


def test_what_is_something_else_is_refused() -> None:
    assert names({}, {"fc.weight": (1, 1)}) == {}
    exported, weights = export(*checkpoint(tied=True))
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    other = VerifierFacts(**{**FACTS.__dict__, "vocab_size": 51})
    with pytest.raises(UsageError, match="is for a verifier of 50 tokens and hidden size 16; this one has 51 and 16"):
        draft(exported, shapes, other, "it")
