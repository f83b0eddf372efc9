"""What a training costs, set from outside of the draft: recomputed MLPs, smaller chunks of the loss, compiled layers
and loss, and on a GPU compiled attention.

None of it changes what is learnt, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from speculators.algorithms.base import DraftNetwork, Objective
from speculators.algorithms.judging import Judge
from speculators.layers.decoder import DecoderLayer, GatedMLP
from speculators.pipeline.step import Reporter
from speculators.recipe.shapes.train import Execution
from speculators.training.compiled_attention import CompiledAttention
from speculators.training.compiled_loss import CompiledComparison
from speculators.training.first_failure import FirstFailure

COMPILED = ("enter", "leave")
"""The halves of a decoder layer around its attention, whose sizes follow the batch."""


def apply_execution(objective: Objective, execution: Execution, report: Reporter, backend: str = "inductor") -> None:
    """Change how `objective` is computed, as `execution` says; `backend` is torch.compile's.

    What does nothing for this algorithm is told in a line each.
    """
    network, nothing = objective.network, "does nothing: this algorithm's"
    if execution.loss_positions is not None:
        judge = getattr(objective, "judge", None)
        if isinstance(judge, Judge):
            judge.chunk = execution.loss_positions
        else:
            report.message(f"train.execution.loss_positions {nothing} loss is not made in chunks")
    if execution.recompute:
        inner = [module for module in network.modules() if isinstance(module, GatedMLP)]
        for mlp in inner:
            _replace(mlp, "forward", partial(checkpoint, mlp.forward, use_reentrant=False))
        if not inner:
            report.message(f"train.execution.recompute {nothing} draft has no MLPs of decoder layers")
    if execution.compile:
        failed = FirstFailure(report, "torch.compile failed, so training goes on without it")
        is_any = any([compile_layers(network, failed, backend), compile_loss(objective, failed, backend)])
        if network.attends and next(network.parameters()).device.type == "cuda":
            attend_flexibly(network, report, backend)
        elif not is_any:
            report.message(f"train.execution.compile {nothing} draft has no layers that are compiled, nor its loss")


def compile_layers(network: DraftNetwork, failed: FirstFailure, backend: str = "inductor") -> bool:
    """Compile what is around attention in decoder layers, until something fails; are there any?"""
    layers = [module for module in network.modules() if isinstance(module, DecoderLayer)]
    if not layers or not network.computes_layers_in_halves:
        return False
    for layer in layers:
        for name in COMPILED:
            _replace(layer, name, _compiled(getattr(layer, name), backend, failed))
    return True


def compile_loss(objective: Objective, failed: FirstFailure, backend: str = "inductor") -> bool:
    """Compile what compares distributions, until something fails; does this objective?"""
    judge = getattr(objective, "judge", None)
    if isinstance(judge, Judge):
        judge.compare = CompiledComparison(failed, backend)
    return isinstance(judge, Judge)


def attend_flexibly(network: DraftNetwork, report: Reporter, backend: str = "inductor") -> None:
    """Let the training of `network` attend by FlexAttention, compiled, until that fails, which is told in a line."""
    failed = FirstFailure(report, "FlexAttention could not be compiled, so attention is computed plainly")
    attention = CompiledAttention(failed, backend)
    # Functions rather than methods: a copy of the network is not to copy what they hold.
    _replace(network, "chain_attention", lambda *arguments: attention.chain_attention(*arguments))
    _replace(network, "block_attention", lambda *arguments: attention.block_attention(*arguments))


def _compiled(function: Callable[..., Any], backend: str, failed: FirstFailure) -> Callable[..., Any]:
    """`function` compiled once for batches of all sizes, until something fails to compile; then as it is."""
    compiled = torch.compile(function, dynamic=True, backend=backend)

    def call(*arguments: torch.Tensor) -> Any:
        if failed.is_told or any(one is not None and len(one) < 2 for one in arguments):
            return function(*arguments)  # a size of 0 or 1 would be compiled anew
        try:
            return compiled(*arguments)
        except Exception as error:  # noqa: BLE001  the plain way is always right
            result = function(*arguments)
            failed.tell(error)
            return result

    return call


def _replace(module: torch.nn.Module, name: str, function: Callable[..., Any]) -> None:
    setattr(module, name, function)
