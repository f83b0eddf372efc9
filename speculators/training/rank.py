"""One of several processes of a training: `python -m speculators.training.rank FOLDER NUMBER COUNT`.

FOLDER is the starter's (`training/together.py`): it has the assignment, and there the processes meet. We end at once
when the starter, at the other end of our standard input, is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import msgspec
import torch

from speculators.data.hidden_states import HiddenStates
from speculators.errors import INTERRUPTED, SpeculatorsError
from speculators.pipeline.events import EventLog, StepReporter
from speculators.recipe.phases import Phase
from speculators.recipe.shapes.recipe import Algorithm
from speculators.recipe.shapes.train import Train
from speculators.training.inputs import Artifacts, open_inputs
from speculators.training.loop import TrainingInputs
from speculators.training.phases import train_in_phases
from speculators.training.ranks import RanksLost, joined

ASSIGNMENT, EVENTS, MEETING = "assignment.json", "events.jsonl", "meeting"
"""Files in the starter's folder."""
LOST = 75
"""Exit status of a process that ended because another one had."""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A training on stored states; all but `algorithm` and `options` of `open_inputs` are directories and the seed."""

    verifier: str
    tokens: str
    vocabulary: str
    states: str
    output: str
    algorithm: Algorithm
    options: Train
    seed: int
    is_sharded: bool = False
    first: int = 0
    """The number of this machine's first process."""
    meeting: str = ""
    """`tcp://host:port` for processes of several machines; empty: a file in the starter's folder."""


def main(folder: Path, number: int, count: int) -> int:
    """Do this process's part; its exit status. What went wrong is the last line of what it prints."""
    assignment = msgspec.json.decode((folder / ASSIGNMENT).read_bytes(), type=Assignment)
    try:
        meeting = assignment.meeting or f"file://{folder / MEETING}"
        with joined(number, count, meeting, is_sharded=assignment.is_sharded) as ranks:
            artifacts = Artifacts(Path(assignment.verifier), Path(assignment.tokens), Path(assignment.vocabulary))
            states = HiddenStates.open(Path(assignment.states))
            report = StepReporter(EventLog(folder / EVENTS, ""), "train") if ranks.is_first else None
            device = _own_gpu(number - assignment.first) if torch.cuda.is_available() else None

            def opened(phase: Phase, output: Path, earlier: Path | None) -> TrainingInputs:
                return open_inputs(
                    artifacts,
                    states,
                    phase.algorithm,
                    phase.options,
                    seed=assignment.seed,
                    output=output,
                    earlier=earlier,
                    report=report,
                    device=device,
                    ranks=ranks,
                )

            train_in_phases(opened, assignment.algorithm, assignment.options, Path(assignment.output), ranks)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RanksLost as error:
        print(error, flush=True)
        return LOST
    except SpeculatorsError as error:
        traceback.print_exc()
        return error.exit_code
    return 0


def _own_gpu(number: int) -> torch.device:
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _end_with_the_starter() -> None:
    def wait() -> None:
        os.read(0, 1)  # returns when the pipe closes
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_the_starter()
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
