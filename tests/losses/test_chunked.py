"""The loss in chunks: how many positions one has, and gradients only where somebody asked for them."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from speculators.losses.chunked import StepRows, chunked_loss
from speculators.losses.distributions import Target

ROWS, HIDDEN, VOCABULARY = 12, 8, 20


def judged(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Total and values of some rows' loss, and the operations of its products."""
    teacher = torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1))
    row = StepRows(hidden, torch.arange(ROWS), torch.linspace(0.5, 1.5, ROWS))
    with FlopCounterMode(display=False) as counter:
        total, (found,) = chunked_loss(
            [row],
            weight,
            weight.detach(),
            lambda where: Target(teacher[where], None, is_renormalized=True),
            ROWS,
            {"kl": 1.0, "ce": 0.5},
            5,
        )
    return total, found.values, counter.get_total_flops()


def test_no_gradient_is_computed_that_nobody_takes() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, requires_grad=True)
    with torch.no_grad():
        total, values, operations = judged(hidden, weight)
    learnt, same, more = judged(hidden, weight)
    assert operations == 2 * ROWS * HIDDEN * VOCABULARY, "the logits alone"
    assert more == 3 * operations
    assert not total.requires_grad
    assert torch.equal(total, learnt)
    assert torch.equal(values, same)
