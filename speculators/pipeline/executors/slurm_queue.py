"""Slurm's commands, as far as jobs are looked at and ended; they are submitted through submitit."""

from __future__ import annotations

import shutil
import subprocess

from speculators.errors import MachineError

_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")
_HALTED = ("SUSPENDED", "STOPPED", "RESIZING", "SIGNALING")
ALIVE = frozenset((*_WAITING, "RUNNING", *_HALTED, "COMPLETING", "STAGE_OUT", "UNREACHABLE"))
"""States of a job that goes on or will; UNREACHABLE is ours, for a controller that does not answer just now."""

LOST = frozenset(("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "TIMEOUT", "GONE"))
"""States in which a job ended through no fault of its step; GONE is ours, for one that Slurm no longer knows."""

_WORKING = "PENDING,RUNNING,CONFIGURING,SUSPENDED"
_SECONDS = 60


def check_commands() -> None:
    """Raise MachineError where Slurm's commands are missing."""
    lacking = [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]
    if lacking:
        raise MachineError(
            f"--executor slurm: {', '.join(lacking)} not found; start this on a login node of the cluster"
        )


def state(job: str) -> str:
    """The job's state in Slurm's words, without what may follow them (`CANCELLED by 1000`)."""
    status, told, complaint = _ask("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
    if told:
        return told.split()[0]
    if status and "Invalid job id" not in complaint:
        return "UNREACHABLE"
    _, told, _ = _ask("sacct", "--allocations", "--noheader", "--parsable2", "--format=State", f"--jobs={job}")
    return told.split()[0] if told else "GONE"


def named(name: str) -> tuple[str, ...]:
    """The ids of the user's jobs of this name that wait or run."""
    _, told, _ = _ask("squeue", "--me", "--noheader", f"--states={_WORKING}", "--format=%A", f"--name={name}")
    return tuple(told.split())


def interrupt(job: str) -> None:
    """Let a running job save its state and end for good."""
    _ask("scancel", "--signal=INT", job)


def cancel_waiting(job: str) -> None:
    """Take the job out of the queue if it still waits there."""
    _ask("scancel", "--state=PENDING", job)


def cancel(job: str) -> None:
    """End the job."""
    _ask("scancel", job)


def requeue(job: str) -> bool:
    """Put a running job back into the queue, where this cluster allows that."""
    status, _, _ = _ask("scontrol", "requeue", job)
    return status == 0


def _ask(*command: str) -> tuple[int, str, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout.strip(), done.stderr.strip()
