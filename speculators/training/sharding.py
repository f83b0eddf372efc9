"""FSDP2 around a whole objective: parameters, gradients and moments are divided among the processes.

A draft is one layer or a few, so all of it is one group: gathered before a batch, divided again after its gradients
are summed. What an objective does in between needs no knowledge of it, because FSDP's hooks hang on one call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from speculators.algorithms.base import (
    Accepted,
    Batch,
    DraftNetwork,
    Evaluation,
    Measured,
    Noise,
    Objective,
    Total,
    alone,
)
from speculators.training.ranks import Ranks

_Outputs = tuple[torch.Tensor, Measured, Accepted]


class ShardedObjective:
    """An objective whose draft is divided; every process has to call everything, `backward` of the loss included."""

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        """Divide the draft of `objective`, in place, among all `ranks`, which start with the same parameters."""
        self._objective = objective
        self._network: Any = objective.network
        device = next(objective.network.parameters()).device
        mesh = init_device_mesh(device.type, (ranks.count,))
        self._network.forward = self._forward
        group: Any = fully_shard(objective.network, mesh=mesh)
        group.set_gradient_divide_factor(1.0)  # each process has its summands, not its mean
        group.set_force_sum_reduction_for_comms(True)  # gloo has no other

    @property
    def network(self) -> DraftNetwork:
        """The draft."""
        found: DraftNetwork = self._network
        return found

    @property
    def steps(self) -> int:
        """Those of the objective."""
        return self._objective.steps

    def evaluate(self, batch: Batch, noise: Noise | None = None, total: Total = alone) -> Evaluation:
        """As the objective does; a part without chains has a loss with gradients of zero."""
        loss, measured, accepted = self._network(batch, noise, total)
        if not torch.is_grad_enabled():
            self._network.reshard()
        return Evaluation(loss, measured, accepted)

    def _forward(self, batch: Batch, noise: Noise | None, total: Total) -> _Outputs:
        found = self._objective.evaluate(batch, noise, total)
        # Sums over processes need everyone's gradient of everything.
        trained = [one for one in self._network.parameters() if one.requires_grad]
        nothing = torch.stack([one.flatten()[0] * 0 for one in trained]).sum()
        return found.loss.to(nothing.device) + nothing, found.measured, found.accepted


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, put together again if it is divided; then every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """`tensor`, which every process has whole, divided as `model` is, if it is; nothing is sent."""
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)
