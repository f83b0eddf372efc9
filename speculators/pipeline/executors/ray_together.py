"""A step that several nodes of a Ray cluster do together: one task on each, started and ended together.

Where the processes of all nodes meet is asked of the node that is the first. A node or process that is lost ends all of
them, as the others could only wait; what they had saved is where they start again.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from speculators.errors import INTERRUPTED
from speculators.pipeline.executors.base import Work
from speculators.pipeline.executors.node import Shared
from speculators.pipeline.executors.ray_node import run_on_node
from speculators.pipeline.executors.requests import Resources

LOST = -1
"""In the place of an exit status: the task's node or process is gone."""

_LOOK_SECONDS = 0.5
_END_SECONDS = 60.0
"""For the others to notice that one of them has ended."""


@dataclass
class Together:
    """The tasks of one attempt. `begun` is told of every task, so that all can be cancelled; `is_over` asks to end."""

    ray: Any
    shared: Shared
    grace: float
    begun: Callable[[Any], None]
    is_over: Callable[[], bool]

    def run(self, work: Work, asked: Resources) -> int:
        """The exit status, of the first node to fail if one did; LOST when a node or process was lost."""
        from ray.util.placement_group import placement_group, remove_placement_group

        amounts = {"CPU": asked.cpus or 1, "GPU": asked.gpus or 0, "memory": asked.memory or 0}
        bundle = {name: amount for name, amount in amounts.items() if amount}
        group = placement_group([bundle] * work.nodes, strategy="STRICT_SPREAD")
        try:
            if not self._are_reserved(group):
                return INTERRUPTED
            return self._followed(self._tasks(work, asked, group))
        finally:
            remove_placement_group(group)

    def _are_reserved(self, group: Any) -> bool:
        ready = group.ready()
        while not self.ray.wait([ready], timeout=_LOOK_SECONDS)[0]:
            if self.is_over():
                return False
        return True

    def _tasks(self, work: Work, asked: Resources, group: Any) -> list[Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        def on(node: int) -> Any:
            return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)

        meeting = self.ray.get(
            self.ray.remote(free_place).options(num_cpus=0, scheduling_strategy=on(0)).remote(),
        )
        tasks = []
        for node in range(work.nodes):
            own = replace(
                work,
                argv=(*work.argv, "--node", f"{node}@{meeting}"),
                log=work.log if node == 0 else work.log.with_name(f"{work.step}.node-{node}.log"),
            )
            remote = self.ray.remote(run_on_node).options(
                name=f"speculators {work.step}, node {node}",
                num_cpus=asked.cpus or 1,
                num_gpus=asked.gpus or 0,
                memory=asked.memory,
                max_retries=0,
                scheduling_strategy=on(node),
            )
            tasks.append(remote.remote(own, self.shared, self.grace))
            self.begun(tasks[-1])
        return tasks

    def _followed(self, tasks: Sequence[Any]) -> int:
        running, statuses = list(tasks), dict[Any, int]()
        deadline = float("inf")
        while running and time.monotonic() < deadline:
            done, running = self.ray.wait(running, timeout=_LOOK_SECONDS)
            for task in done:
                statuses[task] = self._status(task)
                if statuses[task] != 0 and deadline == float("inf"):
                    deadline = time.monotonic() + _END_SECONDS
        for task in running:  # they did not notice
            self.ray.cancel(task, force=True)
        found = [statuses[task] for task in tasks if statuses.get(task, 0) != 0]
        if self.is_over() or INTERRUPTED in found:
            return INTERRUPTED
        return LOST if LOST in found else next(iter(found), 0)

    def _status(self, task: Any) -> int:
        try:
            return int(self.ray.get(task))
        except self.ray.exceptions.TaskCancelledError:
            return INTERRUPTED
        except self.ray.exceptions.RayTaskError:
            raise  # of ours: the node does not see the run, for instance
        except self.ray.exceptions.RayError:
            return LOST


def free_place() -> str:
    """`HOST:PORT` of the node on which this runs, where nobody listens."""
    import ray

    host = str(ray.util.get_node_ip_address())
    with socket.socket() as one:
        one.bind(("", 0))
        return f"{host}:{one.getsockname()[1]}"
