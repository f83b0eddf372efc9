"""Runs steps as processes of this machine, each with its children in a group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any

from speculators.pipeline.executors.base import ALONE, Caller, Work
from speculators.pipeline.machine import machine_key, own_memory
from speculators.pipeline.step import Step


class LocalExecutor:
    """`subprocess`, with groups that can be ended whole.

    A worker holds the reading end of a pipe on its standard input and ends when that closes, so workers do not outlive
    a runner that was killed. What a worker leaves running when it ends (a server, its children) is killed with it.
    """

    one_machine = True

    def __init__(self, grace: float = 10.0) -> None:
        """`grace`: seconds between asking everything to end and killing what has not."""
        self._grace = grace
        self._running: set[int] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def machine(self, step: Step) -> Mapping[str, Any]:
        return machine_key()

    def memory(self, step: Step) -> int | None:
        return own_memory(uses_gpu=step.uses_gpu)

    def run(self, work: Work, caller: Caller = ALONE) -> int:
        """Run one worker; 130 when everything has been stopped already."""
        work.log.parent.mkdir(parents=True, exist_ok=True)
        with work.log.open("ab") as log:
            with self._lock:
                if self._stopped:
                    return 130
                process = subprocess.Popen(
                    (*work.argv, "--tied"),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **work.environment},
                    start_new_session=True,
                )
                self._running.add(process.pid)
            try:
                return process.wait()
            finally:
                _signal(process.pid, signal.SIGKILL)
                with self._lock:
                    self._running.discard(process.pid)
                if process.stdin is not None:
                    process.stdin.close()

    def stop(self) -> None:
        """Ask every group to end, and kill after some seconds those that do not."""
        with self._lock:
            self._stopped = True
            asked = set(self._running)
        for group in asked:
            _signal(group, signal.SIGTERM)
        threading.Thread(target=self._kill_later, args=(asked,), daemon=True).start()

    def kill(self) -> None:
        """Kill every group."""
        with self._lock:
            self._stopped = True
            for group in self._running:
                _signal(group, signal.SIGKILL)

    def _kill_later(self, asked: set[int]) -> None:
        time.sleep(self._grace)
        with self._lock:
            for group in asked & self._running:
                _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
