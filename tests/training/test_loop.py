"""Training learns, what it saves is what it judged, and a killed training ends in the same bits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speculators.training.loop import Silent, TrainingInputs, train
from speculators.training.validation import validate

Build = Callable[..., TrainingInputs]


class After(Silent):
    """Does something when so many tokens' progress calls were heard."""

    def __init__(self, calls: int, do: Callable[[], None]) -> None:
        self._left, self._do = calls, do

    def progress(self, done: int, total: int, unit: str) -> None:
        self._left -= 1
        if self._left == 0:
            self._do()


def figures(inputs: TrainingInputs) -> Mapping[str, float]:
    budget = inputs.options.tokens_per_step
    return validate(inputs.objective, inputs.data, inputs.data.tokens.holdout_documents, budget=budget).figures()


def without_times(metrics: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    times = {"tokens_per_second", "data_wait", "memory"}
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_saved_draft_is_the_one_that_was_judged(training: Build, optimizer: str, precision: str) -> None:
    """Fused optimizers change weights behind torch's version counters: nothing rounded may outlive a step."""
    before = figures(training(optimizer=optimizer, precision=precision))
    result = train(training(optimizer=optimizer, precision=precision, epochs=6))
    again = training("again", optimizer, precision)
    again.objective.network.load_state_dict(load_file(again.output.parent / "train/model.safetensors"))
    found = figures(again)
    assert found["loss"] == pytest.approx(result["best"]["loss"], rel=1e-6)
    assert found["walk_estimate"] == result["best"]["walk_estimate"]
    assert found["loss"] < 0.7 * before["loss"]
    assert found["walk_estimate"] > before["walk_estimate"] + 0.3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_training_goes_on_to_the_very_same_bits(training: Build, optimizer: str) -> None:
    whole = train(training("whole", optimizer, feature_noise=0.1))
    stop = After(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(replace(training("parts", optimizer, feature_noise=0.1), report=stop))
    folder = training("parts", optimizer, feature_noise=0.1).output
    assert [one.name for one in (folder / "checkpoints").iterdir()] == ["step-000007"]
    assert not (folder / "result.json").exists()
    parts = train(training("parts", optimizer, feature_noise=0.1))
    assert (folder / "model.safetensors").read_bytes() == (folder.parent / "whole/model.safetensors").read_bytes()
    assert without_times(folder / "metrics.jsonl") == without_times(folder.parent / "whole/metrics.jsonl")
    assert (parts["best"], parts["steps"], parts["tokens"]) == (whole["best"], whole["steps"], whole["tokens"])
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(("number", "saved"), [(signal.SIGTERM, ["step-000007"]), (signal.SIGINT, [])])
def test_only_a_second_interrupt_breaks_off_without_a_save(
    training: Build, number: signal.Signals, saved: list[str]
) -> None:
    """A cluster's SIGTERM reaches every process, and the runner sends its own besides."""

    def ask_twice() -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    inputs = training("parts")
    with pytest.raises(KeyboardInterrupt):
        train(replace(inputs, report=After(7, ask_twice)))
    assert [one.name for one in (inputs.output / "checkpoints").glob("*")] == saved


def test_a_killed_training_goes_on_from_its_last_save_and_ends_in_the_same_bits(training: Build) -> None:
    """Dying without a word between two saves: what was done since the last one is done again, and logged once."""

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    train(training("whole", validate_every=3))
    with pytest.raises(Killed):
        train(replace(training("parts", validate_every=3, save_every=4), report=After(15, die)))
    folder = training("parts").output
    assert [one.name for one in sorted((folder / "checkpoints").iterdir())] == ["step-000008", "step-000012"]
    train(training("parts", validate_every=3, save_every=4))
    assert (folder / "model.safetensors").read_bytes() == (folder.parent / "whole/model.safetensors").read_bytes()
    assert without_times(folder / "metrics.jsonl") == without_times(folder.parent / "whole/metrics.jsonl")


def test_a_training_killed_when_all_is_done_is_not_done_again(training: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("speculators.training.loop._tidied", die)  # the saves' removal is the last thing that happens
        with pytest.raises(Killed):
            train(training("parts", save_every=4))
    saved = training("parts", save_every=4)
    kept = sorted(one.name for one in saved.output.iterdir())
    assert kept == ["checkpoints", "draft.json", "metrics.jsonl", "model.safetensors", "result.json"]
    monkeypatch.setattr(type(saved.objective), "evaluate", die)
    assert train(training("parts", save_every=4)) == json.loads((saved.output / "result.json").read_text())
    assert not (saved.output / "checkpoints").exists()


def test_the_best_draft_is_kept_not_the_last(training: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations that get worse after the second: its draft is the one in model.safetensors."""
    estimates = iter([1.5, 2.0, 1.2])
    kept: list[bytes] = []
    inputs = training(validate_every=None, epochs=3)

    class Judged:
        def figures(self) -> dict[str, float]:
            kept.append(inputs.objective.network.layers[0].mlp.up_proj.weight.detach().numpy().tobytes())
            return {"walk_estimate": next(estimates), "loss": 1.0}

    monkeypatch.setattr("speculators.training.loop.validate", lambda *args, **kwargs: Judged())
    result = train(inputs)
    saved = load_file(inputs.output / "model.safetensors")["layers.0.mlp.up_proj.weight"]
    assert saved.numpy().tobytes() == kept[1] != kept[2]
    assert (result["best"]["walk_estimate"], result["final"]["walk_estimate"]) == (2.0, 1.2)


def test_saves_hold_only_what_is_trained_and_open_without_running_code(training: Build) -> None:
    inputs = training(save_every=2)

    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        train(replace(inputs, report=After(5, stop)))
    save = max((inputs.output / "checkpoints").iterdir())
    assert "embed_tokens.weight" not in load_file(save / "parameters.safetensors")
    state = torch.load(save / "optimizer.pt", weights_only=True)
    moments = [value for part in state for one in part["state"].values() for value in one.values()]
    assert {moment.dtype for moment in moments if moment.dim()} == {torch.float32}
