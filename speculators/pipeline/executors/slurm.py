"""Runs every step as a job of Slurm, through submitit.

A job outlives the runner: when that is killed its jobs go on, and the next run of the same recipe finds them by their
name, which is made of the artifact's, waits, and takes what they make. Interrupting the runner ends its jobs.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.errors import INTERRUPTED, MachineError
from speculators.pipeline.digests import value_sha256
from speculators.pipeline.executors import slurm_queue as queue
from speculators.pipeline.executors.base import ALONE, Caller, Work, explain, missing, unheard
from speculators.pipeline.executors.local import LocalExecutor
from speculators.pipeline.executors.node import Shared
from speculators.pipeline.executors.requests import Requests, Resources
from speculators.pipeline.executors.slurm_job import MachineJob, StepJob, Told
from speculators.pipeline.machine import machine_key
from speculators.pipeline.step import Step

if TYPE_CHECKING:
    from submitit import Job

_MOST_TIMEOUTS = 100  # a step goes on where its time was up; this ends one that gets nowhere
_MOST_LOST = 2
_MACHINE_MINUTES = 10


DEFAULT_MINUTES = 240
"""The time a job asks for unless told otherwise: most partitions allow it, and a step goes on in the next one."""


@dataclass(frozen=True)
class Site:
    """How this cluster is spoken to: the account that pays, further options of sbatch, and how often we look.

    `unseen_seconds`: that a result may take to be seen on a network disk after the job has ended.
    """

    account: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result_seconds: float = 0.5
    state_seconds: float = 10.0
    unseen_seconds: float = 30.0


class SlurmExecutor:
    """`sbatch`, with jobs that are found again, requeued, and submitted once more when their node is lost."""

    one_machine = False

    def __init__(
        self,
        requests: Requests,
        store: Path,
        runs: Path,
        *,
        grace: float = 30.0,
        site: Site = Site(),
        tell: Callable[[str], None] = unheard,
    ) -> None:
        """`store` and `runs` must lie on a disk that all nodes share; `tell` is told what is waited for beforehand.

        Raises MachineError where submitit or Slurm's commands are missing.
        """
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise missing("slurm", "submitit") from error
        queue.check_commands()
        self._requests, self._runs, self._grace, self._site = requests, runs.absolute(), grace, site
        self._shared, self._tell = Shared.of(store), tell
        self._local = LocalExecutor(grace)
        self._jobs: set[str] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._killed = threading.Event()

    def machine(self, step: Step) -> Mapping[str, Any]:
        """The node's kind is asked by a job of the same size, once, and remembered in the store for all later runs."""
        resources = self._resources(step.name, step.uses_gpu)
        place = self._machine_file(resources)
        if not place.is_file():
            self._ask_for_machine(resources, place)
        return {**machine_key(), "machine": place.read_text(encoding="utf-8").strip()}

    def memory(self, step: Step) -> int | None:
        return self._resources(step.name, step.uses_gpu).memory

    def run(self, work: Work, caller: Caller = ALONE) -> int:
        """Run a step as a job; one that only writes into the run's folder runs here."""
        if work.artifact is None:
            return self._local.run(work, caller)
        if self._wait_for_others(work, caller):
            return 0
        status = self._run_job(work, caller)
        if status != 0 and work.machine is not None:  # perhaps since the nodes are others now: ask again next time
            self._machine_file(self._resources(work.step, work.uses_gpu)).unlink(missing_ok=True)
        return status

    def _run_job(self, work: Work, caller: Caller) -> int:
        resources = self._resources(work.step, work.uses_gpu)
        for attempt in range(_MOST_LOST + 1):
            folder = work.log.parent / "slurm" / f"{work.step}-{attempt}"
            with self._lock:
                if self._stopped.is_set():
                    return INTERRUPTED
                try:
                    job = self._sbatch(StepJob(work, self._shared, self._grace), folder, self._name(work), resources)
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    return _fail(work, f"Slurm refused the job: {_reason(error)}")
                self._jobs.add(job.job_id)
            caller.tell(f"Slurm job {job.job_id}")
            end = self._follow(job)
            with self._lock:
                self._jobs.discard(job.job_id)
            if isinstance(end, int):
                return end
            if self._stopped.is_set():
                return INTERRUPTED
            if end not in queue.LOST or attempt == _MOST_LOST:
                return _fail(work, _ended(job, end))
            caller.tell(f"Slurm job {job.job_id} ended as {end}; it is submitted again")
        raise AssertionError("the last attempt returns")

    def stop(self) -> None:
        """Ask all jobs to save their state and end; those that do not are cancelled after the grace."""
        self._stopped.set()
        self._local.stop()
        threading.Thread(target=self._stop_jobs, daemon=True).start()

    def kill(self) -> None:
        """Cancel all jobs."""
        self._stopped.set()
        with self._lock:
            jobs = tuple(self._jobs)  # before `run` returns and forgets them
        self._killed.set()
        self._local.kill()
        for job in jobs:  # the interpreter waits for these threads when it ends
            threading.Thread(target=queue.cancel, args=(job,)).start()

    def _stop_jobs(self) -> None:
        self._each(queue.cancel_waiting)
        self._each(queue.interrupt)
        if not self._killed.wait(self._grace + self._site.state_seconds):
            self._each(queue.cancel)

    def _each(self, do: Callable[[str], None]) -> None:
        with self._lock:
            jobs = tuple(self._jobs)
        for job in jobs:
            do(job)

    def _name(self, work: Work) -> str:
        return f"{work.artifact}-{value_sha256(str(self._shared.store))[:8]}"

    def _wait_for_others(self, work: Work, caller: Caller) -> bool:
        """Wait while a job of another run does this work; True: it made the artifact, or we were interrupted."""
        told: set[str] = set()
        while not self._stopped.is_set():
            others = queue.named(self._name(work))
            if not others:
                return bool(told) and caller.taken()
            for job in set(others) - told:
                caller.tell(f"waiting for Slurm job {job}, which does the same work (`scancel {job}` would end it)")
            told.update(others)
            self._stopped.wait(self._site.state_seconds)
        return False

    def _sbatch(self, job: StepJob | MachineJob, folder: Path, name: str, resources: Resources) -> Job[Any]:
        """Submit; call it holding the lock, since submitit hides an outer job's variables by taking them away."""
        import submitit

        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=_MOST_TIMEOUTS)
        wanted = {
            "job_name": name,
            "time": resources.time or DEFAULT_MINUTES,
            "partition": resources.partition,
            "account": self._site.account,
            "gpus_per_node": resources.gpus or None,
            "cpus_per_task": resources.cpus,
            "mem": f"{resources.memory // 2**20}M" if resources.memory else None,
            "signal_delay_s": int(self._grace) + 60,
            "srun_args": ["--cpus-per-task", str(resources.cpus)] if resources.cpus else None,
            "additional_parameters": {"requeue": True, **self._site.arguments},
        }
        executor.update_parameters(**{name: value for name, value in wanted.items() if value is not None})
        with submitit.helpers.clean_env():
            return executor.submit(job)

    def _follow(self, job: Job[Any]) -> Any:
        """Wait for a job's end; its result, or the state in which Slurm ended it without one."""
        result, looked = Path(job.paths.result_pickle), time.monotonic()
        while not result.exists():
            if self._killed.is_set():
                return INTERRUPTED
            time.sleep(self._site.result_seconds)
            if time.monotonic() - looked < self._site.state_seconds:
                continue
            state, looked = queue.state(job.job_id), time.monotonic()
            if state not in queue.ALIVE and not _appears(result, self._site):
                return state
        try:
            return job.result()
        except (OSError, RuntimeError) as error:  # submitit's errors are RuntimeErrors
            return _reason(error)

    def _resources(self, step: str, uses_gpu: bool) -> Resources:
        return self._requests.of(step, uses_gpu=uses_gpu)

    def _machine_file(self, resources: Resources) -> Path:
        asked = {**vars(resources), "time": None, "account": self._site.account, "more": dict(self._site.arguments)}
        return self._shared.store / "machines" / value_sha256(asked)[:16]

    def _ask_for_machine(self, resources: Resources, place: Path) -> None:
        """Raises MachineError when Slurm refuses the job, or its node does not see the store."""
        small = replace(resources, time=_MACHINE_MINUTES)
        try:
            with self._lock:
                job = self._sbatch(MachineJob(self._shared), self._runs / ".slurm", "speculators-machine", small)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise MachineError(f"Slurm refused a job that asks what its machines are: {_reason(error)}") from error
        self._tell(f"Slurm job {job.job_id} asks what machine measurements will run on; they are kept by machine")
        end = self._follow(job)
        if not isinstance(end, Told):
            raise MachineError(_ended(job, str(end)))
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"{end.machine}\n", encoding="utf-8")


def _appears(result: Path, site: Site) -> bool:
    """Whether the result of a job that has ended is there, or is seen after a while on a network disk."""
    deadline = time.monotonic() + site.unseen_seconds
    while not result.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(site.result_seconds)
    return True


def _fail(work: Work, text: str) -> int:
    work.log.parent.mkdir(parents=True, exist_ok=True)
    explain(work.log, text)
    return MachineError.exit_code


def _ended(job: Job[Any], state: str) -> str:
    """Why a job without a result is over, in one paragraph, with the end of what Slurm noted about it."""
    hint = {
        "OUT_OF_MEMORY": "; ask for more memory with --memory STEP=SIZE",
        "TIMEOUT": "; give it more time with --time STEP=TIME, or --grace more seconds to save its state",
        "CANCELLED": ", by hand or by the cluster",
    }.get(state, "")
    notes = [Path(place) for place in (job.paths.stderr, job.paths.stdout)]
    lines = [line for note in notes if note.is_file() for line in note.read_text(errors="replace").splitlines() if line]
    told = f": {lines[-1]}" if lines and not hint else ""
    return f"Slurm job {job.job_id} ended as {state}{hint}{told} (its own notes: {notes[0].parent})"


def _reason(error: Exception) -> str:
    """The last line of what sbatch said, or of the job's traceback, which submitit puts between two long lines."""
    parts = str(error).split("-" * 22)
    lines = [line for line in parts[1 if len(parts) > 2 else -1].splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
