"""Figures reach each tracker as its library wants them, and no tracker can change or end a training."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from speculators.errors import MachineError, RecipeError
from speculators.recipe.load import load_recipe
from speculators.recipe.semantic import semantic
from speculators.steps import train as train_step
from speculators.training.loop import Silent, TrainingInputs, train
from speculators.training.trackers import TRACKERS, Place
from speculators.training.tracking import check_installed, named, tracking

FIGURES = {"loss": 2.0, "loss_1": 1.5, "holdout_walk_estimate": 1.25}
GROUPED = {"train/loss": 2.0, "train/loss_1": 1.5, "holdout/walk_estimate": 1.25}


class Calls:
    """Whatever is called on it, and with what; every call gives itself."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Calls:
            self.made.append((name, args, kwargs))
            return self

        return call


class Heard(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def installed(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A module in place of a library that may not be here."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="a fake")
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)


def tell(name: str, folder: Path) -> Heard:
    heard = Heard()
    with tracking((name,), Place("tiny", "2026-7f3a", folder), heard) as tracker:
        tracker.log(10, FIGURES)
    return heard


def test_tensorboard_gets_event_files_in_the_runs_folder(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert tell("tensorboard", tmp_path).messages == []
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {tag: [(at.step, at.value) for at in found.Scalars(tag)] for tag in found.Tags()["scalars"]} == {
        name: [(10, value)] for name, value in GROUPED.items()
    }


def test_tensorboard_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, opened = Calls(), []
    installed(monkeypatch, "tensorboard")
    installed(monkeypatch, "torch.utils.tensorboard", SummaryWriter=lambda path: opened.append(path) or writer)
    assert tell("tensorboard", tmp_path).messages == []
    assert opened == [str(tmp_path / "tensorboard")]
    assert [args for name, args, _ in writer.made if name == "add_scalar"] == [
        (name, value, 10) for name, value in GROUPED.items()
    ]
    assert [name for name, _, _ in writer.made[-2:]] == ["flush", "close"]


def test_wandb_is_told_figures_and_names_and_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Calls()
    installed(monkeypatch, "wandb", init=library.init, Settings=lambda **settings: settings)
    assert tell("wandb", tmp_path).messages == []
    (_, _, asked), logged, finished = library.made
    settings = asked.pop("settings")
    assert asked == {"project": "tiny", "name": "2026-7f3a", "dir": str(tmp_path)}
    assert settings.pop("console") == "off"
    assert settings.pop("x_save_requirements") is False
    assert set(settings.values()) == {True}
    assert all("disable" in name for name in settings)
    assert logged == ("log", (GROUPED,), {"step": 10})
    assert finished == ("finish", (), {})


@pytest.mark.parametrize("server", ["", "http://tracking.example"])
def test_mlflow_gets_a_run_of_the_recipes_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    class Client(Calls):
        def create_run(self, experiment: str, run_name: str) -> Any:
            self.made.append(("create_run", (experiment, run_name), {}))
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id=f"of {name}")

    client, stores = Client(), []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    installed(monkeypatch, "mlflow", MlflowClient=lambda tracking_uri: stores.append(tracking_uri) or client)
    installed(monkeypatch, "mlflow.entities", Metric=lambda name, value, time, step: (name, value, step))
    assert tell("mlflow", tmp_path).messages == []
    assert stores == [server or f"sqlite:///{tmp_path}/mlflow.db"]
    assert client.made == [
        ("create_run", ("of tiny", "2026-7f3a"), {}),
        ("log_batch", ("r1",), {"metrics": [(name, value, 10) for name, value in GROUPED.items()]}),
        ("set_terminated", ("r1",), {}),
    ]


def test_trackio_makes_no_public_space_and_watches_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Calls()
    installed(monkeypatch, "trackio", init=library.init)
    assert tell("trackio", tmp_path).messages == []
    assert library.made == [
        (
            "init",
            (),
            {"project": "tiny", "name": "2026-7f3a", "private": True, "auto_log_gpu": False, "auto_log_cpu": False},
        ),
        ("log", (GROUPED,), {"step": 10}),
        ("finish", (), {}),
    ]


def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with the library's name, as Weights & Biases leaves one, is no library."""
    monkeypatch.setattr("speculators.training.tracking.find_spec", lambda name: ModuleSpec(name, None))
    config = SimpleNamespace(train=SimpleNamespace(tracking=("wandb", "mlflow")))
    with pytest.raises(MachineError) as before_the_run:
        train_step.needs(config)
    with (
        pytest.raises(MachineError) as before_training,
        tracking(("wandb", "mlflow"), Place("", "", tmp_path), Heard()),
    ):
        pytest.fail("training began")
    assert (
        str(before_the_run.value)
        == str(before_training.value)
        == (
            "`train.tracking` names wandb, mlflow, not installed here: "
            'pip install "speculators[wandb,mlflow]", or leave it out with --set train.tracking=[]'
        )
    )
    check_installed(())


def test_without_the_line_no_library_is_looked_for_or_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_for(name: str) -> None:
        pytest.fail(f"{name} was looked for")

    monkeypatch.setattr("speculators.training.tracking.find_spec", looked_for)
    with tracking(named(load_recipe("tiny").recipe.train.tracking), Place("", "", tmp_path), Heard()) as tracker:
        tracker.log(10, FIGURES)
    assert not list(tmp_path.iterdir())


class Kept:
    """A tracker that remembers what the loop tells it, until it fails."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.told: list[dict[str, Any]] = []
        self.fails_at = fails_at

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("the network is away\nand more")
        self.told.append({"at": step, **values})

    def close(self) -> None: ...


def test_a_tracker_is_told_all_that_is_logged(training: Callable[..., TrainingInputs]) -> None:
    kept = Kept()
    inputs = replace(training(), tracker=kept)
    train(inputs)
    assert kept.told == [json.loads(line) for line in (inputs.output / "metrics.jsonl").read_text().splitlines()]
    told = {name for line in kept.told for name in line}
    asked = {"loss_1", "loss_2", "accuracy_1", "accuracy_2", "learning_rate", "gradient_norm", "tokens_per_second"}
    assert told >= asked | {"data_wait", "memory", "holdout_walk_estimate", "holdout_walk_1"}
    assert all(line["memory"] > 1 << 20 for line in kept.told if "memory" in line)


def test_a_tracker_that_fails_is_left_out_and_training_ends_as_it_would(
    training: Callable[..., TrainingInputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers = {"wandb": Kept(fails_at=10), "trackio": Kept()}
    for name, one in trackers.items():
        installed(monkeypatch, name)
        monkeypatch.setitem(TRACKERS, name, lambda place, one=one: one)
    heard, inputs = Heard(), training("tracked")
    with tracking(tuple(trackers), Place("tiny", "7f3a", tmp_path), heard) as tracker:
        result = train(replace(inputs, tracker=tracker))
    assert heard.messages == ["wandb failed, so training goes on without it: the network is away"]
    assert max(line["at"] for line in trackers["wandb"].told) < 10 <= trackers["trackio"].told[-1]["at"]
    plain = train(training("plain"))
    assert result["best"] == plain["best"]
    weights = [tmp_path / name / "model.safetensors" for name in ("tracked", "plain")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_tracker_that_cannot_be_opened_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_key(**asked: Any) -> None:
        raise RuntimeError("No API key configured")

    installed(monkeypatch, "wandb", init=no_key, Settings=dict)
    assert tell("wandb", tmp_path).messages == ["wandb failed, so training goes on without it: No API key configured"]


def test_the_line_may_be_one_word_or_a_list_and_changes_no_key() -> None:
    plain, one, two = (
        load_recipe("tiny", sets=sets).recipe
        for sets in ([], ["train.tracking=wandb"], ["train.tracking=[tensorboard, mlflow]"])
    )
    assert [named(recipe.train.tracking) for recipe in (plain, one, two)] == [
        (),
        ("wandb",),
        ("tensorboard", "mlflow"),
    ]
    assert semantic(plain, ("train",)) == semantic(one, ("train",)) == semantic(two, ("train",))


def test_another_word_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RecipeError, match="allowed: tensorboard, wandb, mlflow, trackio, or a list of these"):
        load_recipe("tiny", sets=["train.tracking=comet"])
    with pytest.raises(RecipeError, match="did you mean `tensorboard`"):
        load_recipe("tiny", sets=["train.tracking=[tensorbord]"])
