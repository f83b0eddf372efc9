"""The GPUs that a plan is made for: those of this machine, or others that somebody has elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

from speculators.errors import UsageError
from speculators.pipeline.machine import gpus

# Bytes of memory and dense bfloat16 operations a second, from the makers' data sheets.
_KNOWN = {
    "B200": (180e9, 2250e12),
    "H200": (141e9, 989e12),
    "H100": (80e9, 989e12),
    "A100-40": (40e9, 312e12),
    "A100": (80e9, 312e12),
    "L40S": (48e9, 362e12),
    "RTX 4090": (24e9, 165e12),
}


@dataclass(frozen=True)
class Hardware:
    """`count` GPUs of one kind; `memory` bytes and `speed` dense bfloat16 operations a second of each."""

    name: str
    count: int
    memory: float
    speed: float

    @property
    def text(self) -> str:
        """`8x H100`."""
        return f"{self.count}x {self.name}"


def parse_hardware(text: str) -> Hardware:
    """Read `8x H100`, or `H100` for one; raises UsageError for anything else."""
    match = re.fullmatch(r"(?:(?P<count>[1-9]\d*)\s*x\s*)?(?P<name>.+)", text.strip())
    name = match["name"].upper() if match else ""
    if match is None or name not in _KNOWN:
        raise UsageError(f"--on is {text!r}; write such as `8x H100`, of: {', '.join(_KNOWN)}")
    return Hardware(name, int(match["count"] or 1), *_KNOWN[name])


def hardware_here() -> Hardware | None:
    """The GPUs of this machine when they are of a known kind."""
    names = gpus()
    kind = next((kind for kind in _KNOWN if names and kind in names[0].upper()), None)
    return None if kind is None else Hardware(kind, len(names), *_KNOWN[kind])
