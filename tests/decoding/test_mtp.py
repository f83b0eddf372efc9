"""A verifier's own head in the decoding loop: the text stays, and training foresaw the rounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from speculators.algorithms.mtp.config import MtpConfig, sizes
from speculators.algorithms.mtp.network import MtpNetwork
from speculators.algorithms.mtp.styles import HEAD, STYLES
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.load import load_draft, proposal_of
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request
from speculators.engines.transformers import VerifierModel
from speculators.evaluation.acceptance import Answer, round_figures
from speculators.training.validation import nowhere, walk
from speculators.verifiers.facts import VerifierFacts

RunAll = Callable[[Decoder, list[Request]], list[list[Commit]]]
GreedyText = Callable[[list[int], int], list[int]]

LENGTH, STEPS, LAYERS, K = 28, 50, 4, 3
INSIDE = {"mimo": "model.mtp_layers.0.", "qwen": "mtp.", "glm": f"model.layers.{LAYERS}."}


def write_head(directory: Path, style: str) -> None:
    """Give a verifier's directory a random head of a family's style, in a file of its own."""
    facts = VerifierFacts.from_directory(directory)
    is_qwen = style == "qwen"
    said = {"biases": not is_qwen, "norms_heads": is_qwen, "gates_output": is_qwen}
    network = MtpNetwork(MtpConfig(**sizes(facts), style=style, aux_layers=(facts.layers,), **said))
    tensors = {}
    for name, parameter in network.named_parameters():
        own = name.removeprefix(HEAD)
        inner = "layers.0." if is_qwen and own not in STYLES[style].names else ""
        level = 0.0 if is_qwen or parameter.dim() == 2 or own.endswith("bias") else 1.0
        tensors[INSIDE[style] + inner + STYLES[style].names.get(own, own)] = level + 0.1 * torch.randn(parameter.shape)
    save_file(tensors, directory / "model-mtp.safetensors")
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_nextn_predict_layers": 1}))


@pytest.fixture(scope="module")
def model(verifier_directory: Path) -> VerifierModel:
    return VerifierModel.load(verifier_directory, "float32", aux_layers=(LAYERS,))


@pytest.fixture(scope="module", params=list(STYLES))
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
    write_head(directory, request.param)
    documents = [(prompt, greedy_text(prompt, LENGTH)) for prompt in prompts]
    said = f"type: mtp, steps: {K}"
    objective, batch, losses, k = short_training(said, model, directory, documents, steps=STEPS)
    assert k == K
    return SimpleNamespace(objective=objective, batch=batch, losses=losses, directory=directory, style=request.param)


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
    config = speculators_config(trained.objective.draft_config(), name, K, "float32")
    write_checkpoint(tmp_path, config, trained.objective.network.state_dict())
    assert check_checkpoint(tmp_path) == []
    loaded = load_draft(tmp_path)
    assert loaded.config == trained.objective.network.config
    accepted = [
        [[commit.accepted for commit in commits] for commits in rounds(model, network, prompts, run_all, 4)]
        for network in (loaded, trained.objective.network)
    ]
    assert accepted[0] == accepted[1]
