"""EAGLE-3's training: training-time test along chains, exactly, at the price of the positions that are drafted from.

Step j of a chain attends to the step-0 keys of its document up to its root and to its own earlier steps, so nothing
but those keys and values is ever needed of a position without a chain (below the last of several layers: its step-0
stream as well). Everything else is computed for chains alone. The result equals the dense computation's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from speculators.algorithms.base import Accepted, Batch, Evaluation, Measured
from speculators.algorithms.chains import Chains, find_chains
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.attention import chain_attention
from speculators.layers.products import mix_precision, rounded_weight, weights_rounded_once
from speculators.layers.vocabulary import Teacher, VerifierHead
from speculators.losses.chunked import Judged, StepRows, chunked_loss
from speculators.losses.distributions import LOSSES, NEED_TRUE_MASS, Target
from speculators.recipe.shapes.eagle3 import Eagle3
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Targets:
    """The positions whose distributions the batch's steps are compared with.

    `positions` int64 [U] ascending, indices into the batch; `of_step[j]` int64 [A_j] places the rows of step j in it.
    """

    positions: torch.Tensor
    of_step: tuple[torch.Tensor, ...]


class Eagle3Objective:
    """Loss, gradients and acceptance of an EAGLE-3 draft on packed batches.

    The loss is `sum_j decay^j * mean(loss of step j)`; the mean is over the step's positions in the batch
    (`token_mean`), over documents of the document's mean (`sequence_mean`), or the sum over all tokens of the batch,
    prompts included (`padded_mean`). Positions whose most likely token the draft does not have are kept or dropped
    (`out_of_vocabulary`) in the loss, and always count as misses in the accuracy.
    """

    def __init__(
        self,
        network: Eagle3Network,
        options: Eagle3,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        """`compute_dtype` is the type of the teacher's products; the network brings its own (`mix_precision`)."""
        self._network, self._options, self._chunk = network, options, chunk
        self._steps = options.training_time_test.steps
        self._losses = _weights(options)
        with_mass = options.teacher == "unrenormalized" or bool(NEED_TRUE_MASS & self._losses.keys())
        self._target_ids = network.target_ids
        self._teacher = Teacher(verifier, self._target_ids, with_mass=with_mass, compute_dtype=compute_dtype)
        network.embed_tokens.weight.requires_grad_(options.train_embeddings)
        network.lm_head.weight.requires_grad_(options.train_head)

    @property
    def network(self) -> Eagle3Network:
        """The draft that is trained."""
        return self._network

    @property
    def steps(self) -> int:
        """Steps of training-time test."""
        return self._steps

    def draft_config(self) -> dict[str, Any]:
        """The draft's part of the checkpoint's config.json."""
        return self._network.config.to_config_json()

    def evaluate(self, batch: Batch, noise: torch.Generator | None = None) -> Evaluation:
        """Loss, measurements and acceptance of one batch; `noise` adds the recipe's feature noise.

        `measured` has `loss` (weighted), `loss_<j>`, `accuracy_<j>` for j from 1, and each term of a mix.
        """
        chains = find_chains(batch.loss_mask.cpu(), batch.lengths, self._steps)
        if not len(chains.roots):
            nothing = torch.zeros((), requires_grad=torch.is_grad_enabled())
            return Evaluation(nothing, {}, Accepted(chains.roots, chains.roots))
        with weights_rounded_once(self._network):
            return self._judged(batch, chains, noise)

    def _judged(self, batch: Batch, chains: Chains, noise: torch.Generator | None) -> Evaluation:
        outs = self._unroll(batch, chains, noise)
        targets = _targets(chains)
        rows = self._rows(batch, chains, targets, outs)
        last = batch.last[targets.positions]
        total, judged = chunked_loss(
            rows,
            self._head_weight,
            rounded_weight(self._network.lm_head),
            partial(self._target, last),
            len(targets.positions),
            self._losses,
            self._chunk,
        )
        hits = [self._hits(batch, chains, step, one) for step, one in enumerate(judged)]
        measured = _measure(total.item(), rows, judged, hits)
        return Evaluation(total, measured, _accepted(chains, hits))

    def _unroll(self, batch: Batch, chains: Chains, noise: torch.Generator | None) -> list[torch.Tensor]:
        """The last layer's output of every chain at every step, [A, h] each."""
        network, ids = self._network, batch.input_ids
        longest = max(batch.lengths) + self._steps
        features = batch.aux[chains.context].to(network.norm.weight.dtype)
        if noise is not None and self._options.feature_noise:
            uniform = torch.rand(features.shape, generator=noise, dtype=features.dtype)
            features = features + (2 * uniform - 1) * self._options.feature_noise
        state = network.fuse(features).to(features.dtype)  # the residual stream is never rounded
        positions = chains.positions
        state, prefix = self._first_step(chains, ids[chains.context + 1], state, longest)
        outs = [state]
        own: list[list[KeysValues]] = [[] for _ in prefix]
        rooted = positions[chains.in_context]
        for step in range(1, self._steps):
            # Tokens beyond a document's end belong to chains that no longer count.
            newest = (chains.roots + 1 + step).clamp_(max=len(ids) - 1)
            embeddings = network.embed(ids[newest])
            tables = network.tables(rooted + step, longest)
            state = network.next_state(state)
            for layer, keys_values in enumerate(prefix):
                q, k, v, residual = network.qkv(layer, embeddings, state, tables)
                own[layer].append((k, v))
                drafted = (
                    torch.stack([pair[0] for pair in own[layer]], 1),
                    torch.stack([pair[1] for pair in own[layer]], 1),
                )
                attended = chain_attention(q, keys_values, drafted, chains.documents)
                state = network.finish_layer(layer, attended, residual)
            outs.append(state)
        return outs

    def _first_step(
        self, chains: Chains, next_ids: torch.Tensor, state: torch.Tensor, longest: int
    ) -> tuple[torch.Tensor, list[KeysValues]]:
        """Step 0: the stream [A, h] of the chains after the last layer, and each layer's keys and values [C, kv, d]."""
        network = self._network
        embeddings = network.embed(next_ids)
        tables = network.tables(chains.positions, longest)
        prefix: list[KeysValues] = []
        for number in range(network.config.layers):
            block = network.layer(number)
            x, residual = block.enter(embeddings, state)
            prefix.append(block.keys_values(x, tables))
            documents = chains.whole_documents
            if number == network.config.layers - 1:  # the other layers' keys need their stream everywhere
                x, residual = (one.index_select(0, chains.in_context) for one in (x, residual))
                tables = tables[0][chains.in_context], tables[1][chains.in_context]
                documents = chains.documents
            attended = chain_attention(block.queries(x, tables), prefix[number], None, documents)
            state = block.leave(attended, residual)
        return state, prefix

    def _rows(self, batch: Batch, chains: Chains, targets: _Targets, outs: list[torch.Tensor]) -> list[StepRows]:
        """What the head reads at each step, with the weight of every row in the loss."""
        rows = []
        for step, out in enumerate(outs):
            alive = chains.alive[step]
            weights = torch.ones(len(alive), dtype=self._network.norm.weight.dtype)
            if self._options.out_of_vocabulary == "drop" and self._network.config.has_vocabulary_map:
                weights = weights * self._network.t2d[batch.argmax[chains.roots[alive] + 1 + step]]
            weights = self._reduced(weights, chains.numbers[alive], batch)
            weights = weights * self._options.training_time_test.decay**step
            rows.append(StepRows(self._network.norm(out.index_select(0, alive)), targets.of_step[step], weights))
        return rows

    def _reduced(self, counted: torch.Tensor, documents: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Weights [n] that make a sum over rows the mean the recipe asks for; `counted` is 1 where a row counts."""
        if self._options.reduction == "padded_mean":
            return counted / batch.tokens
        if self._options.reduction == "token_mean":
            return counted / counted.sum().clamp(min=1)
        sizes = counted.new_zeros(len(batch.lengths)).index_add_(0, documents, counted)
        return counted / sizes.clamp(min=1)[documents] / (sizes > 0).sum().clamp(min=1)

    def _target(self, last: torch.Tensor, where: slice) -> Target:
        logits, total = self._teacher(last[where])
        dtype = self._network.norm.weight.dtype
        is_renormalized = self._options.teacher == "renormalized"
        return Target(logits.to(dtype), None if total is None else total.to(dtype), is_renormalized)

    def _hits(self, batch: Batch, chains: Chains, step: int, judged: Judged) -> torch.Tensor:
        """Where a step's most likely token is the verifier's own choice over its whole vocabulary, bool [A_j]."""
        best = judged.best if self._target_ids is None else self._target_ids[judged.best]
        return best == batch.argmax[chains.roots[chains.alive[step]] + 1 + step]

    @property
    def _head_weight(self) -> torch.Tensor:
        weight = self._network.lm_head.weight
        assert isinstance(weight, torch.Tensor)  # noqa: S101  a linear layer's weight
        return weight


def build_objective(
    options: Eagle3,
    facts: VerifierFacts,
    weights: VerifierWeights,
    vocabulary: DraftVocabulary,
    *,
    aux_layers: Sequence[int],
    precision: str,
    seed: int,
    device: torch.device | str = "cpu",
) -> Eagle3Objective:
    """A draft for a verifier, freshly initialised from `seed`, ready to be trained on `device`.

    `aux_layers` are the streams that the features really have; `precision` is the type of the matrix products.
    """
    network = Eagle3Network(
        Eagle3Config.for_verifier(facts, options, draft_vocab_size=vocabulary.draft_vocab_size, aux_layers=aux_layers)
    )
    network.start_from(
        embedding=weights.embedding,
        head=weights.head,
        norm=weights.norm,
        generator=torch.Generator().manual_seed(seed),
        d2t=vocabulary.d2t,
        t2d=vocabulary.t2d,
    )
    network.to(device)
    compute_dtype: torch.dtype = getattr(torch, precision)
    if compute_dtype != torch.float32:
        mix_precision(network, compute_dtype)
    head = VerifierHead(weights.head.to(device), weights.norm.to(device), weights.eps, weights.scale, weights.softcap)
    return Eagle3Objective(network, options, head, compute_dtype=compute_dtype)


def _weights(options: Eagle3) -> dict[str, float]:
    losses = {name: float(getattr(options.loss, name)) for name in LOSSES}
    return {name: weight for name, weight in losses.items() if weight}


def _targets(chains: Chains) -> _Targets:
    per_step = [chains.roots[alive] + 1 + step for step, alive in enumerate(chains.alive)]
    positions = torch.unique(torch.cat(per_step))
    return _Targets(positions, tuple(torch.searchsorted(positions, one) for one in per_step))


def _accepted(chains: Chains, hits: list[torch.Tensor]) -> Accepted:
    standing = torch.ones(len(chains.roots), dtype=torch.bool)
    lengths = torch.zeros(len(chains.roots), dtype=torch.int64)
    for alive, hit in zip(chains.alive, hits, strict=True):
        correct = torch.zeros_like(standing)
        correct[alive] = hit
        standing &= correct
        lengths += standing
    return Accepted(chains.roots + 1, lengths)


def _measure(total: float, rows: list[StepRows], judged: list[Judged], hits: list[torch.Tensor]) -> Measured:
    measured: Measured = {"loss": (total, 1.0)}
    terms: Mapping[str, tuple[float, float]]
    for step, (row, one, hit) in enumerate(zip(rows, judged, hits, strict=True), start=1):
        counted = row.weights > 0
        measured[f"loss_{step}"] = float(one.values[counted].sum()), float(counted.sum())
        measured[f"accuracy_{step}"] = float(hit.sum()), float(len(hit))
        if len(one.terms) > 1:
            terms = {
                f"{name}_{step}": (float(term[counted].sum()), float(counted.sum())) for name, term in one.terms.items()
            }
            measured.update(terms)
    return measured
