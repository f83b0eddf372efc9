"""What a job of Slurm does on its node; submitit carries these two values there and back.

A step's job ends in one of four ways: its command ends; the runner asks it to stop (SIGINT), and it saves and ends;
its time is up (SIGUSR2, which submitit hears), or it is preempted (SIGTERM), and it saves and goes back into the queue.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speculators.errors import INTERRUPTED, MachineError
from speculators.pipeline.executors import slurm_queue as queue
from speculators.pipeline.executors.base import Work
from speculators.pipeline.executors.node import OnNode, Shared
from speculators.pipeline.machine import machine_class

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


@dataclass
class StepJob:
    """Runs one step's command; its result is the exit status, or the state of Slurm that the job should have had."""

    work: Work
    shared: Shared
    grace: float
    running: OnNode | None = field(default=None, init=False)
    preempted: bool = field(default=False, init=False)

    def __call__(self) -> int | str:
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._preempt)
        self.running = OnNode(self.work, self.shared, self.grace)
        status = self.running.wait()
        if status == 0 or not self.preempted:
            return status
        job = os.environ["SLURM_JOB_ID"]
        if queue.state(job) == "RUNNING" and not queue.requeue(job):
            return "PREEMPTED"
        sys.exit(INTERRUPTED)  # without a result, as the job goes on later, or was cancelled by hand

    def checkpoint(self) -> DelayedSubmission:
        """Save the state as time is up; what the job does when it comes out of the queue again."""
        from submitit.helpers import DelayedSubmission

        if self.running is not None:
            self.running.stop()
        return DelayedSubmission(StepJob(self.work, self.shared, self.grace))

    def _stop(self, number: int, frame: object) -> None:
        if self.running is not None:
            self.running.stop()

    def _preempt(self, number: int, frame: object) -> None:
        self.preempted = True
        self._stop(number, frame)


@dataclass(frozen=True)
class Told:
    """What a `MachineJob` found."""

    machine: str


@dataclass(frozen=True)
class MachineJob:
    """Says what kind of machine its node is."""

    shared: Shared

    def __call__(self) -> Told:
        """Raises MachineError when the node does not see the store."""
        if wrong := self.shared.difference():
            raise MachineError(wrong)
        return Told(machine_class())
