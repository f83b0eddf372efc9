"""The head's training: its chains as they are drafted, exactly, at the price of the positions that are drafted from.

Step j of the chain rooted at t sees the keys that step 0 made of positions up to t, from the verifier's own states, and
its chain's earlier steps: what the cache holds when the head is served. So of positions without a chain only keys and
values are computed. (FastMTP's own training lets step j see the keys of step j everywhere, which no server has.)
"""

from __future__ import annotations

import torch

from speculators.algorithms.base import Batch, Evaluation, Noise, Total, alone
from speculators.algorithms.chains import Chains, chains_of
from speculators.algorithms.judging import Criterion, Judge, nothing_to_judge
from speculators.algorithms.mtp.network import MtpNetwork
from speculators.layers.products import weights_rounded_once
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.mtp import Mtp


class MtpObjective:
    """Loss, gradients and acceptance of a head on packed batches; step j weighs `decay^j / sum_i decay^i`."""

    def __init__(
        self,
        network: MtpNetwork,
        options: Mtp,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        """`compute_dtype` is the type of the products of teacher and head; the layer brings its own."""
        self.network, self.steps = network, options.steps
        weights = [options.decay**step for step in range(options.steps)]
        criterion = Criterion(
            losses=options.loss.named(),
            weights=[weight / sum(weights) for weight in weights],
            reduction=options.reduction,
            is_renormalized=True,
            drops_unknown=False,
            follows_data=options.loss.follows_data,
        )
        self.judge = Judge(criterion, verifier, None, dtype=network.dtype, compute_dtype=compute_dtype, chunk=chunk)
        self._head = network.head, network.head.to(compute_dtype if network.dtype == torch.float32 else network.dtype)

    def evaluate(self, batch: Batch, noise: Noise | None = None, total: Total = alone) -> Evaluation:
        """Loss, measurements and acceptance of one batch, or a part of it; nothing is random.

        `measured` has `loss` (weighted), `loss_<j>`, `accuracy_<j>` for j from 1, and each term of a mix.
        """
        network = self.network
        chains = chains_of(batch, self.steps)
        counted = self.judge.count(batch, chains, total)
        if not len(chains.roots):
            return nothing_to_judge(chains)
        with weights_rounded_once(network):
            outs = self._unroll(batch, chains)
            hidden = [
                network.normed(out.index_select(0, alive.to(out.device)))
                for out, alive in zip(outs, chains.alive, strict=True)
            ]
            return self.judge.judge(batch, chains, counted, hidden, self._head).evaluation

    def _unroll(self, batch: Batch, chains: Chains) -> list[torch.Tensor]:
        """The layer's output of every chain at every step, [A, h] each."""
        network, layer, ids = self.network, self.network.layer, batch.input_ids
        longest, positions = max(batch.lengths) + self.steps, chains.positions.to(ids.device)
        tables = network.tables(positions, longest)
        embeddings = network.embed(ids[chains.context + 1], positions)
        x, residual = layer.enter(embeddings, network.state(batch.last[chains.context]))
        prefix = layer.self_attn.keys_values(x, tables)
        x, residual = x[chains.in_context], residual[chains.in_context]
        queries, gates = layer.self_attn.queries(x, (tables[0][chains.in_context], tables[1][chains.in_context]))
        outs = [layer.leave(network.chain_attention(queries, prefix, None, chains.documents), gates, residual)]
        rooted = positions[chains.in_context]
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for step in range(1, self.steps):
            # Tokens beyond a document's end belong to chains that no longer count.
            newest = (chains.roots + 1 + step).clamp_(max=len(ids) - 1)
            tables = network.tables(rooted + step, longest)
            embeddings = network.embed(ids[newest], (rooted + step).to(ids.device))
            x, residual = layer.enter(embeddings, network.next_state(outs[-1]))
            for found, new in zip((keys, values), layer.self_attn.keys_values(x, tables), strict=True):
                found.append(new)
            own = torch.stack(keys, 1), torch.stack(values, 1)
            queries, gates = layer.self_attn.queries(x, tables)
            outs.append(layer.leave(network.chain_attention(queries, prefix, own, chains.documents), gates, residual))
        return outs


Objective = MtpObjective
