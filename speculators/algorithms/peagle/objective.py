"""P-EAGLE's training: every depth of every chain in one pass, deeper ones at a falling share of the positions.

Depth 0 is computed for all positions of a document up to its last root (its keys and values are what deeper ones
see), depths from 1 on only for the chains that are alive there and were chosen: a query per chain and depth, which
sees the document's prefix and its own chain's depths. The result equals the dense computation over the same elements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from speculators.algorithms.base import Batch, Evaluation, Noise, Total, alone
from speculators.algorithms.chains import Chains, chains_of, documents_of
from speculators.algorithms.feature_noise import uniform
from speculators.algorithms.judging import Criterion, Judge, nothing_to_judge
from speculators.algorithms.peagle.network import PEagleNetwork
from speculators.layers.documents import Documents
from speculators.layers.products import rounded_weight, weights_rounded_once
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.peagle import DepthSampling, PEagle

KeysValues = tuple[torch.Tensor, torch.Tensor]


class PEagleObjective:
    """Loss, gradients and acceptance of a P-EAGLE draft on packed batches; depth d weighs `decay^d`."""

    def __init__(
        self,
        network: PEagleNetwork,
        options: PEagle,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        """`compute_dtype` is the type of the teacher's products; the network brings its own (`mix_precision`)."""
        self.network, self._options, self.steps = network, options, options.depths
        criterion = Criterion(
            losses=options.loss.named(),
            weights=[options.decay**depth for depth in range(options.depths)],
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
        """Loss, measurements and acceptance of one batch, or a part of it.

        With `noise`, features get the recipe's noise and each depth a random share of the positions; without it, every
        depth is judged everywhere. `measured` has `loss` (weighted), `loss_<j>` and `accuracy_<j>` for j from 1, which
        is depth j - 1, and each term of a mix.
        """
        network = self.network
        chains = chains_of(batch, self.steps)
        if noise is not None:
            chains = sampled_depths(chains, self._options.sampling, noise)
        counted = self.judge.count(batch, chains, total)
        if not len(chains.roots):
            return nothing_to_judge(chains)
        with weights_rounded_once(network):
            hidden = [network.norm(out) for out in self._pass(batch, chains, noise)]
            head = network.head_weight, rounded_weight(network.lm_head)
            return self.judge.judge(batch, chains, counted, hidden, head).evaluation

    def _pass(self, batch: Batch, chains: Chains, noise: Noise | None) -> list[torch.Tensor]:
        """The last layer's output at every depth, [A_d, h] each: of the chains that are alive there."""
        network, longest = self.network, max(batch.lengths) + self.steps
        features = batch.aux[chains.context].to(network.norm.weight.dtype)
        if noise is not None and self._options.feature_noise:
            features = features + uniform(features, chains, noise) * self._options.feature_noise
        state = network.fuse(features).to(features.dtype)  # the residual stream is never rounded
        embeddings = network.embed(batch.input_ids[chains.context + 1])
        positions = chains.positions.to(features.device)
        tables = network.tables(positions, longest)

        deeper = _deeper(chains, features.device)
        sizes = [depth.elements for depth in deeper]
        rows = torch.cat([*chains.alive[1:], chains.roots.new_empty(0)])
        depths = torch.repeat_interleave(torch.arange(1, self.steps), torch.tensor(sizes, dtype=torch.int64))
        masked = network.tables(positions[chains.in_context[rows]] + depths.to(positions.device), longest)
        mask_embedding, mask_state = (one.to(state.dtype).expand(len(rows), -1) for one in network.masked())

        for number in range(network.config.layers):
            block, is_last = network.layer(number), number == network.config.layers - 1
            x, residual = block.enter(embeddings, state)
            prefix = block.keys_values(x, tables)
            x_deep, residual_deep = block.enter(mask_embedding, mask_state)
            own = block.keys_values(x_deep, masked)
            attended = _attend_deeper(network, deeper, block.queries(x_deep, masked), prefix, own)
            mask_state = block.leave(attended, residual_deep)
            documents = chains.whole_documents
            if is_last:  # the other layers' keys need their stream everywhere
                rooted = chains.in_context.to(x.device)
                x, residual = x.index_select(0, rooted), residual.index_select(0, rooted)
                tables = tables[0][rooted], tables[1][rooted]
                documents = chains.documents
            attended = network.chain_attention(block.queries(x, tables), prefix, None, documents)
            state = block.leave(attended, residual)
        return [state.index_select(0, chains.alive[0].to(state.device)), *torch.split(mask_state, sizes)]


def sampled_depths(chains: Chains, sampling: DepthSampling, noise: Noise) -> Chains:
    """`chains` with random ones left out of each depth but the first, a share of every document's.

    Of the n chains of a document, `max(ratio^d, least) * n` are trained at depth d where they live that long, each
    depth's among those of the one before.
    """
    ranks = torch.empty(len(chains.roots))
    for span, number in zip(chains.documents, torch.unique(chains.numbers).tolist(), strict=True):
        count = span.queries.stop - span.queries.start
        # A generator of its own, so that what is chosen does not depend on the size of the features' noise.
        seed = int(torch.randint(0, 2**62, (1,), generator=noise(number)))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        ranks[span.queries] = (torch.empty(count).scatter_(0, order, torch.arange(count).float()) + 0.5) / count
    shares = [max(sampling.ratio**depth, sampling.least) for depth in range(len(chains.alive))]
    kept = tuple(alive[ranks[alive] < share] for alive, share in zip(chains.alive, shares, strict=True))
    return replace(chains, alive=kept)


@dataclass(frozen=True)
class _Depth:
    """The elements of one depth from 1 on, the same in every layer."""

    elements: int
    documents: Documents
    places: tuple[torch.Tensor, ...]
    """Where each element's chain stands among the elements of depth 1, 2, ..., its own last: int64 [elements] each."""


def _deeper(chains: Chains, device: torch.device) -> list[_Depth]:
    """All depths from 1 on, for tensors on `device`."""
    found = []
    for depth, alive in enumerate(chains.alive[1:], 1):
        # Who is alive here is alive at every depth before.
        places = tuple(torch.searchsorted(above, alive).to(device) for above in chains.alive[1 : depth + 1])
        found.append(_Depth(len(alive), documents_of(chains, alive), places))
    return found


def _attend_deeper(
    network: PEagleNetwork, depths: list[_Depth], queries: torch.Tensor, prefix: KeysValues, own: KeysValues
) -> torch.Tensor:
    """Attention of depths from 1 on, [E, heads, d], elements depth by depth: to the prefix and to their own chain's."""
    if not len(queries):
        return queries
    sizes = [depth.elements for depth in depths]
    keys, values = (torch.split(one, sizes) for one in own)
    found = []
    for depth, q in zip(depths, torch.split(queries, sizes), strict=True):
        drafted = tuple(
            torch.stack([one[above][place] for above, place in enumerate(depth.places)], 1) for one in (keys, values)
        )
        found.append(network.chain_attention(q, prefix, (drafted[0], drafted[1]), depth.documents))
    return torch.cat(found)


Objective = PEagleObjective
