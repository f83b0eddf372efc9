"""What this machine is and has, learnt without importing any of the heavy libraries."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

RECORDED = ("speculators", "torch", "transformers", "safetensors", "tokenizers", "numpy", "guidellm", "vllm")
"""The packages whose versions every artifact and run record."""

ENGINES = ("torch", "transformers", "guidellm")
"""The packages whose versions are part of the key of a step that depends on the machine."""


def version_of(package: str) -> str | None:
    """The installed version of a package, None when it is missing; the package is not imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the recorded packages that are installed."""
    from speculators import __version__

    found = {package: version_of(package) for package in RECORDED}
    installed = {package: version for package, version in found.items() if version is not None}
    return {**installed, "speculators": __version__, "python": platform.python_version()}


def cores() -> int:
    """The processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def gpus() -> tuple[str, ...]:
    """The names of the NVIDIA GPUs as the driver lists them."""
    names: list[str] = []
    for place in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
        names.extend(line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:"))
    return tuple(names)


def visible_gpus() -> int:
    """How many of the GPUs are for us, as `CUDA_VISIBLE_DEVICES` says."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return len(gpus())
    return min(len(gpus()), sum(one.strip() not in ("", "-1") for one in chosen.split(",")))


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 fast enough for torch to use it (`layers/products.py` asks torch)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return {"avx512bw", "avx512vl", "avx512dq"} <= set(flags)


def machine_class() -> str:
    """What makes two machines equally fast for a benchmark: `1x NVIDIA H200` or `2x AMD EPYC 9655`."""
    names = gpus()
    if names:
        return f"{len(names)}x {names[0]}"
    return f"{cores()}x {processor()}"


def machine_key() -> dict[str, Any]:
    """The part of a key that says where and with what a measurement was made."""
    return {"machine": machine_class(), "versions": {name: version_of(name) for name in ENGINES}}


def total_memory() -> int:
    """Bytes of memory this process may use: the machine's, or the container's limit where that is smaller."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        return min(total, int(limit)) if limit.isdigit() else total
    except OSError:
        return total


def own_memory(*, uses_gpu: bool) -> int | None:
    """Bytes of memory that a step can have here; None for one whose memory is a GPU's (`steps/fits.py` looks there)."""
    return None if uses_gpu and visible_gpus() else total_memory()


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def peak_memory() -> int:
    """The most bytes of memory this process, or any one of its ended children, ever held."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, kilobytes on Linux
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * max(resource.getrusage(one).ru_maxrss for one in whose)


def environment() -> dict[str, Any]:
    """What a run records about the place where it ran."""
    return {
        "versions": versions(),
        "machine": {
            "class": machine_class(),
            "processor": processor(),
            "cores": cores(),
            "memory": total_memory(),
            "gpus": list(gpus()),
            "system": f"{platform.system()} {platform.release()}",
        },
    }
