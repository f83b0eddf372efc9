"""EAGLE-1's training, and HASS's: features foretold along chains, at the price of the positions that are drafted from.

The first step reads the verifier's features; EAGLE-1 has no other. HASS trains n aligned steps: step j reads what step
j-1 foretold, detached, and attends to the verifier's features up to the chain's root and to its own foretold ones after
it, which is how the draft is used. Keys and values of the first step are needed at every position of a document up to
its last root, everything else for chains alone. The result equals the dense computation's.

    loss = sum over steps of  a * SmoothL1(f^, f) (mean over channels) + b * (- sum p log q) + c * (- sum over the ten
    likeliest v of p(v) log q(v)),  each the mean over the step's positions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from speculators.algorithms.base import Batch, Evaluation, Noise, Total, alone
from speculators.algorithms.chains import Chains, chains_of
from speculators.algorithms.eagle.network import EagleNetwork
from speculators.algorithms.feature_noise import uniform
from speculators.algorithms.judging import Criterion, Judge, Verdict, nothing_to_judge
from speculators.layers.products import weights_rounded_once
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.eagle import Eagle, Hass

NOISE_LENGTH = 512
"""Tokens of a document that gets the recipe's feature noise as it is; noise falls with a document's length."""


class EagleObjective:
    """Loss, gradients and acceptance of a draft on packed batches.

    In training the chains have as many steps as are trained; without noise generators, that is in validation, as many
    as the recipe wants judged, and those that are not trained weigh nothing in the loss.
    """

    def __init__(
        self,
        network: EagleNetwork,
        options: Eagle | Hass,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        """`network` has the verifier's head and norm (`attach`); `compute_dtype` is the type of the heads' products."""
        self.network, self._options = network, options
        trained = options.trained_steps
        self.steps = max(trained, options.judged_steps)
        criterion = Criterion(
            losses=options.loss.named(),
            weights=[1.0] * trained + [0.0] * (self.steps - trained),
            reduction="token_mean",
            is_renormalized=True,
            drops_unknown=False,
            follows_data=options.loss.follows_data,
        )
        dtype = network.embed_tokens.weight.dtype
        self.judge = Judge(criterion, verifier, None, dtype=dtype, compute_dtype=compute_dtype, chunk=chunk)
        self._head = network.verifier_head, network.verifier_head.to(compute_dtype)
        network.embed_tokens.weight.requires_grad_(False)

    def evaluate(self, batch: Batch, noise: Noise | None = None, total: Total = alone) -> Evaluation:
        """Loss, measurements and acceptance of one batch, or a part of it; `noise` adds the recipe's feature noise.

        `measured` has `loss` (weighted), `loss_<j>` of the head's losses, `accuracy_<j>` and `smooth_l1_<j>` for j
        from 1, and each term of a mix.
        """
        steps = self.steps if noise is None else self._options.trained_steps
        chains = chains_of(batch, steps)
        counted = self.judge.count(batch, chains, total)
        if not len(chains.roots):
            return nothing_to_judge(chains)
        with weights_rounded_once(self.network):
            outs = self._unroll(batch, chains, noise)
            hidden = [out.index_select(0, alive.to(out.device)) for out, alive in zip(outs, chains.alive, strict=True)]
            verdict = self.judge.judge(batch, chains, counted, hidden, self._head)
            return self._with_regression(batch, chains, hidden, verdict, counted.share)

    def _with_regression(
        self, batch: Batch, chains: Chains, hidden: Sequence[torch.Tensor], verdict: Verdict, share: float
    ) -> Evaluation:
        """Add the distance between the foretold features and the verifier's to a verdict by the head."""
        evaluation, measured = verdict.evaluation, dict(verdict.evaluation.measured)
        loss = evaluation.loss
        for step in range(min(self._options.trained_steps, len(hidden))):
            target = self.network.features(batch.last[chains.roots[chains.alive[step]] + 1 + step])
            distance = functional.smooth_l1_loss(hidden[step], target, reduction="none").mean(-1)
            loss = loss + self._options.loss.smooth_l1 * torch.dot(distance, verdict.rows[step].weights)
            measured[f"smooth_l1_{step + 1}"] = float(distance.detach().sum()), float(len(distance))
        measured["loss"] = loss.item(), share
        return replace(evaluation, loss=loss, measured=measured)

    def _unroll(self, batch: Batch, chains: Chains, noise: Noise | None) -> list[torch.Tensor]:
        """The layer's output of every chain at every step, [A, h] each."""
        network, layer, ids = self.network, self.network.layer, batch.input_ids
        longest = max(batch.lengths) + len(chains.alive)
        features = network.features(batch.last[chains.context])
        if noise is not None and self._options.feature_noise:
            features = features + uniform(features, chains, noise) * self._noise_sizes(batch, chains)[:, None]
        positions, rooted = chains.positions.to(features.device), chains.in_context.to(features.device)
        tables = network.tables(positions, longest)
        x, stream = layer.enter(None, network.fuse(network.embed(ids[chains.context + 1]), features))
        prefix = layer.keys_values(x, tables)
        x, residual = (one.index_select(0, rooted) for one in (x, stream))
        tables = tables[0][rooted], tables[1][rooted]
        roots = positions[rooted]
        outs: list[torch.Tensor] = []
        own: list[tuple[torch.Tensor, torch.Tensor]] = []
        for step in range(len(chains.alive)):
            if step:
                # Tokens beyond a document's end belong to chains that no longer count.
                newest = (chains.roots + 1 + step).clamp_(max=len(ids) - 1)
                x, residual = layer.enter(None, network.fuse(network.embed(ids[newest]), outs[-1].detach()))
                tables = network.tables(roots + step, longest)
                own.append(layer.keys_values(x, tables))
            drafted = (torch.stack([k for k, _ in own], 1), torch.stack([v for _, v in own], 1)) if own else None
            attended = network.chain_attention(layer.queries(x, tables), prefix, drafted, chains.documents)
            outs.append(layer.leave(attended, residual))
        return outs

    def _noise_sizes(self, batch: Batch, chains: Chains) -> torch.Tensor:
        """Largest noise at each context position [C]: the recipe's, for a document of 512 tokens."""
        lengths = torch.tensor(batch.lengths)
        numbers = torch.searchsorted(lengths.cumsum(0), chains.context, right=True)
        return (self._options.feature_noise * NOISE_LENGTH / lengths[numbers]).to(batch.last.device)


Objective = EagleObjective
