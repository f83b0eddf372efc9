"""A training's figures told to the trackers that `train.tracking` names; none of them can end a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec

from speculators.errors import MachineError
from speculators.pipeline.step import Reporter
from speculators.training.trackers import TRACKERS, Place, Tracker

_HELD_OUT = "holdout_"


def named(tracking: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers that the recipe's line names: one word or several."""
    return (tracking,) if isinstance(tracking, str) else tuple(tracking)


def check_installed(names: Sequence[str]) -> None:
    """Raise MachineError, with the command that helps, for trackers whose library is not installed; imports none."""
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise MachineError(
            f"`train.tracking` names {', '.join(missing)}, not installed here: "
            f'pip install "speculators[{",".join(missing)}]", or leave it out with --set train.tracking=[]'
        )


@contextmanager
def tracking(names: Sequence[str], place: Place, report: Reporter) -> Iterator[Tracker]:
    """One tracker that tells all of `names`, closed at the end. Raises MachineError when a library is missing."""
    check_installed(names)
    trackers = _Trackers(report)
    try:
        for name in names:
            trackers.open(name, place)
        yield trackers
    finally:
        trackers.close()


class _Trackers:
    """Trackers by name. One that fails, at any time, is told of in one message and left out from then on.

    Nothing is lost with it: the figures are in the training's metrics and in the run's events in any case.
    """

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._open: dict[str, Tracker] = {}

    def open(self, name: str, place: Place) -> None:
        def enter() -> None:
            self._open[name] = TRACKERS[name](place)

        self._attempt(name, enter)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell all, in the two groups that their pages show apart: `train/loss` and `holdout/loss`."""
        figures = {
            f"holdout/{name.removeprefix(_HELD_OUT)}" if name.startswith(_HELD_OUT) else f"train/{name}": value
            for name, value in values.items()
        }
        for name, tracker in list(self._open.items()):
            self._attempt(name, partial(tracker.log, step, figures))

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            self._attempt(name, tracker.close)

    def _attempt(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  each library fails in ways of its own, its network's included
            self._open.pop(name, None)
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._report.message(f"{name} failed, so training goes on without it: {said}")


def _is_installed(name: str) -> bool:
    found = find_spec(name)
    # A folder of that name, such as the ./wandb that Weights & Biases leaves, counts as a package without an origin.
    return found is not None and found.origin is not None
