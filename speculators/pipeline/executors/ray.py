"""Runs every step as a task of an existing Ray cluster; the task runs the step's command on its node.

Only the command, a few variables and the exit status travel through Ray: artifacts, events and logs go through the disk
that all nodes share, which is checked on every node before anything is planned. Tasks end with the runner. A task whose
node or process is lost is started again by Ray, and the step goes on where it was.

Where nodes share no disk, artifacts go through a remote store and the rest through Ray (`ray_apart.py`); a step that
starts again on another node then starts from its beginning.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from speculators.errors import INTERRUPTED, MachineError
from speculators.pipeline.executors.base import ALONE, Caller, Work, explain, missing
from speculators.pipeline.executors.local import LocalExecutor
from speculators.pipeline.executors.node import Shared
from speculators.pipeline.executors.ray_apart import Errand, ear, run_apart
from speculators.pipeline.executors.ray_node import OneDisk, OwnDisks, Sight, run_on_node, sights
from speculators.pipeline.executors.ray_together import LOST, Together
from speculators.pipeline.executors.requests import Requests, Resources
from speculators.pipeline.remote import VARIABLE
from speculators.pipeline.step import Step

HANDED_ON = ("SPECULATORS_", "HF_", "HUGGING_FACE_", "TRANSFORMERS_", "VLLM_", "NCCL_", "WANDB_", "MLFLOW_", "TRACKIO_")
"""The beginnings of the variables of the runner's environment that steps get too; all others are the node's own."""

_RUNNERS = (VARIABLE, "SPECULATORS_RUN_PUSH")
"""What only the runner needs; a URL may hold a password."""

_LOST = 3  # times that Ray starts a task again whose node or process is gone
_LOOK_SECONDS = 0.5


class RayExecutor:
    """Tasks of a Ray cluster."""

    one_machine = False

    def __init__(
        self,
        requests: Requests,
        store: Path,
        runs: Path,
        *,
        address: str | None = None,
        grace: float = 30.0,
        remote: str | None = None,
    ) -> None:
        """`address`: of the cluster's head, else `$RAY_ADDRESS`, else the cluster that this machine belongs to.

        `remote`: the URL of a remote store that all nodes use because they share no disk. Raises MachineError where Ray
        or the cluster is missing, and for a node that has neither store and runs nor the remote store in common.
        """
        try:
            import ray
        except ImportError as error:
            raise missing("ray", "ray") from error
        self._ray: Any = ray
        wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
        try:
            if not ray.is_initialized():
                ray.init(address=wanted, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            named = "no Ray cluster was found" if wanted == "auto" else f"no Ray cluster at {wanted}"
            raise MachineError(
                f"{named} ({str(error).strip().splitlines()[0]}); start one with `ray start --head`, or name its head "
                "with --ray-address HOST:6379 or RAY_ADDRESS"
            ) from error
        self._requests, self._grace, self._remote = requests, grace, remote
        self._shared = Shared.of(store)
        self._local = LocalExecutor(grace)
        self._tasks: set[Any] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._killed = threading.Event()
        self._nodes = self._looked_at(runs.absolute())
        self._ear: Any = ear(ray) if remote else None

    def _looked_at(self, runs: Path) -> dict[str, Sight]:
        if self._remote:
            return sights(self._ray, OwnDisks(self._remote))
        with OneDisk.shown(self._shared, runs) as disk:
            return sights(self._ray, disk)

    def machine(self, step: Step) -> Mapping[str, Any]:
        """The most frequent kind of node that has what the step asks for."""
        asked = self._resources(step.name, step.uses_gpu)
        fit = [sight for sight in self._nodes.values() if sight.offers(asked)]
        if not fit:
            raise MachineError(f"no node of the Ray cluster has {_words(asked)}, which {step.name} asks for")
        kinds = Counter(sight.machine["machine"] for sight in fit)
        chosen = min(kinds, key=lambda kind: (-kinds[kind], kind))
        return next(sight.machine for sight in fit if sight.machine["machine"] == chosen)

    def memory(self, step: Step) -> int | None:
        return self._resources(step.name, step.uses_gpu).memory

    def run(self, work: Work, caller: Caller = ALONE) -> int:
        """Run a step as a task; one that only writes into the run's folder runs here."""
        if work.artifact is None:
            return self._local.run(work, caller)
        asked = self._resources(work.step, work.uses_gpu)
        if not any(sight.offers(asked) for sight in self._nodes.values()):
            caller.tell(f"no node of the Ray cluster has {_words(asked)} just now; waiting for one")
        if work.nodes > 1:
            return self._run_together(work, asked, caller)
        with self._lock:
            if self._stopped.is_set():
                return INTERRUPTED
            task = self._begun(work, asked)
            self._tasks.add(task)
        try:
            return self._follow(work, task)
        finally:
            with self._lock:
                self._tasks.discard(task)

    def _run_together(self, work: Work, asked: Resources, caller: Caller) -> int:
        """Run a step on several nodes, and again, from what they had saved, when one of them is lost."""
        able = sum(sight.offers(asked) for sight in self._nodes.values())
        if able < work.nodes:
            caller.tell(f"{work.nodes} nodes with {_words(asked)} are wanted, the Ray cluster has {able}; waiting")
        for _ in range(_LOST + 1):
            if self._stopped.is_set():
                return INTERRUPTED
            tasks: set[Any] = set()

            def begun(task: Any, tasks: set[Any] = tasks) -> None:
                with self._lock:
                    tasks.add(task)
                    self._tasks.add(task)

            together = Together(self._ray, self._shared, self._grace, begun, self._stopped.is_set)
            try:
                status = together.run(work, asked)
            except self._ray.exceptions.RayError as error:
                return self._given_up(work, error)
            finally:
                with self._lock:
                    self._tasks -= tasks
            if status != LOST:
                return status
            caller.tell(f"a node or process of {work.step} was lost; it starts again from what was saved")
        work.log.parent.mkdir(parents=True, exist_ok=True)
        explain(work.log, f"nodes or processes of {work.step} were lost {_LOST + 1} times")
        return MachineError.exit_code

    def stop(self) -> None:
        """Ask all tasks to save their state and end; those that do not are ended after the grace."""
        self._stopped.set()
        self._local.stop()
        threading.Thread(target=self._stop_tasks, daemon=True).start()

    def kill(self) -> None:
        """End all tasks at once."""
        self._stopped.set()
        self._killed.set()
        self._local.kill()
        threading.Thread(target=self._cancel, kwargs={"force": True}, daemon=True).start()

    def _stop_tasks(self) -> None:
        self._cancel(force=False)
        if not self._killed.wait(self._grace + 2 * _LOOK_SECONDS):
            self._cancel(force=True)

    def _cancel(self, *, force: bool) -> None:
        with self._lock:
            tasks = tuple(self._tasks)
        for task in tasks:
            self._ray.cancel(task, force=force)

    def _begun(self, work: Work, asked: Resources) -> Any:
        """The task, which Ray starts as soon as it can."""
        own = _with_environment(work, asked)
        if self._remote:
            function = self._remote_function(run_apart, work, asked)
            return function.remote(own, Errand.of(work, self._remote), self._ear, self._grace)
        return self._remote_function(run_on_node, work, asked).remote(own, self._shared, self._grace)

    def _remote_function(self, function: Callable[..., int], work: Work, asked: Resources) -> Any:
        """`function` with what it asks for."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {
            "name": f"speculators {work.step}",
            "num_cpus": asked.cpus or 1,
            "num_gpus": asked.gpus or 0,
            "memory": asked.memory,
            "max_retries": _LOST,
        }
        if work.machine is not None:
            same = [
                node for node, sight in self._nodes.items() if sight.machine == work.machine and sight.offers(asked)
            ]
            if same and len(same) < len(self._nodes):
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(same[0], soft=False)
        return self._ray.remote(function).options(**options)

    def _follow(self, work: Work, task: Any) -> int:
        while not self._ray.wait([task], timeout=_LOOK_SECONDS)[0]:
            if self._killed.is_set():
                return INTERRUPTED
        try:
            return int(self._ray.get(task))
        except self._ray.exceptions.TaskCancelledError:
            return INTERRUPTED
        except self._ray.exceptions.RayError as error:
            if self._stopped.is_set():
                return INTERRUPTED
            return self._given_up(work, error)

    def _given_up(self, work: Work, error: Exception) -> int:
        cause = getattr(error, "cause", None)
        said = cause if isinstance(cause, MachineError) else str(error).strip().splitlines()[0]
        work.log.parent.mkdir(parents=True, exist_ok=True)
        explain(work.log, f"Ray gave up on {work.step}: {said}")
        return MachineError.exit_code

    def _resources(self, step: str, uses_gpu: bool) -> Resources:
        return self._requests.of(step, uses_gpu=uses_gpu)


def _with_environment(work: Work, asked: Resources) -> Work:
    handed = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON) and name not in _RUNNERS}
    threads = str(asked.cpus) if asked.cpus else os.environ.get("OMP_NUM_THREADS")
    return replace(
        work, environment={**handed, **({"OMP_NUM_THREADS": threads} if threads else {}), **work.environment}
    )


def _words(asked: Resources) -> str:
    """`8 GPUs, 4 CPUs`"""
    parts = [(asked.gpus, "GPUs"), (asked.cpus or 1, "CPUs"), (asked.memory, "bytes of memory")]
    return ", ".join(f"{number} {unit}" for number, unit in parts if number)
