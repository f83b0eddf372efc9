"""An independent draft, exported, in an unmodified vLLM: not a token changes, and it accepts what our own loop does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.checkpoints.exporters import write_export
from speculators.checkpoints.load import proposal_of, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.server import ServerOptions, serve_arguments
from speculators.evaluation.acceptance import Settings, decode, round_figures

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

PROPOSED, TOKENS, STEPS = 3, 24, 60
SAID = (
    "type: draft_model, random: {layers: 2, hidden_size: 128, intermediate_size: 192, attention_heads: 4, "
    f"key_value_heads: 2}}, steps: {PROPOSED}"
)


def test_an_exported_draft_is_lossless_in_vllm_and_accepted_as_often(
    verifier: Path, tmp_path: Path, short_training: Callable[..., Any], inside: Callable[..., Any]
) -> None:
    model = VerifierModel.load(verifier, "float32", aux_layers=(7,))
    prompts = torch.randint(3, 300, (8, 9), generator=torch.Generator().manual_seed(1)).tolist()
    text = decode(model, None, prompts, Settings(0.0, 0, TOKENS, 8))
    documents = [(prompt, list(one.tokens)) for prompt, one in zip(prompts, text, strict=True)]
    objective, *_ = short_training(SAID, model, verifier, documents, steps=STEPS, rate=3e-3)

    name = VerifierName(str(verifier), ("LlamaForCausalLM",))
    config = speculators_config(objective.draft_config(), name, PROPOSED, "float32")
    write_checkpoint(tmp_path / "ours", config, objective.network.state_dict())
    write_export(read_checkpoint(tmp_path / "ours"), "draft_model", tmp_path / "draft")

    speculative = {
        "method": "draft_model", "model": str(tmp_path / "draft"), "num_speculative_tokens": PROPOSED,
    }  # fmt: skip
    options = ServerOptions(
        max_length=256, cpu_cache=1, eager=True, most_requests=8,
        extra=("--speculative-config", json.dumps(speculative)),
    )  # fmt: skip
    arguments = serve_arguments(verifier, "float32", options, trust_remote_code=False)
    served = inside(arguments, prompts, TOKENS)
    assert served["tokens"] == [list(one.tokens) for one in text]

    own = decode(model, proposal_of(objective.network), prompts, Settings(0.0, PROPOSED, TOKENS, 8))
    figures = round_figures(own, PROPOSED)
    assert len(served["accepted"]) == PROPOSED
    assert figures["acceptance_length"] > 1.3
    # vLLM also counts proposals that it accepted beyond the end of an answer.
    assert 1 + sum(served["accepted"]) / served["drafts"] == pytest.approx(figures["acceptance_length"], rel=0.06)
