"""A block draft, served: no longer blocks than it was trained with, whatever is asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from speculators.algorithms import load
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.data.vocabulary import DraftVocabulary
from speculators.engines.served import ServeOptions, open_served
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.random_model import write_random_model
from speculators.verifiers.weights import VerifierWeights

SHAPE = SimpleNamespace(
    layers=2, hidden_size=32, intermediate_size=64, attention_heads=4, key_value_heads=2, vocab_size=300, seed=0
)
OWN = {
    "dflash": {},
    "xpress": {"xpress_rank": 4, "xpress_mlp_ratio": 1, "num_jacobi_passes": 2},
    "dspark": {
        "sample_from_anchor": True,
        "markov_rank": 4,
        "markov_head_type": "vanilla",
        "enable_confidence_head": False,
        "confidence_head_with_markov": False,
    },
}


def checkpoint_of(name: str, folder: Path) -> Path:
    verifier, draft = folder / "verifier", folder / "draft"
    write_random_model(SHAPE, verifier)
    facts = VerifierFacts.from_directory(verifier)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "attention_heads": 4,
        "key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 300,
        "draft_vocab_size": 300,
        "rope": facts.rope,
        "rms_norm_eps": facts.rms_norm_eps,
        "max_position_embeddings": facts.max_position_embeddings,
    }
    config = load(name, "config").Config(
        **sizes, aux_layers=(1,), layers=1, block_size=4, mask_token_id=299, **OWN[name]
    )
    network = load(name, "network").Network(config)
    network.start_from(VerifierWeights.read(verifier), DraftVocabulary.whole(300), torch.Generator())
    written = speculators_config(
        config.to_config_json(), VerifierName(str(verifier), ("LlamaForCausalLM",)), 3, "float32"
    )
    write_checkpoint(draft, written, network.state_dict())
    return draft


@pytest.mark.parametrize(("name", "most"), [("dflash", 3), ("xpress", 3), ("dspark", 4)])
def test_more_tokens_than_a_block_drafts_are_refused(tmp_path: Path, name: str, most: int) -> None:
    draft = checkpoint_of(name, tmp_path)
    options = ServeOptions(dtype="float32", device="cpu", speculative_tokens=most + 1)
    said = rf"at most {most} tokens in a round \(a block of 4 drafts {most}\); {most + 1} are asked for"
    with pytest.raises(UsageError, match=said):
        open_served(draft, options)
    open_served(draft, ServeOptions(dtype="float32", device="cpu", speculative_tokens=most)).scheduler.close()
