"""Distillation of an independent draft: plain causal passes over whole documents, judged where a draft may begin.

The model has read x_0..x_{t+1} when it predicts x_{t+2}, and reads the same tokens whichever position was drafted from:
step j of the chain rooted at t is step 0 of the chain rooted at t + j, as long as the earlier proposals were right, and
only then does it count. So one prediction at a position is the loss, and all steps of all chains are told from it.
Positions after a document's last newest token, and all but those in the last layer's queries, are not computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from speculators.algorithms.base import Batch, Evaluation, Noise, Total, alone
from speculators.algorithms.chains import Chains, find_chains
from speculators.algorithms.draft_model.network import DraftModelNetwork
from speculators.algorithms.judging import Criterion, Judge, chosen_otherwise, nothing_to_judge
from speculators.layers.causal_attention import causal_attention
from speculators.layers.documents import Documents, DocumentSpan
from speculators.layers.products import weights_rounded_once
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.draft_model import DraftModel


class DraftModelObjective:
    """Loss, gradients and acceptance of a causal model on packed batches; a batch's `aux` is not looked at."""

    def __init__(
        self,
        network: DraftModelNetwork,
        options: DraftModel,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        """`compute_dtype` is the type of the products of teacher and attention; layers bring their own."""
        self.network, self.steps = network, options.steps
        self._product = compute_dtype if network.dtype == torch.float32 else network.dtype
        criterion = Criterion(
            losses=options.loss.named(),
            weights=[1.0],
            reduction=options.reduction,
            is_renormalized=True,
            drops_unknown=False,
            follows_data=options.loss.follows_data,
        )
        self.judge = Judge(criterion, verifier, None, dtype=network.dtype, compute_dtype=compute_dtype, chunk=chunk)

    def evaluate(self, batch: Batch, noise: Noise | None = None, total: Total = alone) -> Evaluation:
        """Loss, measurements and acceptance of one batch, or a part of it; nothing is random.

        `measured` has `loss`, `loss_1`, each term of a mix, and `accuracy_<j>` for j from 1.
        """
        network = self.network
        chains = find_chains(batch.loss_mask.cpu(), batch.lengths, 1)
        counted = self.judge.count(batch, chains, total)
        if not len(chains.roots):
            return nothing_to_judge(chains)
        with weights_rounded_once(network):
            hidden = self._states(batch, chains)
            head = network.head_weight, network.rounded_head(self._product)
            verdict = self.judge.judge(batch, chains, counted, [hidden], head)
        followed, best = find_chains(batch.loss_mask.cpu(), batch.lengths, self.steps), verdict.judged[0].best
        chosen = [
            best[torch.searchsorted(chains.roots, followed.roots[alive] + step)]
            for step, alive in enumerate(followed.alive)
        ]
        return chosen_otherwise(batch, followed, verdict.evaluation, chosen)

    def _states(self, batch: Batch, chains: Chains) -> torch.Tensor:
        """What the head reads after each chain's newest token, [A, h]."""
        network, texts, last = self.network, _texts(chains), self.network.config.layers - 1
        ids = batch.input_ids
        state = network.embed(ids[texts.tokens])
        tables = network.tables(texts.positions.to(ids.device), max(batch.lengths))
        for number in range(last + 1):
            block = network.layer(number)
            x, residual = block.enter(None, state)
            keys, values = (one.to(self._product) for one in block.keys_values(x, tables))
            if number < last:
                queries = block.queries(x, tables).to(self._product)
                attended = causal_attention(queries, keys, values, texts.rows)
            else:
                newest = texts.newest.to(ids.device)
                x, residual = x.index_select(0, newest), residual.index_select(0, newest)
                queries = block.queries(x, (tables[0][newest], tables[1][newest])).to(self._product)
                attended = network.chain_attention(queries, (keys, values), None, texts.documents)
            state = block.leave(attended, residual)
        result: torch.Tensor = network.norm(state)
        return result


Objective = DraftModelObjective


@dataclass(frozen=True)
class _Texts:
    """Of every document with chains, all tokens up to its last newest one, T in all."""

    tokens: torch.Tensor
    """int64 [T], indices into the batch, ascending."""
    positions: torch.Tensor
    """int64 [T]: places in their own documents."""
    rows: tuple[slice, ...]
    """Each document's among the T."""
    newest: torch.Tensor
    """int64 [A]: where each chain's newest token, the one after its root, stands among the T."""
    documents: Documents
    """Queries are chains, keys are the T."""


def _texts(chains: Chains) -> _Texts:
    """Chains know their documents up to the last root; here each has one token more."""
    tokens, positions, newest, spans = [], [], [], []
    for number, document in enumerate(chains.documents):
        keys = slice(document.keys.start + number, document.keys.stop + number + 1)
        own = torch.arange(keys.stop - keys.start)
        positions.append(own)
        tokens.append(own + chains.starts[document.keys.start])
        newest.append(chains.in_context[document.queries] + number + 1)
        spans.append(DocumentSpan(document.queries, keys, document.visible + 1))
    rows = tuple(span.keys for span in spans)
    return _Texts(torch.cat(tokens), torch.cat(positions), rows, torch.cat(newest), Documents(tuple(spans)))
