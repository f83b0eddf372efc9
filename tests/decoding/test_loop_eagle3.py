"""Drafting and verifying with real networks: the verifier's own greedy text, token for token, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.proposal import Eagle3Proposal
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request
from speculators.engines.transformers import VerifierModel

RunAll = Callable[[Decoder, list[Request]], list[list[Commit]]]
GreedyText = Callable[[list[int], int], list[int]]


def _text(commits: list[Commit]) -> list[int]:
    return [token for commit in commits for token in commit.tokens]


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("k", [1, 4])
def test_greedy_text_with_a_draft_is_the_text_without(
    verifier: VerifierModel,
    network: Eagle3Network,
    prompts: list[list[int]],
    greedy_text: GreedyText,
    run_all: RunAll,
    slots: int,
    k: int,
) -> None:
    lengths = [22, 14, 1, 25, 6, 2, 21, 18, 3, 15]
    decoder = Decoder(verifier, Eagle3Proposal(network), slots=slots, capacity=50, speculative_tokens=k)
    found = run_all(decoder, [Request(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)])
    for prompt, length, commits in zip(prompts, lengths, found, strict=True):
        assert _text(commits) == greedy_text(prompt, length)
        produced = 0
        for commit in commits:  # the verifier always adds a token: a round needs one proposal less than is missing
            assert commit.proposed == (min(k, length - produced - 1) if produced else 0)
            produced += len(commit.tokens)
    accepted = sum(commit.accepted for commits in found for commit in commits)
    assert accepted > 20  # otherwise nothing was tested


def test_stop_tokens_in_accepted_runs_end_the_text_where_the_verifier_would_have(
    verifier: VerifierModel, network: Eagle3Network, prompts: list[list[int]], greedy_text: GreedyText, run_all: RunAll
) -> None:
    inside = 0
    for place in range(3, 20):
        requests, wanted = [], []
        for prompt in prompts[:4]:
            text = greedy_text(prompt, 22)
            requests.append(Request(prompt, 22, stop_ids=frozenset({text[place]})))
            wanted.append(text[: text.index(text[place]) + 1])
        decoder = Decoder(verifier, Eagle3Proposal(network), slots=4, capacity=50, speculative_tokens=4)
        for commits, text in zip(run_all(decoder, requests), wanted, strict=True):
            assert _text(commits) == text
            assert commits[-1].reason == "stop"
            last = commits[-1]
            inside += last.accepted == last.proposed == len(last.tokens)
    assert inside > 0


def test_the_draft_is_shown_the_features_of_the_verifier_and_never_its_own(
    verifier: VerifierModel, network: Eagle3Network, prompts: list[list[int]], greedy_text: GreedyText, run_all: RunAll
) -> None:
    """Every position the draft keeps was read with the streams of the verifier's pass over the final text."""
    kept: dict[int, torch.Tensor] = {}

    class Watched(Eagle3Proposal):
        def read(self, cache: Any, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
            kept.update({i: aux[0, i] for i in range(next_ids.shape[1])})
            super().read(cache, rows, next_ids, aux)

        def propose(
            self, cache: Any, rows: Any, next_ids: Any, aux: Any, lengths: Any, counts: Any, k: int, choose: Any
        ) -> torch.Tensor:
            kept.update({lengths[0] + i: aux[0, i].clone() for i in range(counts[0])})
            return super().propose(cache, rows, next_ids, aux, lengths, counts, k, choose)

    prompt = prompts[2]
    decoder = Decoder(verifier, Watched(network), slots=1, capacity=60, speculative_tokens=4)
    (commits,) = run_all(decoder, [Request(prompt, 30)])
    assert sum(commit.accepted for commit in commits) > 0
    whole = torch.tensor([prompt + greedy_text(prompt, 30)])
    true = verifier.forward(whole, verifier.new_cache(1, whole.shape[1]), torch.tensor([0]), None).aux
    assert true is not None
    assert sorted(kept) == list(range(len(kept)))
    assert len(kept) > len(prompt) + 20
    torch.testing.assert_close(
        torch.stack([kept[i] for i in range(len(kept))]), true[0, : len(kept)], atol=1e-3, rtol=1e-3
    )


def test_keeping_the_drafts_own_states_would_change_the_proposals(
    verifier: VerifierModel, network: Eagle3Network, prompts: list[list[int]], run_all: RunAll
) -> None:
    """The promise above matters: a draft whose cache is not refilled proposes other tokens."""

    class Forgetful(Eagle3Proposal):
        def _fuse(self, aux: torch.Tensor) -> torch.Tensor:
            fused = super()._fuse(aux)
            if aux.shape[1] < 6:  # rounds, not prompts: stale features instead of the verifier's
                fused = fused.roll(1, -1)
            return fused

    def rounds(proposal: Eagle3Proposal) -> list[list[int]]:
        decoder = Decoder(verifier, proposal, slots=3, capacity=60, speculative_tokens=4)
        found = run_all(decoder, [Request(prompt, 30) for prompt in prompts[:6]])
        return [[commit.accepted for commit in commits] for commits in found]

    assert rounds(Forgetful(network)) != rounds(Eagle3Proposal(network))


def test_rounds_are_what_teacher_forcing_on_the_greedy_text_predicts(
    verifier: VerifierModel, network: Eagle3Network, prompts: list[list[int]], greedy_text: GreedyText, run_all: RunAll
) -> None:
    """From a_t, the number of proposals in a row that are right at every position, the rounds follow exactly."""
    k, length = 3, 28
    proposal = Eagle3Proposal(network)
    decoder = Decoder(verifier, proposal, slots=4, capacity=64, speculative_tokens=k)
    found = run_all(decoder, [Request(prompt, length) for prompt in prompts])
    for prompt, commits in zip(prompts, found, strict=True):
        whole = prompt + greedy_text(prompt, length)
        ids = torch.tensor([whole])
        aux = verifier.forward(ids, verifier.new_cache(1, len(whole)), torch.tensor([0]), None).aux
        assert aux is not None
        t, rounds = len(prompt) - 1, []
        while t + 2 < len(whole):  # token t + 1 is known, the chain proposes t + 2, t + 3, ...
            cache = proposal.new_cache(1, len(whole) + k)
            chain = proposal.propose(
                cache, torch.tensor([0]), ids[:, 1 : t + 2], aux[:, : t + 1], [0], [t + 1], k, None
            )[0].tolist()
            right = 0
            limit = min(k, len(whole) - 1 - (t + 2))
            while right < limit and chain[right] == whole[t + 2 + right]:
                right += 1
            rounds.append((right, limit))
            t += right + 1
        assert [(commit.accepted, commit.proposed) for commit in commits if commit.proposed] == [
            one for one in rounds if one[1]
        ]
        assert len(commits) == 1 + len(rounds)


def test_admission_and_release_in_any_order_leave_every_text_as_it_is(
    verifier: VerifierModel, network: Eagle3Network, prompts: list[list[int]], greedy_text: GreedyText
) -> None:
    decoder = Decoder(verifier, Eagle3Proposal(network), slots=4, capacity=64, speculative_tokens=3)
    generator = torch.Generator().manual_seed(5)
    prompt_of: dict[int, list[int]] = {}
    texts: dict[int, list[int]] = {}
    finished: set[int] = set()
    running: list[int] = []
    for turn in range(120):
        action = int(torch.randint(0, 4, (1,), generator=generator))
        if action <= 1 and decoder.free and turn < 90:
            prompt = prompts[int(torch.randint(0, len(prompts), (1,), generator=generator))]
            slot = decoder.admit(Request(prompt, 5 + turn % 17))
            prompt_of[slot], texts[slot] = prompt, []
            running.append(slot)
        elif action == 2 and running and turn % 3 == 0:
            decoder.release(running.pop(int(torch.randint(0, len(running), (1,), generator=generator))))
        for commit in decoder.step():
            assert commit.slot in running
            texts[commit.slot] += commit.tokens
            if commit.finished:
                finished.add(commit.slot)
                running.remove(commit.slot)
    while not decoder.is_idle:
        for commit in decoder.step():
            texts[commit.slot] += commit.tokens
    assert len(finished) > 5
    for slot, text in texts.items():
        assert text == greedy_text(prompt_of[slot], 22)[: len(text)]


@pytest.mark.parametrize("drafting", ["greedy", "sampled"])
def test_sampled_text_with_a_draft_depends_on_the_seed_alone(
    verifier: VerifierModel, network: Eagle3Network, prompts: list[list[int]], run_all: RunAll, drafting: Any
) -> None:
    requests = [Request(prompt, 12, 0.7, 0.95, seed=i) for i, prompt in enumerate(prompts)]

    def texts(slots: int, some: list[Request]) -> list[list[int]]:
        proposal = Eagle3Proposal(network)
        decoder = Decoder(verifier, proposal, slots=slots, capacity=40, speculative_tokens=3, drafting=drafting)
        return [_text(commits) for commits in run_all(decoder, some)]

    together = texts(4, requests)
    assert [texts(1, [request])[0] for request in requests] == together
    if drafting == "greedy":
        assert [_text(commits) for commits in run_all(Decoder(verifier, slots=4, capacity=40), requests)] == together


def test_a_verifier_loaded_without_the_drafts_layers_is_named(network: Eagle3Network) -> None:
    class Plain:
        def new_cache(self, slots: int, capacity: int) -> Any:
            return Eagle3Proposal(network).new_cache(slots, capacity)

        def forward(self, input_ids: torch.Tensor, cache: Any, rows: torch.Tensor, logits: Any) -> Any:
            class Out:
                aux = None
                logits = torch.zeros(1, 1, 97)

            return Out()

    decoder = Decoder(Plain(), Eagle3Proposal(network), slots=1, capacity=8, speculative_tokens=2)
    decoder.admit(Request([1, 2], 3))
    with pytest.raises(ValueError, match="load it with the layers that the draft reads"):
        decoder.step()
