"""What a training costs, set from outside of the draft: recomputed MLPs, smaller chunks of the loss, compiled layers.

None of it changes what is learnt, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from speculators.algorithms.base import Objective
from speculators.algorithms.judging import Judge
from speculators.layers.decoder import DecoderLayer, GatedMLP
from speculators.pipeline.step import Reporter
from speculators.recipe.shapes.train import Execution

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
        failed, layers = _Once(report), [module for module in network.modules() if isinstance(module, DecoderLayer)]
        if not layers or not network.computes_layers_in_halves:
            report.message(f"train.execution.compile {nothing} draft has no layers that are compiled")
            return
        for layer in layers:
            for name in COMPILED:
                _replace(layer, name, _compiled(getattr(layer, name), backend, failed))


class _Once:
    """Tells of the first failure, and remembers that there was one."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self.is_told = False

    def tell(self, error: Exception) -> None:
        if not self.is_told:
            said = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
            self._report.message(f"torch.compile failed, so training goes on without it: {said}")
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
