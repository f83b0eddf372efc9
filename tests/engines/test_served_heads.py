"""A draft of heads, served: it takes what it needs from the verifier, and no more tokens than it has heads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from speculators.algorithms.hydra.config import HydraConfig
from speculators.algorithms.hydra.network import HydraNetwork
from speculators.checkpoints.load import read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.data.vocabulary import DraftVocabulary
from speculators.engines.served import ServeOptions, open_proposal, open_served
from speculators.engines.transformers import VerifierModel
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.random_model import write_random_model
from speculators.verifiers.weights import VerifierWeights

SHAPE = SimpleNamespace(
    layers=4, hidden_size=64, intermediate_size=128, attention_heads=4, key_value_heads=2, vocab_size=300, seed=0
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    verifier, draft = tmp_path / "verifier", tmp_path / "draft"
    write_random_model(SHAPE, verifier)
    network = HydraNetwork(
        HydraConfig(hidden_size=64, vocab_size=300, draft_vocab_size=300, verifier_layers=4, heads=2)
    )
    network.start_from(VerifierWeights.read(verifier), DraftVocabulary.whole(300), torch.Generator())
    name = VerifierName(str(verifier), ("LlamaForCausalLM",))
    write_checkpoint(
        draft, speculators_config(network.config.to_config_json(), name, 2, "float32"), network.state_dict()
    )
    return draft


def test_more_tokens_than_heads_are_refused_before_anything_is_served(checkpoint: Path) -> None:
    with pytest.raises(
        UsageError, match=r"proposes at most 2 tokens in a round \(the draft has 2 heads\); 3 are asked for"
    ):
        open_served(checkpoint, ServeOptions(dtype="float32", device="cpu", speculative_tokens=3))


def test_a_draft_that_foretells_nothing_is_not_asked_to_end_early(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="foretells acceptance, so none can end early: no --least-confidence"):
        open_served(checkpoint, ServeOptions(dtype="float32", device="cpu", least_confidence=0.5))


def test_norm_and_embeddings_come_from_the_verifier(checkpoint: Path) -> None:
    verifier = checkpoint.parent / "verifier"
    model = VerifierModel.load(verifier, "float32", aux_layers=(4,))
    proposal = open_proposal(read_checkpoint(checkpoint), model, verifier, VerifierFacts.from_directory(verifier))
    out = model.forward(torch.tensor([[5, 9, 200]]), None, torch.tensor([0]), "all")
    assert out.aux is not None
    assert out.logits is not None
    best = int(out.logits[0, -1].argmax())
    found = proposal.propose(None, torch.tensor([0]), torch.tensor([[7]]), out.aux[:, -1:], [0], [1], 2, None)
    assert found.tolist() == [[best, best]], "untrained heads say what the verifier says next"
