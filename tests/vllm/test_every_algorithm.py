"""Drafts of every algorithm that vLLM serves, in a real one: no token changes, and it accepts what our loop accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.load import load_draft, proposal_of
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.server import ServerOptions, serve_arguments
from speculators.evaluation.acceptance import Settings, decode, round_figures

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

OPTIONS = ServerOptions(max_length=512, cpu_cache=1, eager=True, most_requests=16)
TOKENS, STEPS = 40, 120
SERVED = {
    "peagle": "type: peagle, draft_vocab_size: 250, layers: 2, depths: 4, normalization: {before_fc: true}",
    "dflash": "type: dflash, layers: 2, block_size: 5",
    "dflash with causal windows": "type: dflash, layers: 2, block_size: 5, sliding_window: {size: 12}",
    "dflash with windows": "type: dflash, layers: 2, block_size: 5, sliding_window: {size: 12, causal: false}",
    "dflash of a part of the vocabulary": "type: dflash, layers: 2, block_size: 4, draft_vocab_size: 250",
}


@pytest.fixture(scope="module")
def model(verifier: Path) -> VerifierModel:
    return VerifierModel.load(verifier, "float32", aux_layers=(2, 3, 5))


@pytest.fixture(scope="module")
def documents(model: VerifierModel) -> list[tuple[list[int], list[int]]]:
    """Prompts with the verifier's own greedy answers."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 256, (5 + n % 7,), generator=generator).tolist() for n in range(16)]
    found = decode(model, None, prompts, Settings(0.0, 0, TOKENS, 16))
    return [(prompt, list(one.tokens)) for prompt, one in zip(prompts, found, strict=True)]


@pytest.mark.parametrize("algorithm", list(SERVED))
def test_a_draft_is_served_as_it_was_trained(
    algorithm: str,
    verifier: Path,
    model: VerifierModel,
    documents: list[tuple[list[int], list[int]]],
    short_training: Callable[..., Any],
    inside: Callable[..., Any],
    tmp_path: Path,
) -> None:
    said = f"{SERVED[algorithm]}, aux_layers: [2, 3, 5]"
    objective, _, _, k = short_training(said, model, verifier, documents, steps=STEPS)
    checkpoint = tmp_path / "checkpoint"
    name = VerifierName(str(verifier.resolve()), ("LlamaForCausalLM",))
    config = speculators_config(objective.network.config.to_config_json(), name, k, "float32")
    write_checkpoint(checkpoint, config, objective.network.state_dict())
    assert check_checkpoint(checkpoint) == []

    prompts = [prompt for prompt, _ in documents]
    found = inside(serve_arguments(checkpoint, "float32", OPTIONS, trust_remote_code=False), prompts, TOKENS)
    assert found["tokens"] == [answer for _, answer in documents]
    assert len(found["accepted"]) == k

    own = decode(model, proposal_of(load_draft(checkpoint)), prompts, Settings(0.0, k, TOKENS, 16))
    figures = round_figures(own, k)
    assert figures["acceptance_length"] > 1.2
    # vLLM also counts proposals that it accepted beyond the end of an answer.
    assert 1 + sum(found["accepted"]) / found["drafts"] == pytest.approx(figures["acceptance_length"], rel=0.05)
