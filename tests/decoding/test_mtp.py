"""A verifier's own head in the decoding loop: the text stays, and training foresaw the rounds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from random_heads import add_head

from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.load import load_draft, proposal_of
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request
from speculators.engines.transformers import VerifierModel
from speculators.evaluation.acceptance import Answer, round_figures
from speculators.training.validation import nowhere, walk

RunAll = Callable[[Decoder, list[Request]], list[list[Commit]]]
GreedyText = Callable[[list[int], int], list[int]]

LENGTH, STEPS, LAYERS, K = 28, 50, 4, 3
FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {**FEW, "n_routed_experts": 6, "n_shared_experts": 1, "n_group": 3, "topk_group": 2}
LATENT = {"kv_lora_rank": 12, "q_lora_rank": 10, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 10}
HEADS: dict[str, dict[str, Any]] = {
    "mimo": {"attention_bias": True},
    "qwen": {"model_type": "qwen3_next"},
    "qwen with experts": {
        "model_type": "qwen3_next",
        "num_experts": 5,
        "shared_expert_intermediate_size": 12,
        **FEW,
    },
    "glm": {"model_type": "glm4", "attention_bias": True},
    "glm with experts": {"model_type": "glm4_moe", **SHARED, "routed_scaling_factor": 1.5},
    "deepseek": {"model_type": "deepseek_v3", **SHARED, **LATENT},
}
"""What the config.json of a verifier with such a head says besides its own sizes."""


@pytest.fixture(scope="module")
def model(verifier_directory: Path) -> VerifierModel:
    return VerifierModel.load(verifier_directory, "float32", aux_layers=(LAYERS,))


@pytest.fixture(scope="module", params=[pytest.param(one, marks=pytest.mark.xdist_group(one)) for one in HEADS])
def trained(
    request: pytest.FixtureRequest,
    model: VerifierModel,
    verifier_directory: Path,
    prompts: list[list[int]],
    greedy_text: GreedyText,
    short_training: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    directory = tmp_path_factory.mktemp("with-head") / "verifier"
    shutil.copytree(verifier_directory, directory)
    add_head(directory, **HEADS[request.param])
    documents = [(prompt, greedy_text(prompt, LENGTH)) for prompt in prompts]
    said = f"type: mtp, steps: {K}"
    objective, batch, losses, k = short_training(said, model, directory, documents, steps=STEPS)
    assert k == K
    return SimpleNamespace(
        objective=objective, batch=batch, losses=losses, directory=directory, style=request.param.split()[0]
    )


def rounds(model: VerifierModel, network: Any, prompts: list[list[int]], run_all: RunAll, slots: int) -> Any:
    decoder = Decoder(model, proposal_of(network), slots=slots, capacity=60, speculative_tokens=K)
    return run_all(decoder, [Request(prompt, LENGTH) for prompt in prompts])


def test_the_loss_falls_and_proposals_stand(trained: SimpleNamespace) -> None:
    assert trained.objective.network.config.style == trained.style
    assert sum(trained.losses[-5:]) < 0.6 * sum(trained.losses[:5])
    with torch.no_grad():
        accepted = trained.objective.evaluate(trained.batch).accepted.lengths
    assert accepted.float().mean() > 1


@pytest.mark.parametrize("slots", [1, 4])
def test_greedy_text_is_the_verifiers_and_training_foresaw_every_round(
    trained: SimpleNamespace,
    model: VerifierModel,
    prompts: list[list[int]],
    greedy_text: GreedyText,
    run_all: RunAll,
    slots: int,
) -> None:
    found = rounds(model, trained.objective.network, prompts, run_all, slots)
    texts = [[token for commit in commits for token in commit.tokens] for commits in found]
    assert texts == [greedy_text(prompt, LENGTH) for prompt in prompts]
    with torch.no_grad():
        accepted = trained.objective.evaluate(trained.batch).accepted
    lengths = torch.zeros(trained.batch.tokens, dtype=torch.int64)
    lengths[accepted.newest] = accepted.lengths
    total = nowhere(K)
    own = lengths.split(trained.batch.lengths)
    for prompt, length, one in zip(prompts, trained.batch.lengths, own, strict=True):
        total += walk(one.tolist(), len(prompt), length, steps=K, is_stopped=False)
    answers = [Answer() for _ in found]
    for answer, commits in zip(answers, found, strict=True):
        for commit in commits:
            answer.add(commit)
    served = round_figures(answers, K)
    assert sum(total.accepted) > 10
    assert (served["rounds"], served["tokens"]) == (total.rounds, total.tokens)
    assert tuple(served["positions"]) == total.positions


def test_a_checkpoint_comes_back_whole_and_proposes_the_same(
    trained: SimpleNamespace, model: VerifierModel, prompts: list[list[int]], run_all: RunAll, tmp_path: Path
) -> None:
    name = VerifierName(str(trained.directory), ("LlamaForCausalLM",))
    config = speculators_config(trained.objective.network.config.to_config_json(), name, K, "float32")
    write_checkpoint(tmp_path, config, trained.objective.network.state_dict())
    assert check_checkpoint(tmp_path) == []
    loaded = load_draft(tmp_path)
    assert loaded.config == trained.objective.network.config
    accepted = [
        [[commit.accepted for commit in commits] for commits in rounds(model, network, prompts, run_all, 4)]
        for network in (loaded, trained.objective.network)
    ]
    assert accepted[0] == accepted[1]
