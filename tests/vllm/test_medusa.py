"""Our Medusa, exported, in an unmodified vLLM: not a token changes, and proposals stand as often as we count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from speculators.checkpoints.exporters.medusa import export
from speculators.checkpoints.load import proposal_of
from speculators.checkpoints.save import VerifierName, speculators_config
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.server import ServerOptions, serve_arguments
from speculators.evaluation.acceptance import Settings, decode, round_figures

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

HEADS, TOKENS, STEPS = 3, 24, 80


def test_an_exported_draft_is_lossless_in_vllm_and_accepted_as_often(
    verifier: Path, tmp_path: Path, short_training: Callable[..., Any], inside: Callable[..., Any]
) -> None:
    model = VerifierModel.load(verifier, "float32", aux_layers=(7,))
    prompts = torch.randint(3, 300, (8, 9), generator=torch.Generator().manual_seed(1)).tolist()
    text = decode(model, None, prompts, Settings(0.0, 0, TOKENS, 8))
    documents = [(prompt, list(one.tokens)) for prompt, one in zip(prompts, text, strict=True)]
    said = f"type: medusa, heads: {HEADS}, shared_head: true, draft_vocab_size: 290, decay: 1.0"
    objective, *_ = short_training(said, model, verifier, documents, steps=STEPS, rate=3e-3)

    name = VerifierName(str(verifier), ("LlamaForCausalLM",))
    config = speculators_config(objective.draft_config(), name, HEADS, "float32")
    draft = tmp_path / "draft"
    draft.mkdir()
    found = export(config, objective.network.state_dict())
    exported, weights = found.config, found.made
    (draft / "config.json").write_text(json.dumps(exported))
    save_file({key: value.contiguous().clone() for key, value in weights.items()}, draft / "model.safetensors")

    speculative = {"method": "medusa", "model": str(draft), "num_speculative_tokens": HEADS}
    options = ServerOptions(
        max_length=256, cpu_cache=1, eager=True, most_requests=8,
        extra=("--speculative-config", json.dumps(speculative)),
    )  # fmt: skip
    arguments = serve_arguments(verifier, "float32", options, trust_remote_code=False)
    served = inside(arguments, prompts, TOKENS)
    assert served["tokens"] == [list(one.tokens) for one in text]

    own = decode(model, proposal_of(objective.network), prompts, Settings(0.0, HEADS, TOKENS, 8))
    figures = round_figures(own, HEADS)
    assert len(served["accepted"]) == HEADS
    assert figures["acceptance_length"] > 1.3
    # vLLM also counts proposals that it accepted beyond the end of an answer.
    assert 1 + sum(served["accepted"]) / served["drafts"] == pytest.approx(figures["acceptance_length"], rel=0.06)
