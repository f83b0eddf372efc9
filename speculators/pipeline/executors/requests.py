"""What the steps of a run ask of a cluster: said once for all of them, and otherwise for single ones.

    --gpus 1 --gpus train=8 --memory 64GB --time train=1d

Never from a recipe, as another cluster has other machines; and in no key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from speculators.errors import UsageError

_SIZES = {"MB": 10**6, "GB": 10**9, "TB": 10**12}
_TIMES = {"m": 1, "h": 60, "d": 24 * 60}


@dataclass(frozen=True)
class Resources:
    """What one step asks for; None: whatever the cluster gives. `memory` in bytes, `time` in minutes."""

    gpus: int | None = None
    cpus: int | None = None
    memory: int | None = None
    time: int | None = None
    partition: str | None = None


@dataclass(frozen=True)
class Requests:
    """For each kind of resource, what steps ask for: by step, and for all others under the empty name."""

    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Mapping[str, Collection[str]]) -> Requests:
        """From the options' texts, by the names of `Resources`; raises UsageError for one that makes no sense."""
        asked: dict[str, dict[str, Any]] = {}
        for kind, values in texts.items():
            asked[kind] = {}
            for text in values:
                step, equals, value = text.rpartition("=")
                if equals and not step:
                    raise UsageError(f"--{kind} {text}: the step is missing before `=`")
                asked[kind][step] = _KINDS[kind](kind, value)
        return cls(asked)

    def check(self, steps: Collection[str]) -> None:
        """Raise UsageError when something is asked for a step that there is not."""
        for kind, values in self.asked.items():
            for step in values.keys() - {""} - set(steps):
                near = get_close_matches(step, steps, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"its steps: {', '.join(steps)}"
                raise UsageError(f"--{kind} {step}={values[step]}: the recipe has no step `{step}`; {hint}")

    def of(self, step: str, *, uses_gpu: bool) -> Resources:
        """What a step asks for; one that has no use for GPUs gets them only if they were asked for by its name."""
        found = {kind: values.get(step, values.get("")) for kind, values in self.asked.items()}
        if not uses_gpu and step not in self.asked.get("gpus", {}):
            found["gpus"] = None
        return Resources(**found)


def _count(kind: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"--{kind} {text}: a whole number is expected, or STEP=NUMBER")
    return int(text)


def _size(kind: str, text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MB|GB|TB)", text, re.IGNORECASE)
    if found is None:
        raise UsageError(f"--{kind} {text}: a size such as 64GB is expected (MB, GB or TB), or STEP=SIZE")
    return int(float(found[1]) * _SIZES[found[2].upper()])


def _minutes(kind: str, text: str) -> int:
    parts = re.findall(r"(\d+)([mhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f"--{kind} {text}: a time such as 90m, 4h or 1d12h is expected, or STEP=TIME")
    return sum(int(number) * _TIMES[unit] for number, unit in parts)


def _name(kind: str, text: str) -> str:
    if not text:
        raise UsageError(f"--{kind} is empty: a name is expected, or STEP=NAME")
    return text


_KINDS: Mapping[str, Callable[[str, str], Any]] = {
    "gpus": _count,
    "cpus": _count,
    "memory": _size,
    "time": _minutes,
    "partition": _name,
}
