"""Losslessness on a vocabulary so small that the whole joint distribution can be written down.

The verifier is a table: the next token depends on the last two. Its features name the position and the token read, so
that the toy draft can check that it is shown true features only, each once, in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from scipy.stats import chi2

from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request

RunAll = Callable[[Decoder, list[Request]], list[list[Commit]]]
SIZE = 4
PROMPT = [2, 1]


class ListCache:
    """Per slot, the list of what was read."""

    def __init__(self, slots: int) -> None:
        self.read: list[list[Any]] = [[] for _ in range(slots)]

    def crop(self, rows: torch.Tensor, lengths: Any) -> None:
        kept = [lengths] * len(rows) if isinstance(lengths, int) else list(lengths)
        for row, length in zip(rows.tolist(), kept, strict=True):
            del self.read[row][int(length) :]

    def move(self, source: int, destination: int) -> None:
        self.read[destination] = list(self.read[source])


@dataclass(frozen=True)
class ToyOutput:
    logits: torch.Tensor | None
    aux: torch.Tensor | None


class ToyVerifier:
    def __init__(self, seed: int = 0) -> None:
        self.table = 1.5 * torch.randn(SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))

    def new_cache(self, slots: int, capacity: int) -> ListCache:
        return ListCache(slots)

    def forward(
        self, input_ids: torch.Tensor, cache: ListCache, rows: torch.Tensor, logits: Literal["all", "last"] | None
    ) -> ToyOutput:
        scores, features = [], []
        for row, tokens in zip(rows.tolist(), input_ids.tolist(), strict=True):
            for token in tokens:
                read = cache.read[row]
                features.append([float(len(read)), float(token)])
                scores.append(self.table[read[-1] if read else 0, token])
                read.append(token)
        shape = (*input_ids.shape, -1)
        all_scores = torch.stack(scores).view(shape)
        wanted = all_scores if logits == "all" else all_scores[:, -1:]
        return ToyOutput(None if logits is None else wanted, torch.tensor(features).view(shape))


class ToyProposal:
    """Depends on the last token only; with `kept`, over a smaller vocabulary. Refuses anything but true features."""

    drafts_at_once = False

    def __init__(self, kept: Sequence[int] | None = None, seed: int = 1) -> None:
        self.target_ids = None if kept is None else torch.tensor(kept)
        size = SIZE if kept is None else len(kept)
        self.table = 1.5 * torch.randn(SIZE, size, generator=torch.Generator().manual_seed(seed))
        self.seen: list[list[tuple[int, int, int]]] = []

    def new_cache(self, slots: int, capacity: int) -> ListCache:
        return ListCache(slots)

    def read(self, cache: ListCache, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
        for row, ids, features in zip(rows.tolist(), next_ids.tolist(), aux.tolist(), strict=True):
            for token, (position, own) in zip(ids, features, strict=True):
                cache.read[row].append((int(position), int(own), token))

    def propose(
        self,
        cache: ListCache,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
        choose: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> torch.Tensor:
        assert [len(cache.read[row]) for row in rows.tolist()] == list(lengths)
        self.read(cache, rows, next_ids, aux)
        cache.crop(rows, [length + count for length, count in zip(lengths, counts, strict=True)])
        for row in rows.tolist():
            history = cache.read[row]
            assert [position for position, _, _ in history] == list(range(len(history)))
            assert all(before[2] == after[1] for before, after in itertools.pairwise(history))
        last = torch.tensor([cache.read[row][-1][2] for row in rows.tolist()])
        proposed = []
        for _ in range(k):
            logits = self.table[last]
            ids = logits.argmax(-1) if choose is None else choose(logits)
            last = ids if self.target_ids is None else self.target_ids[ids]
            proposed.append(last)
        return torch.stack(proposed, 1)


class ConfidentToy(ToyProposal):
    """Trusts a token by the token before it; with `anticipates`, by the token itself, which it must not."""

    drafts_at_once = True
    foretells_acceptance = True
    trust = torch.tensor([0.9, 0.35, 0.6, 0.75])

    def __init__(self, kept: Sequence[int] | None = None, *, anticipates: bool = False) -> None:
        super().__init__(kept)
        self.anticipates = anticipates

    def propose_confident(self, cache: ListCache, rows: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, list[int]]:
        *asked, least = rest
        ids = self.propose(cache, rows, *asked)
        newest = torch.tensor([[cache.read[row][-1][2]] for row in rows.tolist()])
        decisive = ids if self.anticipates else torch.cat([newest, ids[:, :-1]], 1)
        lengths = []
        for tokens in decisive.tolist():
            length, product = 0, 1.0
            for token in tokens:
                product *= float(self.trust[token])
                if product < least:
                    break
                length += 1
            lengths.append(length)
        return ids, lengths


def _next(verifier: ToyVerifier, before: int, last: int, request: Request) -> list[float]:
    """The distribution of the next token, the slow way."""
    weights = verifier.table[before, last].double().div(request.temperature).softmax(-1).tolist()
    order = sorted(range(SIZE), key=lambda i: -weights[i])[: request.top_k or SIZE]
    whole, mass, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if mass >= request.top_p * whole:
            break
        kept.append(i)
        mass += weights[i]
    return [weights[i] / mass if i in kept else 0.0 for i in range(SIZE)]


def _joint(verifier: ToyVerifier, request: Request) -> dict[tuple[int, ...], float]:
    joint: dict[tuple[int, ...], float] = {}
    for text in itertools.product(range(SIZE), repeat=request.max_new_tokens):
        whole, probability = [*PROMPT, *text], 1.0
        for i in range(2, len(whole)):
            probability *= _next(verifier, whole[i - 2], whole[i - 1], request)[whole[i]]
        joint[text] = probability
    return joint


def _chi_square_p_value(counts: dict[tuple[int, ...], int], joint: dict[tuple[int, ...], float], total: int) -> float:
    """Cells expected fewer than 8 times are put together."""
    statistic, cells, rest_expected, rest_counted = 0.0, 0, 0.0, 0
    for text, probability in joint.items():
        expected, counted = probability * total, counts.get(text, 0)
        if probability == 0:
            assert counted == 0, f"{text} is impossible and was drawn {counted} times"
        elif expected < 8:
            rest_expected, rest_counted = rest_expected + expected, rest_counted + counted
        else:
            statistic, cells = statistic + (counted - expected) ** 2 / expected, cells + 1
    if rest_expected > 0:
        statistic, cells = statistic + (rest_counted - rest_expected) ** 2 / rest_expected, cells + 1
    return float(chi2.sf(statistic, cells - 1))


@pytest.mark.parametrize(
    ("drafting", "kept", "temperature", "top_k", "top_p"),
    [
        ("greedy", None, 1.0, None, 1.0),
        ("greedy", (0, 2, 3), 0.8, None, 0.9),
        ("sampled", None, 1.0, None, 1.0),
        ("sampled", (1, 3), 1.3, None, 1.0),
        ("sampled", (0, 2, 3), 0.7, 3, 1.0),
        ("sampled", None, 1.0, None, 0.8),
    ],
)
def test_sampling_with_a_draft_leaves_the_joint_distribution_as_it_is(
    run_all: RunAll,
    drafting: Literal["greedy", "sampled"],
    kept: tuple[int, ...] | None,
    temperature: float,
    top_k: int | None,
    top_p: float,
) -> None:
    verifier, total = ToyVerifier(), 2500
    decoder = Decoder(verifier, ToyProposal(kept), slots=64, capacity=8, speculative_tokens=2, drafting=drafting)
    requests = [Request(PROMPT, 4, temperature, top_p, top_k, seed=seed) for seed in range(total)]
    counts: dict[tuple[int, ...], int] = {}
    accepted = proposed = 0
    for commits in run_all(decoder, requests):
        text = tuple(token for commit in commits for token in commit.tokens)
        counts[text] = counts.get(text, 0) + 1
        accepted += sum(commit.accepted for commit in commits)
        proposed += sum(commit.proposed for commit in commits)
    assert 0.02 < accepted / proposed < 0.98  # both branches of the rule were taken
    assert _chi_square_p_value(counts, _joint(verifier, requests[0]), total) > 0.001


@pytest.mark.parametrize("drafting", ["greedy", "sampled"])
@pytest.mark.parametrize(("kept", "least"), [(None, 0.5), ((0, 2, 3), 0.7)])
def test_proposals_that_end_early_leave_the_joint_distribution_as_it_is(
    run_all: RunAll, drafting: Literal["greedy", "sampled"], kept: tuple[int, ...] | None, least: float
) -> None:
    p_value, lengths = _early(run_all, ConfidentToy(kept), drafting, least)
    assert len(lengths) > 2, "proposals ended at several places"
    assert p_value > 0.001


def test_a_draft_that_looked_at_the_token_it_leaves_out_would_be_noticed(run_all: RunAll) -> None:
    p_value, _ = _early(run_all, ConfidentToy(anticipates=True), "sampled", 0.5)
    assert p_value < 1e-6


def _early(
    run_all: RunAll, proposal: ConfidentToy, drafting: Literal["greedy", "sampled"], least: float
) -> tuple[float, set[int]]:
    """The p value of the texts, and how many tokens rounds proposed where there was room for all."""
    verifier, total = ToyVerifier(), 2500
    decoder = Decoder(
        verifier, proposal, slots=64, capacity=8, speculative_tokens=3, drafting=drafting, least_confidence=least
    )
    requests = [Request(PROMPT, 4, 1.0, seed=seed) for seed in range(total)]
    counts: dict[tuple[int, ...], int] = {}
    lengths = set()
    for commits in run_all(decoder, requests):
        text = tuple(token for commit in commits for token in commit.tokens)
        counts[text] = counts.get(text, 0) + 1
        lengths.add(commits[1].proposed)
    return _chi_square_p_value(counts, _joint(verifier, requests[0]), total), lengths


def test_greedy_text_stays_and_only_what_was_proposed_is_verified_and_counted(run_all: RunAll) -> None:
    class Watched(ToyVerifier):
        widths: list[int]

        def forward(self, input_ids: torch.Tensor, *rest: Any) -> ToyOutput:
            self.widths.append(input_ids.shape[1])
            return super().forward(input_ids, *rest)

    verifier, proposal = Watched(), ConfidentToy()
    verifier.widths = []
    requests = [Request(PROMPT, 12), Request([3, 0], 12), Request([1, 1], 9)]

    def decode(slots: int, some: list[Request], least: float) -> list[list[Commit]]:
        decoder = Decoder(verifier, proposal, slots=slots, capacity=16, speculative_tokens=3, least_confidence=least)
        return run_all(decoder, some)

    plain = run_all(Decoder(verifier, slots=3, capacity=16), requests)
    texts = [[token for commit in commits for token in commit.tokens] for commits in plain]
    early = decode(3, requests, 0.5)
    assert [[token for commit in commits for token in commit.tokens] for commits in early] == texts
    verifier.widths.clear()
    for number, request in enumerate(requests):
        (alone,) = decode(1, [request], 0.5)
        assert alone == [replace(commit, slot=0) for commit in early[number]]
        assert verifier.widths[1:] == [1 + commit.proposed for commit in alone[1:]]
        so_far, before = list(request.prompt_ids), list(request.prompt_ids)
        for commit in alone:
            before, so_far = so_far, so_far + commit.tokens
            if commit is not alone[0]:
                assert commit.proposed == min(
                    _by_hand(proposal, before[-1], 0.5), request.max_new_tokens - len(before) + 1
                )
        verifier.widths.clear()
    whole = decode(3, requests, 0.0)
    assert sum(c.proposed for cs in early for c in cs) < sum(c.proposed for cs in whole for c in cs)


def _by_hand(proposal: ToyProposal, newest: int, least: float) -> int:
    """How many of three likeliest tokens after `newest` the toy trusts: its trust follows from the token before."""
    first = int(proposal.table[newest].argmax())
    second = int(proposal.table[first].argmax())
    one, two, three = (float(ConfidentToy.trust[token]) for token in (newest, first, second))
    return 0 if one < least else 1 if one * two < least else 2 if one * two * three < least else 3


def test_a_draft_that_foretells_nothing_cannot_end_early() -> None:
    with pytest.raises(ValueError, match="only chains end early, of a draft that foretells"):
        Decoder(ToyVerifier(), ToyProposal(), slots=1, capacity=8, speculative_tokens=2, least_confidence=0.5)


def test_the_chi_square_test_would_notice_a_draft_that_leaks_into_the_text(run_all: RunAll) -> None:
    verifier, total = ToyVerifier(), 2500
    joint = _joint(ToyVerifier(seed=0), Request(PROMPT, 4, 1.0))
    requests = [Request(PROMPT, 4, 1.25, seed=seed) for seed in range(total)]  # a slightly wrong distribution
    decoder = Decoder(verifier, ToyProposal(), slots=64, capacity=8, speculative_tokens=2, drafting="sampled")
    counts: dict[tuple[int, ...], int] = {}
    for commits in run_all(decoder, requests):
        text = tuple(token for commit in commits for token in commit.tokens)
        counts[text] = counts.get(text, 0) + 1
    assert _chi_square_p_value(counts, joint, total) < 1e-6


def test_with_greedy_proposals_a_seed_gives_the_same_text_with_a_draft_and_without(run_all: RunAll) -> None:
    verifier = ToyVerifier()
    requests = [Request(PROMPT, 12, 0.9, 0.95, seed=seed) for seed in range(40)]

    def texts(decoder: Decoder) -> list[list[int]]:
        return [[token for commit in commits for token in commit.tokens] for commits in run_all(decoder, requests)]

    plain = texts(Decoder(verifier, slots=7, capacity=16))
    assert texts(Decoder(verifier, ToyProposal(), slots=5, capacity=16, speculative_tokens=3)) == plain


@pytest.mark.parametrize("drafting", ["greedy", "sampled"])
def test_rounds_depend_on_the_request_alone_and_not_on_its_neighbours(
    run_all: RunAll, drafting: Literal["greedy", "sampled"]
) -> None:
    verifier = ToyVerifier()
    prompts = [[1, 2, 3], [0], [3, 3], [2, 0, 1, 1, 2], [3], [1, 0]]
    requests = [
        Request(prompts[i % 6], 5 + i % 7, temperature=[0.0, 1.0, 0.8][i % 3], seed=i, stop_ids=frozenset({i % 9}))
        for i in range(30)
    ]

    def rounds(decoder: Decoder, some: list[Request]) -> list[list[tuple[list[int], int, int, str | None]]]:
        found = run_all(decoder, some)
        return [[(c.tokens, c.accepted, c.proposed, c.reason) for c in commits] for commits in found]

    def decoder(slots: int) -> Decoder:
        proposal = ToyProposal((0, 1, 3))
        return Decoder(verifier, proposal, slots=slots, capacity=20, speculative_tokens=3, drafting=drafting)

    together = rounds(decoder(8), requests)
    for number, request in enumerate(requests):
        assert rounds(decoder(1), [request]) == [together[number]]


def test_nothing_after_a_stop_token_inside_an_accepted_run_is_kept_or_counted(run_all: RunAll) -> None:
    verifier = ToyVerifier()

    class Oracle(ToyProposal):
        """Proposes exactly what the greedy verifier will say."""

        def propose(self, cache: ListCache, rows: torch.Tensor, *rest: Any) -> torch.Tensor:
            super().propose(cache, rows, *rest)
            proposed = []
            for row in rows.tolist():
                _, before, last = cache.read[row][-1]
                chain = []
                for _ in range(rest[4]):
                    before, last = last, int(verifier.table[before, last].argmax())
                    chain.append(last)
                proposed.append(chain)
            return torch.tensor(proposed)

    (plain,) = run_all(Decoder(verifier, slots=1, capacity=30), [Request(PROMPT, 20)])
    text = [token for commit in plain for token in commit.tokens]
    stop = next(token for token in text if text.index(token) >= 2)
    place = text.index(stop)
    decoder = Decoder(verifier, Oracle(), slots=1, capacity=30, speculative_tokens=8)
    (commits,) = run_all(decoder, [Request(PROMPT, 20, stop_ids=frozenset({stop}))])
    assert [token for commit in commits for token in commit.tokens] == text[: place + 1]
    first, last = commits
    assert (first.accepted, first.proposed) == (0, 0)
    assert last.accepted == last.proposed == len(last.tokens) == place
    assert (last.finished, last.reason) == (True, "stop")


def test_a_round_never_writes_more_than_was_asked_for(run_all: RunAll) -> None:
    for length in range(1, 9):
        decoder = Decoder(ToyVerifier(), ToyProposal(), slots=3, capacity=12, speculative_tokens=4)
        for commits in run_all(decoder, [Request(prompt, length) for prompt in ([1, 2], [3], [0, 1, 2], [2, 2])]):
            assert sum(len(commit.tokens) for commit in commits) == length
            assert all(commit.accepted <= commit.proposed <= 4 for commit in commits)


def test_a_draft_without_speculative_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="speculative_tokens is 0; with a draft it must be at least 1"):
        Decoder(ToyVerifier(), ToyProposal(), slots=1, capacity=8)
