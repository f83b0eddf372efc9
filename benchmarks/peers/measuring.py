"""How a training step is measured, the same in every peer's environment: nothing but PyTorch, psutil and Python."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def measure(step: Callable[[], object], repeats: int) -> dict[str, float]:
    """`seconds`, `fastest`: median and least of `repeats` steps after a first; `added_megabytes`: by all, at most.

    The first step makes the gradients and the optimizer's moments, so these are in the memory and not in the time.
    """
    before = _start_counting()
    step()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return {
        "seconds": statistics.median(times),
        "fastest": min(times),
        "added_megabytes": (_peak() - before) / 2**20,
    }


def curve(step: Callable[[], object], judged: Callable[[], float], steps: int) -> list[tuple[int, float]]:
    """What `judged` says after none, a quarter, a half, three quarters and all of so many steps."""
    marks = {round(steps * quarter / 4) for quarter in range(5)}
    found = []
    for number in range(steps + 1):
        if number in marks:
            found.append((number, judged()))
        if number < steps:
            step()
    return found


def _start_counting() -> int:
    """Bytes resident now; Linux can forget an earlier peak, which loading the weights may have left."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB everywhere else
