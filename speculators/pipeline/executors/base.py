"""What an executor is: something that runs the commands of steps, on this machine or elsewhere.

A step is a command (`python -m speculators.pipeline.work RUN STEP`) that finds all it needs in the run's folder and the
store and tells how it gets on through files there. So an executor starts it, waits for it, and ends it when asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from speculators.errors import MachineError
from speculators.pipeline.step import Step


@dataclass(frozen=True)
class Work:
    """Everything an executor may know about a step: its command, its log, and what is added to its environment.

    `artifact`: the id of what it makes; None: it writes into the run's folder only. `uses_gpu`: whether a GPU is of any
    use to it. `machine`: the kind of machine it was planned for, when that is part of its key. `nodes`: the machines
    that do it together; each is told its number and where they meet by `--node NUMBER@HOST:PORT` behind the command.
    """

    step: str
    argv: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    artifact: str | None = None
    uses_gpu: bool = True
    machine: Mapping[str, Any] | None = None
    nodes: int = 1


def unheard(text: str) -> None:
    """Tell nobody."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Caller:
    """The run that an executor works for: it can be told a sentence, and asked whether it has the artifact by now.

    `taken` is for an executor that waited for somebody else's work; True: the artifact is there, the step is over.
    """

    tell: Callable[[str], None] = unheard
    taken: Callable[[], bool] = _never


ALONE = Caller()
"""For work of which nobody wants to hear."""


class Executor(Protocol):
    """Something that runs commands; called from several threads."""

    one_machine: bool
    """True: all steps share one machine, so that only one heavy step runs at a time."""

    def machine(self, step: Step) -> Mapping[str, Any]:
        """The machine and versions that the step would run with, as they enter the key of a measurement."""

    def memory(self, step: Step) -> int | None:
        """Bytes of memory the step can have; None: unknown."""

    def run(self, work: Work, caller: Caller = ALONE) -> int:
        """Run to the end; the exit status, negative for the signal that ended it.

        What went wrong outside of the step (a lost node) is added to its log as a last paragraph.
        """

    def stop(self) -> None:
        """End everything that runs; `run` returns soon after."""

    def kill(self) -> None:
        """End everything at once."""


def explain(log: Path, text: str) -> None:
    """Add the last paragraph to a step's log: what went wrong that the step itself could not say."""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n\n{text}\n")


def missing(executor: str, package: str) -> MachineError:
    """The error for an executor whose package is not installed."""
    return MachineError(
        f"--executor {executor} needs {package}, which is not installed here: pip install 'speculators[{executor}]'"
    )
