"""The one decoding loop: continuous batching, with a draft or without, for generation, acceptance and the server.

A step reads the prompts that wait, or decodes one round of everything that runs: the draft proposes up to k tokens per
sequence, the verifier reads them in one pass, the ones that stand are committed with one more of the verifier's own.
Running sequences always occupy the first rows of the caches, so that a pass reads them without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch

from speculators.decoding.chain import DraftSide, Verdict, agreement, by_ratio
from speculators.decoding.drafter import Drafter, Proposed
from speculators.decoding.models import Output, Proposal, SeeingVerifier, TreeVerifier, Verifier
from speculators.decoding.request import Commit, Request
from speculators.decoding.sampling import Uniforms, choose, distributions
from speculators.decoding.tree import follow
from speculators.layers.trees import AnyShape

Drafting = Literal["greedy", "sampled"]


@dataclass
class _Sequence:
    """A running request. Between rounds the verifier's cache holds everything but the newest token, `newest`."""

    slot: int
    request: Request
    uniforms: Uniforms
    draft_uniforms: Uniforms
    newest: int = 0
    length: int = 0
    """Positions in the verifier's cache."""
    produced: int = 0
    unread: list[int] = field(default_factory=list)
    """The tokens after the positions which the verifier has read and the draft has not."""
    is_fresh: bool = False
    """Whether the last prompt token itself has still to be read."""

    def limit(self, k: int) -> int:
        """How many proposals the next round may judge: the verifier always adds one token of its own."""
        return 0 if self.is_fresh else min(k, self.request.max_new_tokens - self.produced - 1)


class Decoder:
    """Decodes up to `slots` requests at once, each of at most `capacity` tokens, prompt and answer together.

    With a `proposal`, rounds verify up to `speculative_tokens` proposals; the text (greedy) or its distribution
    (sampling) is the verifier's own. `drafting` says how proposals are made for sampled requests: "greedy" takes the
    draft's most likely token, as vLLM does, "sampled" draws with the request's own temperature. `prefill_tokens`
    bounds the padded size of a batch of prompts. With a `tree`, every round verifies a tree of that shape instead of a
    chain; `speculative_tokens` is then its depth, and proposals are greedy. With `least_confidence` above 0, each
    sequence's proposals end where the draft's own trust that all so far will stand falls below it: fewer are verified.
    """

    def __init__(
        self,
        verifier: Verifier,
        proposal: Proposal | None = None,
        *,
        slots: int,
        capacity: int,
        speculative_tokens: int = 0,
        drafting: Drafting = "greedy",
        prefill_tokens: int = 4096,
        tree: AnyShape | None = None,
        least_confidence: float = 0.0,
    ) -> None:
        if tree is not None and (drafting != "greedy" or not hasattr(proposal, "propose_tree")):
            raise ValueError("trees are made of the likeliest tokens, by a draft that can continue several at once")
        if least_confidence and (tree is not None or not getattr(proposal, "foretells_acceptance", False)):
            raise ValueError("only chains end early, of a draft that foretells whether its tokens are accepted")
        if proposal is not None and tree is None and speculative_tokens < 1:
            raise ValueError(f"speculative_tokens is {speculative_tokens}; with a draft it must be at least 1")
        self._verifier = verifier
        self._k = 0 if proposal is None else speculative_tokens if tree is None else tree.depth
        self._drafting, self._prefill_tokens = drafting, prefill_tokens
        self.slots, self.capacity = slots, capacity
        self._tree = tree
        beyond, drafted = (self._k, self._k) if tree is None else (tree.nodes, tree.drafted + self._k)
        self._cache = verifier.new_cache(slots, capacity + beyond + 1)
        room = capacity + drafted + 1
        self._drafter = None if proposal is None else Drafter(proposal, slots, room, self._k, least_confidence)
        self._rows: list[_Sequence | None] = [None] * slots
        self._waiting: list[_Sequence] = []
        self._numbers = torch.arange(slots)
        self._issued = 0

    @property
    def free(self) -> int:
        """How many more requests can be admitted now."""
        return sum(row is None for row in self._rows) - len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self._waiting and all(row is None for row in self._rows)

    def admit(self, request: Request) -> int:
        """Take a request; its first token comes with one of the next steps. Returns its slot, a number never reused.

        Raises ValueError when no slot is free (see `free`) or the request cannot fit.
        """
        if self.free < 1:
            raise ValueError(f"all {self.slots} slots are taken; release one or step until a request finishes")
        needed = len(request.prompt_ids) + request.max_new_tokens
        if needed > self.capacity:
            raise ValueError(
                f"the request needs {needed} tokens ({len(request.prompt_ids)} of prompt, {request.max_new_tokens} to "
                f"write), more than the capacity of {self.capacity}"
            )
        slot, self._issued = self._issued, self._issued + 1
        draft_seed = None if request.seed is None else f"draft {request.seed}"
        self._waiting.append(_Sequence(slot, request, Uniforms(request.seed), Uniforms(draft_seed)))
        return slot

    def release(self, slot: int) -> None:
        """Forget a request at once, waiting or running; a finished or unknown slot is no error."""
        self._waiting = [one for one in self._waiting if one.slot != slot]
        self._rows = [None if one is not None and one.slot == slot else one for one in self._rows]

    def step(self) -> list[Commit]:
        """Do one piece of work and return what it added, at most one commit a request; empty when idle.

        Prompts that wait are read first. A single one, or several of one length, gets its first token from that
        pass; prompts of different lengths get theirs from the round that follows within the same step.
        """
        commits: list[Commit] = []
        if self._waiting:
            commits = self._read_prompts()
        if not commits and any(row is not None for row in self._rows):
            commits = self._round()
        return commits

    # Prompts

    def _read_prompts(self) -> list[Commit]:
        """Read all waiting prompts; return commits for those whose pass gave their first token too."""
        waiting = sorted(self._waiting, key=lambda one: len(one.request.prompt_ids))
        self._waiting = []
        empty = [row for row, one in enumerate(self._rows) if one is None]
        commits: list[Commit] = []
        while waiting:
            group = _one_batch(waiting, self._prefill_tokens)
            del waiting[: len(group)]
            rows, empty = empty[: len(group)], empty[len(group) :]
            for row, one in zip(rows, group, strict=True):
                self._rows[row] = one
            self._cache.crop(torch.tensor(rows), 0)
            shortest, longest = len(group[0].request.prompt_ids), len(group[-1].request.prompt_ids)
            if shortest == longest:
                commits += self._read_level(rows, group, longest)
            else:
                self._read_ragged(rows, group)
        return commits

    def _read_level(self, rows: list[int], group: list[_Sequence], length: int) -> list[Commit]:
        """Prompts of one length: the whole prompt in one pass, and the first token from its last logits."""
        ids = torch.tensor([list(one.request.prompt_ids) for one in group])
        out = self._read(ids, rows, group, "last")
        if self._drafter is not None:
            self._drafter.read(rows, ids, out, [length - 1] * len(group), self._turns(ids, group))
            self._drafter.keep(rows, ids, out, start=length - 1)
        verdicts = self._agree(group, _logits(out))
        return [self._commit(*each, 0, length) for each in zip(rows, group, verdicts, strict=True)]

    def _read_ragged(self, rows: list[int], group: list[_Sequence]) -> None:
        """Prompts of different lengths: all but the last token of each, padded; the next round reads that one."""
        lengths = [len(one.request.prompt_ids) - 1 for one in group]
        longest = lengths[-1]
        prompts = [
            list(one.request.prompt_ids) + [0] * (longest - length) for one, length in zip(group, lengths, strict=True)
        ]
        padded = torch.tensor(prompts)  # [B, longest + 1]
        out = self._read(padded[:, :-1], rows, group, None)
        self._cache.crop(torch.tensor(rows), lengths)
        if self._drafter is not None:
            self._drafter.read(rows, padded, out, lengths, self._turns(padded[:, :-1], group))
        for one, length in zip(group, lengths, strict=True):
            one.newest, one.length, one.is_fresh = int(one.request.prompt_ids[-1]), length, True

    def _read(
        self, ids: torch.Tensor, rows: list[int], group: list[_Sequence], logits: Literal["all", "last"] | None
    ) -> Output:
        """The verifier's pass over prompts, with their images."""
        images = [one.request.images for one in group]
        if not any(images):
            return self._pass(ids, rows, logits)
        verifier = cast("SeeingVerifier", self._verifier)
        return verifier.forward(ids, self._cache, torch.tensor(rows), logits, images=images)

    def _turns(self, ids: torch.Tensor, group: list[_Sequence]) -> torch.Tensor | None:
        """The draft's rotary positions [B, q] of prompts with images; None where they are the tokens' places."""
        images = [one.request.images for one in group]
        return cast("SeeingVerifier", self._verifier).positions(ids, images) if any(images) else None

    # Rounds

    def _round(self) -> list[Commit]:
        """Propose, verify, commit: one verifier pass over everything that runs."""
        self._close_gaps()
        running = [one for one in self._rows if one is not None]
        rows = range(len(running))
        if len(rows) < self.slots:
            self._cache.crop(self._numbers[len(rows) :], 0)
        newest = torch.tensor([[one.newest] for one in running])
        limits = [one.limit(self._k) for one in running]
        k = max(limits)
        if self._drafter is not None and self._tree is not None and k > 0:
            return self._tree_round(self._drafter, self._tree, running, limits)
        if self._drafter is None or k == 0:
            proposed, ids = None, newest
            out = self._pass(ids, rows, "last")
            verdicts = self._agree(running, _logits(out))
        else:
            proposed = self._propose(self._drafter, running, k)
            if proposed.lengths is not None:
                limits = [min(pair) for pair in zip(limits, proposed.lengths, strict=True)]
            verified = proposed.ids[:, : max(limits)]
            ids = torch.cat([newest.to(verified.device), verified], dim=1)
            out = self._pass(ids, rows, "all")
            verdicts = self._judge(running, out, proposed, limits)
        lengths = [one.length + 1 + verdict.accepted for one, verdict in zip(running, verdicts, strict=True)]
        if proposed is not None:
            self._cache.crop(self._numbers[: len(rows)], lengths)
        if self._drafter is not None:
            self._drafter.keep(rows, ids, out)
        return [self._commit(*each) for each in zip(rows, running, verdicts, limits, lengths, strict=True)]

    def _tree_round(
        self, drafter: Drafter, shape: AnyShape, running: list[_Sequence], limits: list[int]
    ) -> list[Commit]:
        """A round with a tree for each sequence: of each the path is kept that the verifier's own choices follow."""
        rows = range(len(running))
        lengths = [one.length - len(one.unread) for one in running]
        tree = drafter.grow(lengths, [one.unread for one in running], shape)
        newest = torch.tensor([[one.newest] for one in running], device=tree.tokens.device)
        verifier = cast("TreeVerifier", self._verifier)
        ids = torch.cat([newest, tree.tokens], dim=1)
        out = verifier.forward(ids, self._cache, self._numbers[: len(rows)], "all", tree)
        choices = self._own(running, _logits(out), tree.depths.tolist())
        proposed = zip(choices, tree.tokens.tolist(), tree.parents.tolist(), limits, strict=True)
        paths = [follow(own, tokens, parents, limit) for own, tokens, parents, limit in proposed]
        drafter.keep(rows, ids, out, paths=[path.nodes for path in paths])
        commits = []
        for row, one, path in zip(rows, running, paths, strict=True):
            self._cache.keep(row, one.length + 1, path.nodes)
            if not one.request.is_greedy:
                one.uniforms.drop(len(path.verdict.tokens))
            length = one.length + 1 + path.verdict.accepted
            commits.append(self._commit(row, one, path.verdict, path.judged, length))
        return commits

    def _propose(self, drafter: Drafter, running: list[_Sequence], k: int) -> Proposed:
        unread = [one.unread for one in running]
        lengths = [one.length - len(one.unread) for one in running]
        if self._drafting == "greedy" or all(one.request.is_greedy for one in running):
            return drafter.propose(lengths, unread, k, None)
        streams = [one.draft_uniforms for one in running]
        return drafter.draw(lengths, unread, k, [one.request for one in running], streams)

    def _judge(self, running: list[_Sequence], out: Output, proposed: Proposed, limits: list[int]) -> list[Verdict]:
        """A verdict for each sequence on at most its limit of the proposals."""
        ids: list[list[int]] = proposed.ids.tolist()
        logits = _logits(out)
        if proposed.draft_ids is None or proposed.q is None:
            return self._agree(running, logits, ids, limits)
        target_ids = None if self._drafter is None else self._drafter.target_ids
        verdicts: dict[int, Verdict] = {}
        drawn = [i for i, one in enumerate(running) if limits[i] and not one.request.is_greedy]
        for i, p in zip(drawn, distributions(logits[drawn], [running[i].request for i in drawn]), strict=True):
            draft = DraftSide(ids[i], proposed.draft_ids[i], proposed.q[i], target_ids)
            verdicts[i] = by_ratio(p, draft, running[i].uniforms, limits[i])
        others = [i for i in range(len(running)) if i not in verdicts]
        agreed = self._agree(
            [running[i] for i in others], logits[others], [ids[i] for i in others], [limits[i] for i in others]
        )
        verdicts.update(zip(others, agreed, strict=True))
        return [verdicts[i] for i in range(len(running))]

    def _agree(
        self,
        running: list[_Sequence],
        logits: torch.Tensor,
        ids: list[list[int]] | None = None,
        limits: list[int] | None = None,
    ) -> list[Verdict]:
        """Verdicts by agreement with the verifier's own choices; without proposals, its next token for each."""
        verdicts = []
        for i, (one, own) in enumerate(zip(running, self._own(running, logits), strict=True)):
            verdict = agreement(own, ids[i], limits[i]) if ids and limits else Verdict(0, own[:1])
            if not one.request.is_greedy:
                one.uniforms.drop(len(verdict.tokens))
            verdicts.append(verdict)
        return verdicts

    def _own(
        self, running: list[_Sequence], logits: torch.Tensor, depths: list[list[int]] | None = None
    ) -> list[list[int]]:
        """What the verifier chooses at every position: the argmax, or a draw with the sequence's next numbers.

        With `depths`, of the nodes of trees, each uses the number that its depth's token in the text would.
        """
        sampled = [i for i, one in enumerate(running) if not one.request.is_greedy]
        if len(sampled) < len(running):
            own: list[list[int]] = logits.argmax(-1).tolist()
        else:
            own = [[] for _ in running]
        if sampled:
            chosen = [running[i] for i in sampled]
            ahead = [one.uniforms.peek(logits.shape[1]) for one in chosen]
            if depths is not None:
                ahead = [[row[depth] for depth in depths[i]] for i, row in zip(sampled, ahead, strict=True)]
            ids: list[list[int]] = choose(logits[sampled], [one.request for one in chosen], ahead).tolist()
            for i, tokens in zip(sampled, ids, strict=True):
                own[i] = tokens
        return own

    # State

    def _pass(self, ids: torch.Tensor, rows: Sequence[int], logits: Literal["all", "last"] | None) -> Output:
        side_by_side = rows[-1] == len(rows) - 1
        numbers = self._numbers[: len(rows)] if side_by_side else torch.tensor(rows)
        return self._verifier.forward(ids, self._cache, numbers, logits)

    def _commit(self, row: int, one: _Sequence, verdict: Verdict, limit: int, length: int) -> Commit:
        """Add a verdict's tokens to a sequence, up to the first stop token; `length`: positions the cache now holds."""
        tokens, accepted = verdict.tokens, verdict.accepted
        reason: Literal["stop", "length"] | None = None
        end = next((i for i, token in enumerate(tokens) if token in one.request.stop_ids), None)
        if end is not None:
            reason = "stop"
            if end < accepted:  # a proposal that stands: those after it were never judged
                tokens, accepted, limit = tokens[: end + 1], end + 1, end + 1
        one.produced += len(tokens)
        if reason is None and one.produced >= one.request.max_new_tokens:
            reason = "length"
        one.newest, one.unread, one.length, one.is_fresh = tokens[-1], tokens, length, False
        if reason is not None:
            self._rows[row] = None
        return Commit(one.slot, list(tokens), accepted, limit, reason is not None, reason)

    def _close_gaps(self) -> None:
        """Move the last running sequences into rows that have become free."""
        rows = self._rows
        first, last = 0, len(rows) - 1
        while True:
            while first < last and rows[first] is not None:
                first += 1
            while last > first and rows[last] is None:
                last -= 1
            if first >= last:
                return
            self._cache.move(last, first)
            if self._drafter is not None:
                self._drafter.move(last, first)
            rows[first], rows[last] = rows[last], None


def _one_batch(waiting: list[_Sequence], tokens: int) -> list[_Sequence]:
    """The first of `waiting` (sorted by prompt length) that go into one padded pass of at most `tokens` tokens.

    A prompt of one token has nothing before its last, so it only goes with its like.
    """
    group = waiting[:1]
    shortest = len(group[0].request.prompt_ids)
    for one in waiting[1:]:
        length = len(one.request.prompt_ids)
        if length * (len(group) + 1) > tokens or (shortest == 1 and length > 1):
            break
        group.append(one)
    return group


def _logits(out: Output) -> torch.Tensor:
    if out.logits is None:
        raise ValueError("the verifier's pass gave no logits although they were asked for")
    return out.logits
