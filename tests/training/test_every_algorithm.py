"""Divided among processes and in chunks of the loss, every algorithm learns what it learns plainly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from speculators.algorithms.building import build_objective
from speculators.data.vocabulary import Coverage, DraftVocabulary, membership, offsets
from speculators.recipe.load import load_recipe
from speculators.training.execution import apply_execution
from speculators.training.loop import Silent, TrainingInputs, train
from speculators.training.ranks import Ranks
from speculators.training.sharding import ShardedObjective
from speculators.verifiers.weights import VerifierWeights

ALGORITHMS = {
    "eagle": "type: eagle",
    "hass": "type: hass, judged_steps: 2",
    "eagle3": "type: eagle3, training_time_test: {steps: 2}",
    "peagle": "type: peagle, layers: 2, depths: 3",
    "dflash": "type: dflash, layers: 1, block_size: 4, anchors: 2, weights: {type: dpace}",
    "dspark": "type: dspark, layers: 1, block_size: 4, markov_rank: 4, teacher: unrenormalized",
    "dflash2": "type: dflash2, layers: 1, block_size: 4, selector: {rank: 4, top_k: 3}, convolution: {group_size: 8}",
    "xpress": "type: xpress, layers: 1, block_size: 4, refiner: {rank: 4}, teacher: unrenormalized",
    "draft_model": "type: draft_model, random: {layers: 2, hidden_size: 16, intermediate_size: 24}, steps: 3",
}
UNREAD = ("eagle", "hass", "draft_model")
"""Those that have no layers to choose."""
WHOLE = ("eagle", "hass", "dflash2", "draft_model")
"""Those that have the verifier's whole vocabulary."""
VOCABULARY, HIDDEN = 40, 16

Build = Callable[..., TrainingInputs]


@contextmanager
def made_in_float64() -> Iterator[None]:
    """Drafts are in float64, so that the order of sums is nothing to be seen."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@made_in_float64()
def inputs_of(training: Build, name: str, folder: str) -> TrainingInputs:
    layers = "" if name in UNREAD else ", aux_layers: [1, 2, 4]"
    reduced = [] if name in WHOLE else ["algorithm.draft_vocab_size=30"]
    options = load_recipe("tiny", sets=[f"algorithm={{{ALGORITHMS[name]}{layers}}}", *reduced]).recipe.algorithm
    facts: Any = SimpleNamespace(
        layers=6, hidden_size=HIDDEN, intermediate_size=24, attention_heads=4, key_value_heads=2, head_dim=4,
        vocab_size=VOCABULARY, rope={"rope_type": "default", "rope_theta": 100.0}, rms_norm_eps=1e-5,
        max_position_embeddings=256, bos_token_id=None, eos_token_ids=(),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    embedding, head = (torch.randn(VOCABULARY, HIDDEN, generator=generator) for _ in range(2))
    size = VOCABULARY if name in WHOLE else 30
    kept = torch.arange(size)
    maps = (None, None) if size == VOCABULARY else (offsets(kept), membership(kept, VOCABULARY))
    inputs = training(folder, "adamw", "float64", epochs=1, tokens_per_step=64)
    objective = build_objective(
        options,
        facts,
        VerifierWeights(embedding, head, torch.ones(HIDDEN), 1e-5),
        DraftVocabulary(size, VOCABULARY, *maps, Coverage(1.0, 1.0)),
        aux_layers=(1, 2, 4),
        precision="float64",
        seed=0,
    )
    return replace(inputs, objective=objective, draft=objective.network.config.to_config_json())


def same_draft(folder: Path, other: Path) -> None:
    expected, found = load_file(other / "model.safetensors"), load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], rtol=1e-6, atol=1e-7)


class Stopping(Silent):
    """Ends the training after its third step."""

    def __init__(self) -> None:
        self.left = 3

    def progress(self, done: int, total: int, unit: str) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_divided_stopped_and_gone_on_with_alone(training: Build, on_ranks: Any, name: str) -> None:
    plain = inputs_of(training, name, "plain")
    train(plain)
    build = partial(inputs_of, training, name, "parts")

    def divided(ranks: Ranks) -> None:
        inputs, ranks = build(), replace(ranks, is_sharded=True)
        objective = ShardedObjective(inputs.objective, ranks)
        train(replace(inputs, objective=objective, ranks=ranks, report=Stopping() if ranks.is_first else Silent()))

    assert [type(one) for one in on_ranks(2, divided)] == [KeyboardInterrupt] * 2
    parts = build()
    assert list((parts.output / "checkpoints").iterdir())
    train(parts)
    same_draft(parts.output, plain.output)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_chunks_of_the_loss_change_rounding_alone(training: Build, name: str) -> None:
    plain, small = inputs_of(training, name, "plain"), inputs_of(training, name, "small")
    execution = msgspec.structs.replace(plain.options.execution, loss_positions=5)
    seen: list[int] = []
    teacher = small.objective.judge._teacher  # type: ignore[attr-defined]

    def watched(last: torch.Tensor) -> Any:
        seen.append(len(last))
        return teacher(last)

    small.objective.judge._teacher = watched  # type: ignore[attr-defined]
    apply_execution(small.objective, execution, Silent())
    train(plain)
    train(small)
    assert max(seen) == 5
    same_draft(small.output, plain.output)


@pytest.mark.parametrize("name", ["dflash2", "xpress"])
def test_tokens_that_the_draft_chooses_in_training_are_found_in_chunks_too(
    training: Build, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = inputs_of(training, name, "small")
    apply_execution(small.objective, msgspec.structs.replace(small.options.execution, loss_positions=5), Silent())
    rows: list[int] = []
    linear = torch.nn.functional.linear

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if len(weight) == small.objective.network.config.draft_vocab_size:
            rows.append(x.numel() // x.shape[-1])
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    train(small)
    assert max(rows) == 5
