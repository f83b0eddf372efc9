"""EAGLE-3's training: training-time test along chains, exactly, at the price of the positions that are drafted from.

Step j of a chain attends to the step-0 keys of its document up to its root and to its own earlier steps, so nothing
but those keys and values is ever needed of a position without a chain (below the last of several layers: its step-0
stream as well). Everything else is computed for chains alone. The result equals the dense computation's.
"""

from __future__ import annotations

import torch

from speculators.algorithms.base import Batch, Evaluation, Noise, Total, alone
from speculators.algorithms.chains import Chains, chains_of
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.feature_noise import uniform
from speculators.algorithms.judging import Criterion, Judge, nothing_to_judge
from speculators.layers.products import rounded_weight, weights_rounded_once
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.eagle3 import Eagle3

KeysValues = tuple[torch.Tensor, torch.Tensor]


class Eagle3Objective:
    """Loss, gradients and acceptance of an EAGLE-3 draft on packed batches; step j weighs `decay^j`."""

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
        self.network, self._options = network, options
        self.steps = options.training_time_test.steps
        criterion = Criterion(
            losses=options.loss.named(),
            weights=[options.training_time_test.decay**step for step in range(self.steps)],
            reduction=options.reduction,
            is_renormalized=options.teacher == "renormalized",
            drops_unknown=options.out_of_vocabulary == "drop",
            follows_data=options.loss.follows_data,
        )
        dtype = network.norm.weight.dtype
        self.judge = Judge(
            criterion, verifier, network.target_ids, dtype=dtype, compute_dtype=compute_dtype, chunk=chunk
        )
        network.embed_tokens.weight.requires_grad_(options.train_embeddings)
        network.lm_head.weight.requires_grad_(options.train_head)

    def evaluate(self, batch: Batch, noise: Noise | None = None, total: Total = alone) -> Evaluation:
        """Loss, measurements and acceptance of one batch, or a part of it; `noise` adds the recipe's feature noise.

        `measured` has `loss` (weighted), `loss_<j>`, `accuracy_<j>` for j from 1, and each term of a mix.
        """
        network = self.network
        chains = chains_of(batch, self.steps)
        counted = self.judge.count(batch, chains, total)
        if not len(chains.roots):
            return nothing_to_judge(chains)
        alive = [some.to(batch.aux.device) for some in chains.alive]
        with weights_rounded_once(network):
            outs = self._unroll(batch, chains, noise)
            hidden = [network.norm(out.index_select(0, some)) for out, some in zip(outs, alive, strict=True)]
            head = network.head_weight, rounded_weight(network.lm_head)
            return self.judge.judge(batch, chains, counted, hidden, head).evaluation

    def _unroll(self, batch: Batch, chains: Chains, noise: Noise | None) -> list[torch.Tensor]:
        """The last layer's output of every chain at every step, [A, h] each.

        Indices go to the device before anything is computed: later, a GPU would be waited for.
        """
        network, ids = self.network, batch.input_ids
        roots, in_context = chains.roots.to(ids.device), chains.in_context.to(ids.device)
        longest = max(batch.lengths) + self.steps
        features = batch.aux[chains.context].to(network.norm.weight.dtype)
        if noise is not None and self._options.feature_noise:
            features = features + uniform(features, chains, noise) * self._options.feature_noise
        state = network.fuse(features).to(features.dtype)  # the residual stream is never rounded
        positions = chains.positions.to(features.device)
        state, prefix = self._first_step(chains, in_context, ids[chains.context + 1], state, longest)
        outs = [state]
        own: list[list[KeysValues]] = [[] for _ in prefix]
        rooted = positions[in_context]
        for step in range(1, self.steps):
            # Tokens beyond a document's end belong to chains that no longer count.
            newest = (roots + 1 + step).clamp_(max=len(ids) - 1)
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
                attended = network.chain_attention(q, keys_values, drafted, chains.documents)
                state = network.finish_layer(layer, attended, residual)
            outs.append(state)
        return outs

    def _first_step(
        self, chains: Chains, rooted: torch.Tensor, next_ids: torch.Tensor, state: torch.Tensor, longest: int
    ) -> tuple[torch.Tensor, list[KeysValues]]:
        """Step 0: the stream [A, h] of the chains after the last layer, and each layer's keys and values [C, kv, d].

        `rooted` int64 [A] is where the chains' roots stand in the context.
        """
        network = self.network
        embeddings = network.embed(next_ids)
        tables = network.tables(chains.positions.to(state.device), longest)
        prefix: list[KeysValues] = []
        for number in range(network.config.layers):
            block = network.layer(number)
            x, residual = block.enter(embeddings, state)
            prefix.append(block.keys_values(x, tables))
            documents = chains.whole_documents
            if number == network.config.layers - 1:  # the other layers' keys need their stream everywhere
                x, residual = x.index_select(0, rooted), residual.index_select(0, rooted)
                tables = tables[0][rooted], tables[1][rooted]
                documents = chains.documents
            attended = network.chain_attention(block.queries(x, tables), prefix[number], None, documents)
            state = block.leave(attended, residual)
        return state, prefix


Objective = Eagle3Objective
