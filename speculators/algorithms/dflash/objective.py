"""DFlash's training: blocks at random anchors, each slot compared with the verifier's distribution at its place.

Keys and values of the context are made at all positions up to a document's last anchor, everything else for blocks
alone. The result equals the dense computation's over the same anchors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from speculators.algorithms.base import Batch, Evaluation, Noise, Total, alone
from speculators.algorithms.blocks import random_anchors, reached
from speculators.algorithms.chains import Chains, chains_of
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.algorithms.judging import Counted, Criterion, Judge, nothing_to_judge
from speculators.layers.products import weights_rounded_once
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.blocks import BlockOptions
from speculators.recipe.shapes.dflash import DFlash, DPace


class BlockObjective:
    """What training of all block drafts has in common: blocks at anchors, computed and handed to the draft's heads."""

    def __init__(
        self,
        network: DFlashNetwork,
        options: BlockOptions,
        weights: Sequence[float],
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        """`weights` are those of the block's predictions in the loss; they are scaled to sum to one.

        `compute_dtype` is the type of the teacher's products; the network brings its own (`mix_precision`).
        """
        self.network, self._anchors = network, options.anchors
        self.steps = network.config.proposed
        criterion = Criterion(
            losses=options.loss.named(),
            weights=[weight / sum(weights) for weight in weights],
            reduction=options.reduction,
            is_renormalized=options.is_renormalized,
            drops_unknown=options.drops_unknown,
            follows_data=options.loss.follows_data,
        )
        dtype = network.norm.weight.dtype
        self.judge = Judge(
            criterion, verifier, network.target_ids, dtype=dtype, compute_dtype=compute_dtype, chunk=chunk
        )
        self._head = network.head_weight.detach().to(compute_dtype)
        if network.config.has_vocabulary_map:
            network.lm_head.requires_grad_(requires_grad=False)

    def evaluate(self, batch: Batch, noise: Noise | None = None, total: Total = alone) -> Evaluation:
        """Loss, measurements and acceptance of one batch, or a part of it.

        With `noise`, blocks are at random anchors; without it, wherever drafting could start. `measured` has `loss`
        (weighted), `loss_<j>` and `accuracy_<j>` for the tokens of a block from 1, and each term of a mix.
        """
        chains = chains_of(batch, self.steps)
        if noise is not None:
            chains = random_anchors(chains, self._anchors, noise)
        counted = self.judge.count(batch, chains, total)
        if not len(chains.roots):
            return nothing_to_judge(chains)
        with weights_rounded_once(self.network):
            states = self.network.norm(block_states(self.network, batch, chains))
            return self._judged_blocks(batch, chains, counted, states)

    def _judged_blocks(self, batch: Batch, chains: Chains, counted: Counted, states: torch.Tensor) -> Evaluation:
        """The evaluation of blocks with the normed `states` [A, B, h]: of the slots that predict."""
        return self._evaluated(batch, chains, counted, slots(chains, states, self.network.config))

    def _evaluated(self, batch: Batch, chains: Chains, counted: Counted, hidden: list[torch.Tensor]) -> Evaluation:
        """The evaluation of what predicts each step, `hidden[j]` [A_j, h]: by the verifier's own head."""
        head = self.network.head_weight.detach(), self._head
        return self.judge.judge(batch, chains, counted, hidden, head).evaluation


class DFlashObjective(BlockObjective):
    """Loss, gradients and acceptance of a DFlash draft on packed batches."""

    def __init__(
        self,
        network: DFlashNetwork,
        options: DFlash,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        weights = [1.0] * network.config.proposed  # D-PACE's are found from batch to batch
        if not isinstance(options.weights, DPace):
            weights = falling(options.weights.gamma, network.config.proposed)
        super().__init__(network, options, weights, verifier, compute_dtype=compute_dtype, chunk=chunk)
        self._weights = options.weights

    def _evaluated(self, batch: Batch, chains: Chains, counted: Counted, hidden: list[torch.Tensor]) -> Evaluation:
        shares = self._shares(batch, chains, counted, hidden)
        head = self.network.head_weight.detach(), self._head
        return self.judge.judge(batch, chains, counted, hidden, head, shares).evaluation

    def _shares(
        self, batch: Batch, chains: Chains, counted: Counted, hidden: list[torch.Tensor]
    ) -> list[torch.Tensor] | None:
        """D-PACE's weights, from the cross-entropies that the draft has now."""
        weights = self._weights
        if not isinstance(weights, DPace):
            return None
        with torch.no_grad():
            head = self.network.head_weight, self._head
            judged = self.judge.judge(batch, chains, counted, hidden, head).judged
            return reached([(-one.terms["ce"]).exp() for one in judged], chains, weights.alpha)


def falling(gamma: float, proposed: int) -> list[float]:
    """Weights exp(-k / gamma) of a block's predictions, from k = 0."""
    return [math.exp(-place / gamma) for place in range(proposed)]


def block_states(network: DFlashNetwork, batch: Batch, chains: Chains) -> torch.Tensor:
    """The stream [A, B, h] of every chain's block after the last layer, before the last norm."""
    config = network.config
    longest, dtype = max(batch.lengths) + config.block_size, network.norm.weight.dtype
    context = network.context(batch.aux[chains.context].to(dtype)).to(dtype)
    positions = chains.positions.to(context.device)
    tables = network.tables(positions, longest)
    width = config.block_size
    state = network.block(batch.input_ids[chains.roots + 1], width).to(dtype)
    places = positions[chains.in_context][:, None] + 1 + torch.arange(width, device=positions.device)
    block_tables = network.tables(places, longest)
    for number in range(config.layers):
        layer = network.layer(number)
        prefix = layer.keys_values(context, tables)
        x, kept = network.mix_in(number, "attention_conv", layer.input_layernorm(state))
        queries, own = layer.queries(x, block_tables), layer.keys_values(x, block_tables)
        mixed = network.block_attention(queries, prefix, own, chains.documents, network.window(number))
        attended = layer.self_attn.o_proj(mixed.flatten(-2))
        state = state + network.mix_out(number, "attention_conv", attended, kept)
        x, kept = network.mix_in(number, "mlp_conv", layer.post_attention_layernorm(state))
        state = state + network.mix_out(number, "mlp_conv", layer.mlp(x), kept)
    return state


def slots(chains: Chains, state: torch.Tensor, config: DFlashConfig) -> list[torch.Tensor]:
    """What of the blocks [A, B, h] predicts each step of the chains that are alive there, [A_j, h]."""
    first = config.block_size - config.proposed
    return [state[alive, first + step] for step, alive in enumerate(chains.alive)]


Objective = DFlashObjective
