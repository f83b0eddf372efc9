"""Muon's steps: torch's own where the processor has bfloat16, and the same to within its precision where it has not."""

from __future__ import annotations

import pytest
import torch

from speculators.training import muon
from speculators.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_are_those_of_torch(shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "product_dtype", lambda wanted, device: dtype)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    options = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9}
    own = Muon([ours], **options)
    peer = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for step in range(5):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step()
        peer.step()
    if dtype == torch.bfloat16:
        assert torch.equal(ours, theirs)
    else:
        moved = (theirs - 1).norm()
        assert (ours - theirs).norm() < 0.02 * moved


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_all_directions_become_equally_long(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    stretched = u @ torch.diag(s.sort(descending=True).values ** 2) @ v
    values = torch.linalg.svdvals(orthogonalized(stretched, torch.float32))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_matrix_of_zeros_stays_where_it_is() -> None:
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    matrix.grad = torch.zeros(4, 4)
    Muon([matrix], lr=0.1, weight_decay=0.0, momentum=0.9).step()
    assert torch.equal(matrix, torch.ones(4, 4))
