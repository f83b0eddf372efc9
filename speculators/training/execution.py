"""What a training costs, set from outside of the draft: recomputed MLPs, smaller chunks of the loss, compiled layers,
and on a GPU compiled attention.

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
        is_any = compile_layers(network, report, backend)
        if network.attends and next(network.parameters()).device.type == "cuda":
            attend_flexibly(network, report, backend)
        elif not is_any:
            report.message(f"train.execution.compile {nothing} draft has no layers that are compiled")


def compile_layers(network: DraftNetwork, report: Reporter, backend: str = "inductor") -> bool:
    """Compile what is around attention in decoder layers, until that fails, which is told in a line; are there any?"""
    layers = [module for module in network.modules() if isinstance(module, DecoderLayer)]
    if not layers or not network.computes_layers_in_halves:
        return False
    failed = _Once(report, "torch.compile failed, so training goes on without it")
    for layer in layers:
        for name in COMPILED:
            _replace(layer, name, _compiled(getattr(layer, name), backend, failed))
    return True


def attend_flexibly(network: DraftNetwork, report: Reporter, backend: str = "inductor") -> None:
    """Let the training of `network` attend by FlexAttention, compiled, until that fails, which is told in a line."""
    failed = _Once(report, "FlexAttention could not be compiled, so attention is computed plainly")
    attention = CompiledAttention(failed.tell, backend)
    # Functions rather than methods: a copy of the network is not to copy what they hold.
    _replace(network, "chain_attention", lambda *arguments: attention.chain_attention(*arguments))
    _replace(network, "block_attention", lambda *arguments: attention.block_attention(*arguments))


class _Once:
    """Tells of the first failure, with `consequence` before it, and remembers that there was one."""

    def __init__(self, report: Reporter, consequence: str) -> None:
        self._report, self._consequence = report, consequence
        self.is_told = False

    def tell(self, error: Exception) -> None:
        if not self.is_told:
            said = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
            self._report.message(f"{self._consequence}: {said}")
        self.is_told = True


def _compiled(function: Callable[..., Any], backend: str, failed: _Once) -> Callable[..., Any]:
    """`function` compiled once for batches of all sizes, until something fails to compile; then as it is."""
    compiled = torch.compile(function, dynamic=True, backend=backend)

    def call(*arguments: torch.Tensor) -> Any:
        if failed.is_told or any(one is not None and len(one) < 2 for one in arguments):
            return function(*arguments)  # a size of 0 or 1 would be compiled anew
        try:
            return compiled(*arguments)
        except Exception as error:  # noqa: BLE001  compilers fail in many ways; computing it plainly is always right
            result = function(*arguments)
            failed.tell(error)
            return result

    return call


def _replace(module: torch.nn.Module, name: str, function: Callable[..., Any]) -> None:
    setattr(module, name, function)
