"""AdamW for everything, or Muon for the hidden matrices and AdamW for the rest, behind one small face."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from speculators.algorithms.base import DraftNetwork
from speculators.recipe.shapes.train import AdamW, AdamW8bit, Muon
from speculators.training import muon
from speculators.training.sharding import divided_like, whole

MUON_ADAMW_BETAS = (0.9, 0.95)


class Optimizer:
    """One or two torch optimizers that step together at a share of their highest learning rates.

    Muon's steps are scaled to the size of AdamW's, so its learning rate means what AdamW's does.
    Weight decay, decoupled, applies to matrices only. Moments are in the parameters' own type, float32;
    AdamW8bit's of matrices are one byte a value, with a scale for every 256.
    """

    def __init__(self, network: DraftNetwork, options: AdamW | AdamW8bit | Muon) -> None:
        named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        if isinstance(options, AdamW | AdamW8bit):
            make = _adamw if isinstance(options, AdamW) else _adamw8bit
            self._parts: list[torch.optim.Optimizer] = [
                make(list(named.values()), options.learning_rate, options.weight_decay, options.betas, options.epsilon)
            ]
        else:
            is_hidden = {name: is_hidden_matrix(network, name, parameter) for name, parameter in named.items()}
            hidden = [parameter for name, parameter in named.items() if is_hidden[name]]
            others = [parameter for name, parameter in named.items() if not is_hidden[name]]
            self._parts = [
                muon.Muon(
                    hidden,
                    lr=options.learning_rate,
                    weight_decay=options.weight_decay,
                    momentum=options.momentum,
                ),
                _adamw(others, options.adamw_learning_rate, options.weight_decay, MUON_ADAMW_BETAS, 1e-8),
            ]
        self._parameters = list(named.values())
        self._highest = [[float(group["lr"]) for group in part.param_groups] for part in self._parts]

    def step(self, rate: float, clip: float | None, clip_value: float | None = None) -> float:
        """Change the parameters by their gradients at `rate` times the highest learning rates, and drop the gradients.

        Each value of a gradient is first cut to `clip_value`, then all are scaled down to a norm of `clip`, taken over
        all parameters. Returns the norm before either.
        """
        before = clip if clip_value is None else None
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, float("inf") if before is None else before)
        if clip_value is not None:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.clamp_(-clip_value, clip_value)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, clip)
        for part, highest in zip(self._parts, self._highest, strict=True):
            for group, top in zip(part.param_groups, highest, strict=True):
                if isinstance(group["lr"], torch.Tensor):  # compiled steps read it where it is
                    group["lr"].fill_(top * rate)
                else:
                    group["lr"] = top * rate
            part.step()
            part.zero_grad(set_to_none=True)
        return float(whole(norm))

    def forget(self) -> None:
        """Drop the gradients without a step."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def state_of(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """The moments of one parameter, and how many steps they are of; empty before the first."""
        part = next(
            part
            for part in self._parts
            if any(parameter is one for group in part.param_groups for one in group["params"])
        )
        found: dict[str, torch.Tensor] = part.state[parameter]
        return found

    def state(self) -> list[dict[str, Any]]:
        """All moments, for a checkpoint."""
        return [part.state_dict() for part in self._parts]

    def load(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take back what `state` gave; moments are divided as their parameters are."""
        for part, one in zip(self._parts, state, strict=True):
            part.load_state_dict(dict(one))
            for parameter, moments in part.state.items():
                for name, moment in moments.items():
                    if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                        moments[name] = divided_like(moment, parameter)


def is_hidden_matrix(network: DraftNetwork, name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon takes this parameter of the network."""
    return parameter.dim() == 2 and not set(name.split(".")) & set(network.tables_and_heads)


def _adamw(
    parameters: Sequence[torch.Tensor], rate: float, decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.AdamW:
    return torch.optim.AdamW(_groups(parameters, decay), lr=rate, betas=betas, eps=epsilon, fused=True)


def _adamw8bit(
    parameters: Sequence[torch.Tensor], rate: float, decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.Optimizer:
    optim: Any = importlib.import_module("torchao.optim")
    made: torch.optim.Optimizer = optim.AdamW8bit(_groups(parameters, decay), lr=rate, betas=betas, eps=epsilon)
    return made


def _groups(parameters: Sequence[torch.Tensor], decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
