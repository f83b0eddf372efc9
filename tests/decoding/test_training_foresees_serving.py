"""The walk estimate of training is no estimate on the verifier's own greedy text: decoding makes the same rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from speculators.algorithms.base import Batch
from speculators.algorithms.chains import chains_of
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.objective import Eagle3Objective
from speculators.algorithms.eagle3.proposal import Eagle3Proposal
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request
from speculators.engines.transformers import VerifierModel
from speculators.evaluation.acceptance import Answer, round_figures
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.eagle3 import Eagle3, Normalization, TrainingTimeTest
from speculators.recipe.shapes.losses import LossWeights
from speculators.training.validation import nowhere, walk

RunAll = Callable[[Decoder, list[Request]], list[list[Commit]]]


def _options(steps: int) -> Eagle3:
    return Eagle3(
        layers=1,
        draft_vocab_size=80,
        aux_layers=(1, 2, 3),
        training_time_test=TrainingTimeTest(steps=steps, decay=1.0),
        normalization=Normalization(before_residual=False, before_fc=True, per_aux_layer=False, output=False),
        loss=LossWeights(kl=1.0, rkl=0.0, jsd=0.0, ce=0.0, tv=0.0, nla=0.0, lk=0.0, top_k=0.0, ce_target="teacher"),
        reduction="token_mean",
        teacher="renormalized",
        out_of_vocabulary="keep",
        feature_noise=0.0,
        train_embeddings=False,
        train_head=False,
    )


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("stops", [True, False])
def test_the_walk_over_greedy_text_makes_the_rounds_of_decoding(
    verifier: VerifierModel,
    network: Eagle3Network,
    prompts: list[list[int]],
    greedy_text: Callable[[list[int], int], list[int]],
    run_all: RunAll,
    steps: int,
    stops: bool,
) -> None:
    """Documents packed into one batch, with prompts of every length; with and without a stop token at the end."""
    requests, documents = [], []
    for number, prompt in enumerate(prompts):
        text = greedy_text(prompt, 28)
        stop = frozenset({text[9 + number]}) if stops else frozenset()
        kept = text[: min((text.index(one) for one in stop), default=len(text) - 1) + 1]
        requests.append(Request(prompt, 28, stop_ids=stop))
        documents.append((prompt, kept))

    found = run_all(
        Decoder(verifier, Eagle3Proposal(network), slots=4, capacity=60, speculative_tokens=steps), requests
    )
    served = round_figures([_answer(commits) for commits in found], steps)

    embedding = verifier.model.get_input_embeddings().weight.detach().clone()
    norm = next(
        module for name, module in verifier.model.named_modules() if name.endswith("model.norm") or name == "norm"
    )
    head = VerifierHead(embedding, norm.weight.detach(), 1e-6)
    objective = Eagle3Objective(network, _options(steps), head)
    ids = [torch.tensor(prompt + text) for prompt, text in documents]
    passes = [verifier.forward(one[None], verifier.new_cache(1, len(one)), torch.tensor([0]), "all") for one in ids]
    batch = Batch(
        lengths=tuple(len(one) for one in ids),
        input_ids=torch.cat(ids),
        loss_mask=torch.cat([torch.arange(len(p) + len(t)) >= len(p) for p, t in documents]),
        aux=torch.cat([one.aux[0] for one in passes if one.aux is not None]),
        last=torch.cat([one.last[0] for one in passes]),
        argmax=torch.cat([one.logits[0].argmax(-1) for one in passes if one.logits is not None]),
    )
    with torch.no_grad():
        accepted = objective.evaluate(batch).accepted
    lengths = torch.zeros(len(batch.input_ids), dtype=torch.int64)
    lengths[accepted.newest] = accepted.lengths
    total, start = nowhere(steps), 0
    for prompt, text in documents:
        own = lengths[start : start + len(prompt) + len(text)].tolist()
        total += walk(own, len(prompt), len(prompt) + len(text), steps=steps, is_stopped=stops)
        start += len(prompt) + len(text)
    network.requires_grad_(requires_grad=False)

    assert sum(total.accepted) > 10
    assert (served["rounds"], served["tokens"]) == (total.rounds, total.tokens)
    assert served["acceptance_length"] == total.acceptance_length
    assert tuple(served["judged"]) == total.judged
    assert tuple(served["positions"]) == total.positions


def test_behind_images_the_draft_is_served_at_the_positions_that_it_was_trained_at(network: Eagle3Network) -> None:
    """Images make positions fall behind the tokens' places; a chain's logits are those of drafting all the same."""
    assert network.target_ids is not None
    steps, known = 3, network.target_ids[torch.arange(14) * 5]  # ids that the draft can say
    aux = torch.randn(14, network.config.aux_width)
    positions = torch.tensor([0, 1, 2, 2, 2, 2, 2, 4, 5, 6, 7, 8, 9, 10])
    batch = Batch(
        lengths=(14,),
        input_ids=known,
        loss_mask=torch.arange(14) >= 8,
        aux=aux,
        last=torch.randn(14, network.config.hidden_size),
        argmax=known.roll(-1),
        positions=positions,
    )
    head = torch.randn(network.config.vocab_size, network.config.hidden_size)
    objective = Eagle3Objective(network, _options(steps), VerifierHead(head, torch.ones(head.shape[1]), 1e-6))
    root, logits, found = 9, {}, []
    for own in (batch, replace(batch, positions=None)):
        chains = chains_of(own, steps)
        chain = chains.roots.tolist().index(root)
        with torch.no_grad():
            outs = objective._unroll(own, chains, None)
            logits[own.positions is None] = torch.stack([network.lm_head(network.norm(out[chain])) for out in outs])

    proposal = Eagle3Proposal(network)
    cache, rows = proposal.new_cache(2, 24), torch.tensor([1])
    cache.turn(rows, positions[None, :9])
    proposal.read(cache, rows, known[None, 1:root], aux[None, : root - 1])

    def choose(scores: torch.Tensor) -> torch.Tensor:
        found.append(scores[0])
        return (network.target_ids == known[root + 1 + len(found)]).nonzero()[0]  # what the text really says

    proposal.propose(
        cache, rows, known[None, root : root + 2], aux[None, root - 1 : root + 1], [root - 1], [2], steps, choose
    )
    torch.testing.assert_close(torch.stack(found), logits[False], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[False], logits[True], atol=1e-3), "other positions would not be noticed"


def _answer(commits: list[Commit]) -> Answer:
    answer = Answer()
    for commit in commits:
        answer.add(commit)
    return answer
