"""The compiled comparison of distributions gives what the plain one gives, for chunks of all sizes from one graph."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from speculators.losses.distributions import LOSSES, Target, compare
from speculators.training.compiled_loss import CompiledComparison
from speculators.training.first_failure import FirstFailure
from speculators.training.loop import Silent

VOCABULARY = 41
MIXES = [{name: 1.0} for name in LOSSES] + [{"kl": 0.5, "tv": 0.3, "ce": 0.2}]


class Told(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def drawn(rows: int, *, with_mass: bool, with_text: bool) -> tuple[torch.Tensor, Target]:
    generator = torch.Generator().manual_seed(rows)
    logits, other = (torch.randn(rows, VOCABULARY, generator=generator) * 2 for _ in range(2))
    total = other.logsumexp(-1) + 0.3 if with_mass else None
    text = torch.randint(-1, VOCABULARY, (rows,), generator=generator) if with_text else None
    return logits, Target(other, total, not with_mass, text)


@pytest.mark.parametrize("losses", MIXES, ids=["+".join(mix) for mix in MIXES])
@pytest.mark.parametrize("with_mass", [False, True], ids=["renormalized", "with-mass"])
def test_it_is_the_plain_one_from_one_graph(losses: dict[str, float], with_mass: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    told = Told()
    compiled = CompiledComparison(FirstFailure(told, "failed"), backend="aot_eager")
    for rows in (33, 64, 7, 2, 1):
        logits, target = drawn(rows, with_mass=with_mass, with_text="ce" in losses)
        for narrow in (logits, logits.bfloat16()):
            found = compiled(narrow, target, losses, torch.float32)
            again = Target(target.logits, target.log_total, target.is_renormalized, target.following)
            expected = compare(narrow, again, losses, torch.float32)
            assert found.gradient.dtype == narrow.dtype
            torch.testing.assert_close(found.values, expected.values)
            torch.testing.assert_close(found.gradient, expected.gradient)
            torch.testing.assert_close(found.terms, expected.terms)
            assert torch.equal(found.best, expected.best)
    assert told.messages == []
    assert counters["stats"]["unique_graphs"] == 2, "one for each type of logits"


def test_the_first_failure_is_told_and_everything_after_it_is_computed_plainly() -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise OSError("no compiler here\nand more")

    torch._dynamo.reset()
    told = Told()
    failed = FirstFailure(told, "it goes on without")
    compiled = CompiledComparison(failed, backend=broken)  # type: ignore[arg-type]
    for rows in (5, 6):
        logits, target = drawn(rows, with_mass=False, with_text=False)
        expected = compare(logits, target, {"kl": 1.0}, torch.float32)
        assert torch.equal(compiled(logits, target, {"kl": 1.0}, torch.float32).gradient, expected.gradient)
    assert len(told.messages) == 1
    assert told.messages[0].startswith("it goes on without: ")
    assert failed.is_told
