"""The trackers that a training's figures can go to, each behind the same two calls, each importing its library late.

A recipe may come from a stranger, so a tracker is told figures, the recipe's name and the run's, and nothing else: no
paths, arguments, environment or console. Where the figures go (`WANDB_*`, `MLFLOW_TRACKING_URI`, `TRACKIO_*`) is
for the user's environment to say, never for the recipe.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Somewhere that figures are kept, or sent to."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after so many steps of the optimizer."""

    def close(self) -> None:
        """Everything was told; what is still on its way is waited for."""


@dataclass(frozen=True)
class Place:
    """What a tracker files the figures under, and the folder (the run's) for what it writes on this machine."""

    project: str
    run: str
    folder: Path


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, place: Place) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(place.folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases; with `WANDB_MODE=offline` everything stays in the run's folder until `wandb sync`."""

    def __init__(self, place: Place) -> None:
        import wandb

        # By itself it would send the command line, the machine, the packages, the git remote and the console as well.
        quiet = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(project=place.project, name=place.run, dir=str(place.folder), settings=quiet)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow; without `MLFLOW_TRACKING_URI`, `mlflow.db` in the run's folder.

    The client is used, not `mlflow.start_run`, which would add the user's name and the program's path as tags.
    """

    def __init__(self, place: Place) -> None:
        from mlflow import MlflowClient

        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place.folder.absolute() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=store)
        found = self._client.get_experiment_by_name(place.project)
        experiment = found.experiment_id if found else self._client.create_experiment(place.project)
        self._run = self._client.create_run(experiment, run_name=place.run).info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Trackio:
    """trackio: in the user's cache folder, or in the Space that `TRACKIO_SPACE_ID` names."""

    def __init__(self, place: Place) -> None:
        import trackio

        # It would watch the machine by itself, and make a Space that is not there yet public.
        self._run = trackio.init(
            project=place.project, name=place.run, private=True, auto_log_gpu=False, auto_log_cpu=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[TensorBoard | Wandb | Mlflow | Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
"""By its word in `train.tracking`, which is also the name of the library and of our extra that installs it."""
