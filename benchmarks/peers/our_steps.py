"""Our training step, and the same loss computed densely: `our_steps.py {ours,dense} FOLDER` prints JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peers.measuring import curve, measure
from peers.workload import Workload, read
from torch.nn import functional

from speculators.algorithms.base import Batch
from speculators.algorithms.chains import find_chains
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.objective import Eagle3Objective
from speculators.layers.products import mix_precision
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.eagle3 import Eagle3, Normalization, TrainingTimeTest
from speculators.recipe.shapes.losses import LossWeights
from speculators.recipe.shapes.train import AdamW, Execution
from speculators.training.execution import apply_execution
from speculators.training.loop import Silent
from speculators.training.optimizers import Optimizer

Losses = Callable[[], tuple[torch.Tensor, list[float]]]
"""The loss to be differentiated, and each step's."""


def main() -> None:
    """Measure one variant."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    workload, draft, head, batch = read(folder)
    torch.set_num_threads(workload.threads)
    losses = VARIANTS[name](workload, draft, head, batch)
    first: list[list[float]] = []
    step = training_step(draft, losses, first)
    measured = measure(step, workload.repeats)
    counted = [len(alive) for alive in find_chains(batch.loss_mask, batch.lengths, workload.steps).alive]
    print(json.dumps({"losses": first[0], "counted": counted, "curve": curve_of(name, folder), **measured}))


def training_step(draft: Eagle3Network, losses: Losses, seen: list[list[float]]) -> Callable[[], None]:
    """One step of the optimizer; what the loss was before it is added to `seen`."""
    optimizer = Optimizer(draft, AdamW(learning_rate=1e-4, weight_decay=0.01, betas=(0.9, 0.999), epsilon=1e-8))

    def step() -> None:
        loss, each = losses()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0, 1.0)
        seen.append(each)

    return step


def curve_of(name: str, folder: Path) -> list[tuple[int, float]]:
    """The loss of all steps while a fresh draft is trained; nothing unless the workload asks for it."""
    workload, draft, head, batch = read(folder)
    losses = VARIANTS[name](workload, draft, head, batch)

    @torch.no_grad()
    def judged() -> float:
        return sum(losses()[1])

    return curve(training_step(draft, losses, []), judged, workload.curve) if workload.curve else []


def ours(workload: Workload, draft: Eagle3Network, head: VerifierHead, batch: Batch) -> Losses:
    """Our objective: along chains only."""
    if workload.dtype != torch.float32:
        mix_precision(draft, workload.dtype)
    objective = Eagle3Objective(draft, algorithm(workload), head, compute_dtype=workload.dtype)
    execution = Execution(recompute=workload.recompute, loss_positions=None, compile=workload.compile)
    apply_execution(objective, execution, Silent())

    def losses() -> tuple[torch.Tensor, list[float]]:
        found = objective.evaluate(batch)
        sums = [found.measured[f"loss_{number}"] for number in range(1, workload.steps + 1)]
        return found.loss, [total / count for total, count in sums]

    return losses


def algorithm(workload: Workload) -> Eagle3:
    """KL over the draft's vocabulary, all steps of equal weight."""
    loss = LossWeights(kl=1, rkl=0, jsd=0, ce=0, tv=0, nla=0, lk=0, top_k=0, ce_target="teacher")
    return Eagle3(
        layers=1,
        draft_vocab_size=workload.draft_vocabulary,
        aux_layers=(2, 15, 27),
        training_time_test=TrainingTimeTest(steps=workload.steps, decay=1.0),
        normalization=Normalization(before_residual=True, before_fc=True, per_aux_layer=False, output=False),
        loss=loss,
        reduction="token_mean",
        teacher="renormalized",
        out_of_vocabulary="keep",
        feature_noise=0.0,
        train_embeddings=False,
        train_head=workload.train_head,
    )


def dense(workload: Workload, draft: Eagle3Network, head: VerifierHead, batch: Batch) -> Losses:
    """As the algorithm is usually written: all positions, all pairs, all logits, the teacher kept for all of them."""
    tokens, steps = batch.tokens, workload.steps
    draft.embed_tokens.weight.requires_grad_(False)
    draft.lm_head.weight.requires_grad_(workload.train_head)
    rows = draft.target_ids
    lengths = torch.tensor(batch.lengths)
    document = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    positions = torch.arange(tokens) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    seen = (document[:, None] == document) & (positions[:, None] >= positions)
    chosen = find_chains(batch.loss_mask, batch.lengths, steps)  # only which rows count in the mean
    counted = [torch.zeros(tokens).index_fill_(0, chosen.roots[alive], 1.0) for alive in chosen.alive]
    head_rows = head.weight if rows is None else head.weight[rows]

    def losses() -> tuple[torch.Tensor, list[float]]:
        with torch.autocast("cpu", workload.dtype, enabled=workload.dtype != torch.float32):
            teacher = functional.linear(head.normed(batch.last), head_rows).float().softmax(-1)
            state = draft.fuse(batch.aux).float()
            each: list[torch.Tensor] = []
            keys: list[torch.Tensor] = []
            values: list[torch.Tensor] = []
            for number in range(steps):
                ids = batch.input_ids[(torch.arange(tokens) + 1 + number).clamp(max=tokens - 1)]
                tables = draft.tables(positions + number, max(batch.lengths) + steps)
                query, key, value, residual = draft.qkv(0, draft.embed(ids), state, tables)
                groups = query.shape[1] // key.shape[1]
                keys.append(key.repeat_interleave(groups, 1))
                values.append(value.repeat_interleave(groups, 1))
                scores = torch.einsum("qhd,khd->hqk", query, keys[0]).float()
                scores = scores.masked_fill(~seen, float("-inf"))
                own = [torch.einsum("qhd,qhd->hq", query, one)[..., None].float() for one in keys[1:]]
                weights = (torch.cat([scores, *own], -1) / query.shape[-1] ** 0.5).softmax(-1)
                attended = torch.einsum("hqk,khd->qhd", weights[..., :tokens], values[0].float())
                for place, one in enumerate(values[1:]):
                    attended = attended + weights[..., tokens + place].T[..., None] * one
                out = draft.finish_layer(0, attended.to(value.dtype), residual).float()
                log_q = draft.logits(out).float().log_softmax(-1)
                target = teacher[(torch.arange(tokens) + 1 + number).clamp(max=tokens - 1)]
                divergence = (target * (target.clamp_min(1e-30).log() - log_q)).sum(-1)
                each.append((divergence * counted[number]).sum() / counted[number].sum())
                state = draft.next_state(out)
        return torch.stack(each).sum(), [one.item() for one in each]

    return losses


VARIANTS = {"ours": ours, "dense": dense}


if __name__ == "__main__":
    main()
