"""What is done on the nodes of a Ray cluster: each is looked at, and steps' commands run there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from speculators import __version__
from speculators.errors import MachineError, SpeculatorsError
from speculators.pipeline.executors.base import Work
from speculators.pipeline.executors.node import OnNode, Shared
from speculators.pipeline.executors.requests import Resources
from speculators.pipeline.machine import machine_key
from speculators.pipeline.remote import Remote
from speculators.pipeline.store import Store, default_store

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


@dataclass(frozen=True)
class OneDisk:
    """The disk that nodes must share: the store, a file in the folder of runs, and a lock that is held."""

    shared: Shared
    seen: Path
    lock: Path

    @classmethod
    @contextlib.contextmanager
    def shown(cls, shared: Shared, runs: Path) -> Iterator[OneDisk]:
        """What to look for on other nodes, as long as the block lasts."""
        runs.mkdir(parents=True, exist_ok=True)
        mark = f".seen-{uuid4().hex[:8]}"
        disk = cls(shared, runs / mark, shared.store / mark)
        try:
            disk.seen.touch()
            with disk.lock.open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                yield disk
        finally:
            disk.seen.unlink(missing_ok=True)
            disk.lock.unlink(missing_ok=True)

    def difference(self) -> str | None:
        """What is wrong with it on the node on which this runs; None: nothing."""
        host = platform.node()
        wrong = self.shared.difference()
        if wrong is None and not self.seen.exists():
            wrong = f"{host} does not see the folder {self.seen.parent} (--runs); it must lie on a disk that all share"
        if wrong is None and _free(self.lock):
            wrong = (
                f"a lock of another machine does not hold on {host} in {self.shared.store} (--store), so that two "
                "could do the same work at once; mount it with locks (Lustre: flock, NFS: version 4)"
            )
        return f"{wrong}; where machines share no disk: --no-shared-disk --remote URL" if wrong else None


@dataclass(frozen=True)
class OwnDisks:
    """The remote store that nodes have in common where they share no disk."""

    url: str

    def difference(self) -> str | None:
        """What is wrong with it, or the own store, on the node on which this runs; None: nothing."""
        try:
            Store.open(default_store())
            Remote.open(self.url).offers({"tokens": "0" * 64})
        except SpeculatorsError as error:
            return f"{platform.node()}: {error}"
        return None


def sights(ray: Any, disks: OneDisk | OwnDisks) -> dict[str, Sight]:
    """Look at every node of the cluster that runs tasks.

    Raises MachineError for nodes with something wrong about their disks, or another version of speculators.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
    if not nodes:
        raise MachineError("the Ray cluster has no node with CPUs")
    looks = [
        ray.remote(look)
        .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(disks, dict(nodes[node]["Resources"]), __version__)
        for node in nodes
    ]
    answers = {node: _answer(ray, task, nodes[node]) for node, task in zip(nodes, looks, strict=True)}
    found = {node: sight for node, sight in answers.items() if sight is not None}
    wrong = [sight.wrong for sight in found.values() if sight.wrong]
    if wrong:
        raise MachineError("\n".join(wrong))
    return found


def look(disks: OneDisk | OwnDisks, resources: Mapping[str, float], version: str) -> Sight:
    """Look at the node on which this runs."""
    host, wrong = platform.node(), disks.difference()
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
