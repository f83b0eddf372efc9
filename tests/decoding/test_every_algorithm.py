"""What holds of every algorithm: it learns, training foresees its rounds, texts stay, its checkpoint is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.algorithms.base import Batch, DraftNetwork
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.load import load_draft, proposal_of, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request
from speculators.engines.transformers import VerifierModel
from speculators.evaluation.acceptance import Answer, Settings, measure, round_figures
from speculators.layers.trees import StaticShape, TreeShape
from speculators.training.validation import nowhere, walk

RunAll = Callable[[Decoder, list[Request]], list[list[Commit]]]
GreedyText = Callable[[list[int], int], list[int]]

ALGORITHMS = {
    "eagle": "judged_steps: 4, feature_noise: 0.01",
    "hass": "judged_steps: 4, feature_noise: 0.01",
    "eagle3": "draft_vocab_size: 80, aux_layers: [1, 2, 3], training_time_test: {steps: 4}, "
    "normalization: {before_fc: true}",
    "peagle": "draft_vocab_size: 80, aux_layers: [1, 2, 3], layers: 2, depths: 4, normalization: {before_fc: true}",
    "dflash": "aux_layers: [1, 2, 3], layers: 2, block_size: 5, anchors: 20",
    "dflash, windows": "aux_layers: [1, 2, 3], layers: 2, block_size: 5, anchors: 20, "
    "sliding_window: {size: 6, layers: [0], causal: false}",
    "dflash, causal windows": "aux_layers: [1, 2, 3], layers: 2, block_size: 5, anchors: 20, sliding_window: {size: 4}",
    "dspark, windows": "aux_layers: [1, 2, 3], layers: 2, block_size: 4, anchors: 20, markov_rank: 8, "
    "sliding_window: {size: 3, layers: [1]}",
    "xpress, windows": "aux_layers: [1, 2, 3], layers: 2, block_size: 5, anchors: 20, refiner: {rank: 8, passes: 2}, "
    "sliding_window: {size: 6, layers: [1]}",
    "dspark": "aux_layers: [1, 2, 3], layers: 2, block_size: 4, anchors: 20, markov_rank: 8",
    "dspark, gated": "aux_layers: [1, 2, 3], layers: 2, block_size: 4, anchors: 20, markov_rank: 8, "
    "markov_head_type: gated",
    "dspark, recurrent": "aux_layers: [1, 2, 3], layers: 2, block_size: 4, anchors: 20, markov_rank: 8, "
    "markov_head_type: rnn",
    "dflash2": "aux_layers: [1, 2, 3], layers: 2, block_size: 4, anchors: 20, selector: {rank: 8, top_k: 5}",
    "xpress": "aux_layers: [1, 2, 3], layers: 2, block_size: 5, anchors: 20, refiner: {rank: 8, passes: 2}",
    "medusa": "draft_vocab_size: 80, heads: 4, layers: 2",
    "hydra": "draft_vocab_size: 80, heads: 4, layers: 2",
    "mlp_speculator": "heads: 3, inner_size: 48",
    "draft_model": "random: {layers: 2, hidden_size: 32, intermediate_size: 64}, steps: 4",
}
DRAFT_TREES = ("eagle", "eagle3", "hass", "medusa", "hydra", "mlp_speculator")
LENGTH, STEPS = 28, 100


@dataclass(frozen=True)
class Trained:
    """A draft after a short training on the verifier's own greedy text."""

    network: DraftNetwork
    verifier: VerifierModel
    """It gives the features that the draft reads."""
    objective: Any
    batch: Batch
    losses: list[float]
    k: int

    def proposal(self) -> Any:
        return proposal_of(self.network)


@pytest.fixture(scope="session", params=[pytest.param(one, marks=pytest.mark.xdist_group(one)) for one in ALGORITHMS])
def trained(
    request: pytest.FixtureRequest,
    verifier: VerifierModel,
    verifier_directory: Path,
    prompts: list[list[int]],
    greedy_text: GreedyText,
    short_training: Callable[..., Any],
) -> Trained:
    said = f"type: {request.param.split(',')[0]}, {ALGORITHMS[request.param]}"
    documents = [(prompt, greedy_text(prompt, LENGTH)) for prompt in prompts]
    objective, batch, losses, k = short_training(said, verifier, verifier_directory, documents, steps=STEPS)
    # The streams that are read while drafting; training may ask for fewer, as it has the last one anyway.
    layers = objective.network.config.aux_layers
    reading = VerifierModel.load(verifier_directory, "float32", aux_layers=layers)
    return Trained(objective.network, reading, objective, batch, losses, k)


def text(commits: list[Commit]) -> list[int]:
    return [token for commit in commits for token in commit.tokens]


def test_the_loss_falls_and_proposals_stand(trained: Trained) -> None:
    assert sum(trained.losses[-5:]) < 0.65 * sum(trained.losses[:5])
    with torch.no_grad():
        accepted = trained.objective.evaluate(trained.batch).accepted
    assert accepted.lengths.float().mean() > 1
    assert len(set(accepted.lengths.tolist())) > 2


@pytest.mark.parametrize("slots", [1, 4])
def test_greedy_text_is_the_text_without_a_draft_and_training_foresaw_every_round(
    trained: Trained,
    prompts: list[list[int]],
    greedy_text: GreedyText,
    run_all: RunAll,
    slots: int,
) -> None:
    decoder = Decoder(trained.verifier, trained.proposal(), slots=slots, capacity=60, speculative_tokens=trained.k)
    found = run_all(decoder, [Request(prompt, LENGTH) for prompt in prompts])
    assert [text(commits) for commits in found] == [greedy_text(prompt, LENGTH) for prompt in prompts]

    with torch.no_grad():
        accepted = trained.objective.evaluate(trained.batch).accepted
    lengths = torch.zeros(trained.batch.tokens, dtype=torch.int64)
    lengths[accepted.newest] = accepted.lengths
    total, start = nowhere(trained.k), 0
    for prompt, length in zip(prompts, trained.batch.lengths, strict=True):
        own = lengths[start : start + length].tolist()
        total += walk(own, len(prompt), length, steps=trained.k, is_stopped=False)
        start += length
    served = round_figures([answer(commits) for commits in found], trained.k)
    assert sum(total.accepted) > 10
    assert (served["rounds"], served["tokens"]) == (total.rounds, total.tokens)
    assert tuple(served["judged"]) == total.judged
    assert tuple(served["positions"]) == total.positions


def answer(commits: list[Commit]) -> Answer:
    found = Answer()
    for commit in commits:
        found.add(commit)
    return found


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("trained", DRAFT_TREES, indirect=True)
def test_greedy_text_with_trees_is_the_text_without(
    trained: Trained, prompts: list[list[int]], greedy_text: GreedyText, run_all: RunAll, kind: str
) -> None:
    requests, depth = [Request(prompt, LENGTH) for prompt in prompts], min(4, trained.k)
    shape: TreeShape | StaticShape = TreeShape(depth, width=3, nodes=12)
    if kind == "static":
        chain, beside = [(0,) * size for size in range(1, depth + 1)], [(1,), (2,), (0, 1), (1, 0), (0, 0, 1)]
        shape = StaticShape((*chain, *beside))
    found = run_all(Decoder(trained.verifier, trained.proposal(), slots=4, capacity=60, tree=shape), requests)
    assert [text(commits) for commits in found] == [greedy_text(prompt, LENGTH) for prompt in prompts]
    chains = Decoder(trained.verifier, trained.proposal(), slots=4, capacity=60, speculative_tokens=depth)
    assert sum(map(len, found)) < sum(map(len, run_all(chains, requests)))


@pytest.mark.parametrize("trained", ["dspark"], indirect=True)
def test_proposals_that_end_early_are_fewer_and_leave_the_text(
    trained: Trained, prompts: list[list[int]], greedy_text: GreedyText
) -> None:
    def measured(temperature: float, least: float) -> tuple[dict[str, Any], list[list[int]]]:
        settings = Settings(temperature, trained.k, LENGTH, 4, seed=3, least_confidence=least)
        figures, answers = measure(trained.verifier, trained.proposal(), prompts, settings)
        return figures, [answer.tokens for answer in answers]

    early, text = measured(0.0, 0.4)
    whole, same = measured(0.0, 0.0)
    assert text == same == [greedy_text(prompt, LENGTH) for prompt in prompts]
    assert (
        early["proposed_length"]
        == early["proposed_tokens"] / early["rounds"]
        < whole["proposed_tokens"] / whole["rounds"]
    )
    assert early["accepted_tokens"] / early["proposed_tokens"] > whole["accepted_tokens"] / whole["proposed_tokens"]
    assert "proposed_length" not in whole
    assert measured(0.7, 0.4)[1] == measured(0.7, 0.0)[1], "greedy proposals: a seed's text is the verifier's own"


@pytest.mark.parametrize("drafting", ["greedy", "sampled"])
def test_sampled_text_depends_on_the_seed_alone(
    trained: Trained, prompts: list[list[int]], run_all: RunAll, drafting: Any
) -> None:
    requests = [Request(prompt, 12, 0.7, 0.95, seed=i) for i, prompt in enumerate(prompts)]

    def texts(slots: int, some: list[Request]) -> list[list[int]]:
        proposal = trained.proposal()
        decoder = Decoder(trained.verifier, proposal, slots=slots, capacity=40, speculative_tokens=3, drafting=drafting)
        return [text(commits) for commits in run_all(decoder, some)]

    together = texts(4, requests)
    assert [texts(1, [request])[0] for request in requests] == together
    if drafting == "greedy":
        assert [
            text(commits) for commits in run_all(Decoder(trained.verifier, slots=4, capacity=40), requests)
        ] == together


def test_a_checkpoint_comes_back_whole_and_proposes_the_same(
    trained: Trained,
    verifier_directory: Path,
    prompts: list[list[int]],
    run_all: RunAll,
    tmp_path: Path,
) -> None:
    name = VerifierName(str(verifier_directory), ("LlamaForCausalLM",))
    config = speculators_config(trained.objective.network.config.to_config_json(), name, trained.k, "float32")
    write_checkpoint(tmp_path, config, trained.network.state_dict())
    assert check_checkpoint(tmp_path) == []
    loaded = load_draft(tmp_path)
    assert loaded.config == trained.network.config
    assert read_checkpoint(tmp_path).aux_layers == trained.network.config.aux_layers

    def rounds(network: DraftNetwork) -> list[list[int]]:
        decoder = Decoder(trained.verifier, proposal_of(network), slots=4, capacity=60, speculative_tokens=trained.k)
        found = run_all(decoder, [Request(prompt, LENGTH) for prompt in prompts])
        return [[commit.accepted for commit in commits] for commits in found]

    assert rounds(loaded) == rounds(trained.network)
