"""What is done on the nodes of a Ray cluster: each is looked at, and steps' commands run there."""

from __future__ import annotations

import fcntl
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from speculators import __version__
from speculators.errors import MachineError
from speculators.pipeline.executors.base import Work
from speculators.pipeline.executors.node import OnNode, Shared
from speculators.pipeline.executors.requests import Resources
from speculators.pipeline.machine import machine_key

_SIGHT_SECONDS = 120.0


@dataclass(frozen=True)
class Sight:
    """What a node is and has; `wrong`: why it cannot take part."""

    host: str
    wrong: str | None
    machine: Mapping[str, Any]
    resources: Mapping[str, float]

    def offers(self, asked: Resources) -> bool:
        """Whether the node as a whole has what is asked for."""
        wanted = {"CPU": asked.cpus or 1, "GPU": asked.gpus or 0, "memory": asked.memory or 0}
        return all(self.resources.get(name, 0) >= amount for name, amount in wanted.items())


def sights(ray: Any, shared: Shared, runs: Path) -> dict[str, Sight]:
    """Look at every node of the cluster that runs tasks.

    Raises MachineError for nodes that do not see the store and the folder of runs as this machine does, where a lock
    that is held here can be had there too, or that have another version of speculators.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    runs.mkdir(parents=True, exist_ok=True)
    mark = f".seen-{uuid4().hex[:8]}"
    seen, lock = runs / mark, shared.store / mark
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
    if not nodes:
        raise MachineError("the Ray cluster has no node with CPUs")
    try:
        seen.touch()
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            looks = [
                ray.remote(look)
                .options(
                    num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
                )
                .remote(shared, seen, lock, dict(nodes[node]["Resources"]), __version__)
                for node in nodes
            ]
            answers = {node: _answer(ray, task, nodes[node]) for node, task in zip(nodes, looks, strict=True)}
    finally:
        seen.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
    found = {node: sight for node, sight in answers.items() if sight is not None}
    wrong = [sight.wrong for sight in found.values() if sight.wrong]
    if wrong:
        raise MachineError("\n".join(wrong))
    return found


def look(shared: Shared, seen: Path, lock: Path, resources: Mapping[str, float], version: str) -> Sight:
    """Look at the node on which this runs."""
    host = platform.node()
    wrong = shared.difference()
    if wrong is None and not seen.exists():
        wrong = f"{host} does not see the folder {seen.parent} (--runs); it must lie on a disk that all machines share"
    if wrong is None and _free(lock):
        wrong = (
            f"a lock of another machine does not hold on {host} in {shared.store} (--store), so that two could do the "
            "same work at once; mount it with locks (Lustre: flock, NFS: version 4)"
        )
    if version != __version__:
        wrong = f"{host} has speculators {__version__}, and {version} is used here"
    return Sight(host, wrong, machine_key(), resources)


def run_on_node(work: Work, shared: Shared, grace: float) -> int:
    """Run a step's command with this node's Python; cancelling the task lets it save its state.

    Raises MachineError on a node that does not see the run's folder.
    """
    if not (work.log.parents[1] / "plan.json").is_file():
        raise MachineError(f"{platform.node()} does not see {work.log.parents[1]} (--runs)")
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's, for the one CPU that is asked for where nothing was said
    running = OnNode(replace(work, argv=(sys.executable, *work.argv[1:])), shared, grace)
    try:
        return running.wait()
    except KeyboardInterrupt:  # how Ray cancels
        return running.stop()


def _free(lock: Path) -> bool:
    try:
        with lock.open("r+") as stream:  # NFS locks for writing only what is open for it
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _answer(ray: Any, task: Any, node: Mapping[str, Any]) -> Sight | None:
    """What the node told; None: it has left the cluster meanwhile."""
    try:
        found: Sight = ray.get(task, timeout=_SIGHT_SECONDS)
    except ray.exceptions.TaskUnschedulableError:
        return None
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
        where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        said = "no answer" if isinstance(error, ray.exceptions.GetTimeoutError) else str(error).strip().splitlines()[-1]
        raise MachineError(
            f"{where} of the Ray cluster cannot run steps: {said}; its Ray must have been started from an environment "
            f"with speculators {__version__}"
        ) from error
    return found
