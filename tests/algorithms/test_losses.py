"""Every algorithm is trained by every loss of its mix, and by the text's tokens where it is told to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speculators.errors import RecipeError
from speculators.recipe.load import load_recipe
from speculators.recipe.shapes.losses import LossWeights

ALGORITHMS = {
    "eagle": "type: eagle",
    "hass": "type: hass, aligned_steps: 2, judged_steps: 2",
    "eagle3": "type: eagle3, training_time_test: {steps: 2}, teacher: unrenormalized",
    "peagle": "type: peagle, layers: 1, depths: 3, teacher: unrenormalized",
    "dflash": "type: dflash, layers: 1, block_size: 4, teacher: unrenormalized",
    "dspark": "type: dspark, layers: 1, block_size: 4, confidence: {weight: 0}, teacher: unrenormalized",
    "dflash2": "type: dflash2, layers: 1, block_size: 4, selector: {rank: 4, top_k: 3}, convolution: {group_size: 8}",
    "xpress": "type: xpress, layers: 1, block_size: 4, refiner: {rank: 4}, teacher: unrenormalized",
    "medusa": "type: medusa, heads: 3, teacher: unrenormalized",
    "hydra": "type: hydra, heads: 3, teacher: unrenormalized",
    "mlp_speculator": "type: mlp_speculator, heads: 3, inner_size: 16",
    "mtp": "type: mtp, steps: 3",
    "draft_model": "type: draft_model, random: {hidden_size: 16}, steps: 1",
}
NAMES = [name for name in LossWeights.__struct_fields__ if name != "ce_target"]


@pytest.fixture
def batch(make_batch):
    batch = make_batch(["0001111111", "00111111", "011111"])
    return replace(batch, last=batch.last.float(), aux=batch.aux.float())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_loss_trains_every_algorithm_and_is_told_unweighted(objective_of, batch, name):
    once, halved = (
        objective_of(f"{ALGORITHMS[name]}, loss: {{{', '.join(f'{loss}: {weight}' for loss in NAMES)}}}")
        for weight in (1.0, 0.5)
    )
    found, half = (one.evaluate(batch) for one in (once, halved))
    found.loss.backward()
    assert any(one.grad is not None and bool(one.grad.abs().sum() > 0) for one in once.network.parameters())
    for step in range(1, once.steps + 1):
        terms = {loss: found.measured[f"{loss}_{step}"] for loss in NAMES}
        assert terms == {loss: half.measured[f"{loss}_{step}"] for loss in NAMES}
        if found.measured[f"loss_{step}"][1]:
            total = sum(value for value, _ in terms.values())
            beside = 0.1 * found.measured[f"soft_ce_{step}"][0] if f"soft_ce_{step}" in found.measured else 0.0
            assert found.measured[f"loss_{step}"][0] == pytest.approx(total + beside, rel=1e-4)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_single_loss_is_told_beside_its_weighted_sum_unless_it_weighs_one(objective_of, batch, name):
    other = ", smooth_l1: 0, soft_ce: 0, top_k: 0" if name in ("eagle", "hass") else ""
    one, two = (objective_of(f"{ALGORITHMS[name]}, loss: {{kl: {weight}{other}}}") for weight in (1, 2))
    plain, double = (each.evaluate(batch).measured for each in (one, two))
    assert "kl_1" not in plain
    assert double["kl_1"] == pytest.approx(plain["loss_1"])
    assert double["loss_1"][0] == pytest.approx(2 * plain["loss_1"][0])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_text_as_a_target_is_the_teacher_where_both_say_the_same(objective_of, batch, head, name):
    """The verifier's choice after t is made the text's own next token, for the tokens that the draft has."""
    weight = torch.nn.functional.normalize(torch.randn(50, 24, generator=torch.Generator().manual_seed(3)), dim=-1)
    ids = batch.input_ids % 30  # the draft's vocabulary
    agreeing = replace(batch, input_ids=ids, last=8 * weight[ids.roll(-1)] / head.norm.float())
    other = ", smooth_l1: 0, soft_ce: 0, top_k: 0" if name in ("eagle", "hass") else ""
    teacher, data = (
        objective_of(f"{ALGORITHMS[name]}, loss: {{ce: 1.0, ce_target: {target}{other}}}", weight)
        for target in ("teacher", "data")
    )
    for step in range(1, data.steps + 1):
        same, own = (one.evaluate(agreeing).measured[f"loss_{step}"] for one in (teacher, data))
        assert own == same
        other_words = replace(agreeing, last=agreeing.last.flip(0))
        mine, theirs = (one.evaluate(other_words).measured[f"loss_{step}"] for one in (teacher, data))
        assert mine[0] != theirs[0] or not mine[1]


@pytest.mark.parametrize("said", ["type: mtp, loss: {kl: 1, ce_target: data}", "type: eagle, loss: {ce_target: data}"])
def test_a_target_of_a_loss_that_weighs_nothing_is_refused(said):
    with pytest.raises(RecipeError, match=r"`algorithm.loss.ce_target` says what `ce` compares with"):
        load_recipe("tiny", sets=[f"algorithm={{{said}}}"])
