"""Medusa to vLLM's own form and back, bit for bit; and what cannot go there is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speculators.algorithms.medusa.config import MedusaConfig
from speculators.algorithms.medusa.network import MedusaNetwork
from speculators.checkpoints.exporters import medusa as exporter
from speculators.checkpoints.importers.medusa import draft, names
from speculators.checkpoints.layout import tensor_problems
from speculators.checkpoints.save import VerifierName, speculators_config
from speculators.data.vocabulary import Coverage, DraftVocabulary, membership, offsets
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

FACTS = VerifierFacts(
    "llama", (), layers=3, hidden_size=16, intermediate_size=40, attention_heads=4, key_value_heads=2, head_dim=4,
    vocab_size=50, rms_norm_eps=1e-5, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None,
    eos_token_ids=(),
)  # fmt: skip


def checkpoint(**options: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "vocab_size": 50, "draft_vocab_size": 50, "verifier_layers": 3, "heads": 2, "layers": 2}
    network = MedusaNetwork(MedusaConfig(**(sizes | options)))
    if network.target_ids is not None:
        kept = torch.arange(0, 40, 2)
        network.map_vocabulary(DraftVocabulary(20, 50, offsets(kept), membership(kept, 50), Coverage(1.0, 1.0)))
    config = speculators_config(network.config.to_config_json(), VerifierName("a/b", ()), 2, "float32")
    return config, network.state_dict()


def export(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    found = exporter.export(config, tensors)
    assert not found.tensors
    return found.config, found.made


@pytest.mark.parametrize("options", [{}, {"shared_head": True}])
def test_a_draft_goes_to_vllm_and_back_bit_for_bit(options: dict[str, Any]) -> None:
    config, tensors = checkpoint(**options)
    exported, weights = export(config, tensors)
    assert (exported["num_heads"], exported["num_hidden_layers"], exported["model_type"]) == (2, 2, "medusa")
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    back = draft(shapes, FACTS, "exported")
    assert {name: config[name] for name in back} == back
    returned = {ours: weights[theirs] for ours, theirs in names(shapes).items()}
    assert tensor_problems(returned, back) == []
    assert all(torch.equal(value, tensors[name]) for name, value in returned.items())
    assert returned.keys() == tensors.keys()


@pytest.mark.parametrize("is_shared", [True, False])
def test_tokens_that_the_draft_does_not_have_are_never_the_likeliest(is_shared: bool) -> None:
    config, tensors = checkpoint(draft_vocab_size=20, shared_head=is_shared)
    exported, weights = export(config, tensors)
    assert exported["truncated_vocab_size"] == 50
    assert not {"d2t", "t2d", "token_map"} & weights.keys()
    x = torch.randn(200, 16)
    for name in ("lm_head.weight",) if is_shared else ("lm_heads.0.weight", "lm_heads.1.weight"):
        own = torch.arange(0, 40, 2)[(x @ tensors[name].T).argmax(-1)]
        assert (x @ weights[name].T).argmax(-1).tolist() == own.tolist()


def test_the_authors_names_are_understood() -> None:
    """Head, block; the output layer comes after the last block."""
    _, tensors = checkpoint()
    theirs = {}
    for head in range(2):
        for layer in range(2):
            for kind in ("weight", "bias"):
                theirs[f"{head}.{layer}.linear.{kind}"] = tensors[f"blocks.{head}.layers.{layer}.{kind}"]
        theirs[f"{head}.2.weight"] = tensors[f"lm_heads.{head}.weight"]
    shapes = {name: tuple(value.shape) for name, value in theirs.items()}
    assert all(torch.equal(theirs[source], tensors[ours]) for ours, source in names(shapes).items())
    assert names(shapes).keys() == tensors.keys()
    assert (
        tensor_problems({ours: theirs[source] for ours, source in names(shapes).items()}, draft(shapes, FACTS, "x"))
        == []
    )
    assert names({**shapes, "fc.weight": (1, 1)}) == {}


def test_what_is_something_else_is_refused() -> None:
    shapes = {name: tuple(value.shape) for name, value in checkpoint()[1].items()}
    with pytest.raises(UsageError, match="is for a verifier of 50 tokens and hidden size 16; this one has 50 and 8"):
        draft(shapes, VerifierFacts(**{**FACTS.__dict__, "hidden_size": 8}), "it")
    with pytest.raises(UsageError, match=r"has a part of the vocabulary .token_map., which is not converted"):
        draft({**shapes, "token_map": (20,)}, FACTS, "it")
