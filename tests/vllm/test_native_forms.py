"""Drafts that vLLM has in forms of its own, in an unmodified vLLM: not a token changes, and it accepts what we do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.checkpoints.load import load_draft, proposal_of
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.as_served import as_served
from speculators.engines.vllm.server import ServerOptions, serve_arguments
from speculators.evaluation.acceptance import Settings, decode, round_figures
from speculators.verifiers.facts import VerifierFacts

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

OPTIONS = ServerOptions(max_length=256, cpu_cache=1, eager=True, most_requests=8)
PROPOSED, TOKENS, STEPS = 3, 24, 80
SHAPE = "layers: 2, hidden_size: 128, intermediate_size: 192, attention_heads: 4, key_value_heads: 2"
DRAFTS = {
    "hass": "type: hass, feature_noise: 0.0",
    "medusa": f"type: medusa, heads: {PROPOSED}, shared_head: true, draft_vocab_size: 290, decay: 1.0",
    "draft_model": f"type: draft_model, random: {{{SHAPE}}}, steps: {PROPOSED}",
}


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_is_lossless_in_vllm_and_accepted_as_often(
    name: str, verifier: Path, tmp_path: Path, short_training: Callable[..., Any], inside: Callable[..., Any]
) -> None:
    facts = VerifierFacts.from_directory(verifier)
    model = VerifierModel.load(verifier, "float32", aux_layers=(facts.layers,))
    prompts = torch.randint(3, 300, (8, 9), generator=torch.Generator().manual_seed(1)).tolist()
    text = [list(one.tokens) for one in decode(model, None, prompts, Settings(0.0, 0, TOKENS, 8))]
    documents = list(zip(prompts, text, strict=True))
    objective, *_ = short_training(DRAFTS[name], model, verifier, documents, steps=STEPS, rate=3e-3)
    checkpoint = tmp_path / "checkpoint"
    config = speculators_config(
        objective.network.config.to_config_json(), VerifierName(str(verifier), facts.architectures), PROPOSED, "float32"
    )
    write_checkpoint(checkpoint, config, objective.network.state_dict())

    served, drafting = as_served(checkpoint, tmp_path / "served", verifier)
    arguments = serve_arguments(served, "float32", replace(OPTIONS, extra=drafting), trust_remote_code=False)
    found = inside(arguments, prompts, TOKENS)
    assert found["tokens"] == text

    own = decode(model, proposal_of(load_draft(checkpoint)), prompts, Settings(0.0, PROPOSED, TOKENS, 8))
    figures = round_figures(own, PROPOSED)
    assert len(found["accepted"]) == PROPOSED
    assert figures["acceptance_length"] > 1.3
    # vLLM also counts proposals that it accepted beyond the end of an answer.
    assert 1 + sum(found["accepted"]) / found["drafts"] == pytest.approx(figures["acceptance_length"], rel=0.06)
