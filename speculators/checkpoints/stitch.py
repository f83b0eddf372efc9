"""A trained multi-token-prediction head, written back into a copy of its verifier's checkpoint, where vLLM finds it.

In the files that hold the head exactly the bytes of its tensors are replaced: header, order and every other tensor stay
bit for bit. Weight files without it are linked where the file system can, all other files are copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from speculators.algorithms.mtp.native import native_head
from speculators.algorithms.mtp.styles import HEAD
from speculators.checkpoints.load import Checkpoint, read_checkpoint
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts, safetensors_header
from speculators.verifiers.weights import tensor_files

_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Stitched:
    """What was written: the names of the replaced tensors, and which files were changed, linked and copied."""

    tensors: tuple[str, ...]
    changed: tuple[str, ...]
    linked: tuple[str, ...]
    copied: tuple[str, ...]


def stitch(checkpoint: Path, verifier: Path, output: Path, *, symbolic: bool = False) -> Stitched:
    """Write the head of `checkpoint` into a copy of the directory `verifier`, at `output`, which must not exist yet.

    Tensors are written in the types that they have in the verifier. With `symbolic`, what is linked are symbolic links,
    for a copy that does not outlive the verifier. Raises UsageError when the checkpoint is no such head, or not of this
    verifier; nothing is left behind then.
    """
    if output.exists():
        raise UsageError(f"{output} exists already; stitching never writes over anything")
    draft = read_checkpoint(checkpoint)
    if draft.config["speculators_model_type"] != "mtp":
        raise UsageError(
            f"{checkpoint} is a draft of the type {draft.config['speculators_model_type']}, which stands beside its "
            "verifier; only mtp is a part of it"
        )
    replaced = _replacements(draft, verifier)
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        done = _copied(verifier, partial, replaced, symbolic=symbolic)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(output)
    return done


def _copied(
    verifier: Path, target: Path, replaced: Mapping[Path, Mapping[str, torch.Tensor]], *, symbolic: bool
) -> Stitched:
    """The verifier's files in the folder `target`, with the tensors `replaced` in each of its own files."""
    changed: list[str] = []
    linked: list[str] = []
    copied: list[str] = []
    for file in sorted(_files(verifier)):
        name = file.relative_to(verifier)
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name.suffix == ".safetensors" and not replaced.get(file):
            (linked if _linked(file, place, symbolic=symbolic) else copied).append(str(name))
            continue
        shutil.copyfile(file, place)
        if replaced.get(file):
            _overwrite(place, replaced[file])
        (changed if replaced.get(file) else copied).append(str(name))
    names = tuple(sorted(name for tensors in replaced.values() for name in tensors))
    return Stitched(names, tuple(changed), tuple(linked), tuple(copied))


def _replacements(draft: Checkpoint, verifier: Path) -> dict[Path, dict[str, torch.Tensor]]:
    """The head's tensors under their names in the verifier, by the file that each is in."""
    facts = VerifierFacts.from_directory(verifier)
    native = native_head(verifier, facts)
    own = {name.removeprefix(HEAD): tensor for name, tensor in draft.tensors.items()}
    unlike = [f"{name} is in the checkpoint alone" for name in own if name not in native.names]
    unlike += [f"{native.names[name]} is in the verifier alone" for name in native.names if name not in own]
    if native.style != draft.config.get("head_style"):
        unlike.append(
            f"it was trained as a head of the style {draft.config.get('head_style')}, this one's is {native.style}"
        )
    files, found = tensor_files(verifier), dict[Path, dict[str, torch.Tensor]]()
    for name, tensor in own.items() if not unlike else ():
        file = files[native.names[name]]
        shape = safetensors_header(file)[native.names[name]]["shape"]
        if list(tensor.shape) != shape:
            unlike.append(f"{name} is {list(tensor.shape)}, {native.names[name]} is {shape}")
        found.setdefault(file, {})[native.names[name]] = tensor
    if unlike:
        problems = "\n".join(f"  {what}" for what in unlike)
        raise UsageError(f"{draft.directory} is not the head of {verifier}:\n{problems}")
    return found


def _files(directory: Path) -> list[Path]:
    """All files of a checkpoint, without hidden folders, such as a downloader's."""
    found = [path for path in directory.rglob("*") if path.is_file()]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(directory).parts)]


def _linked(file: Path, target: Path, *, symbolic: bool) -> bool:
    """Put a file in its place without copying it; False: it had to be copied."""
    try:
        (os.symlink if symbolic else os.link)(file.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
        return False
    return True


def _overwrite(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace the bytes of tensors in a safetensors file; its header stays."""
    header = safetensors_header(file)
    with file.open("r+b") as stream:
        data = 8 + int.from_bytes(stream.read(8), "little")
        for name, tensor in tensors.items():
            kind = header[name]["dtype"]
            if kind not in _TYPES:
                raise UsageError(f"{file.name}: {name} is {kind}; a quantized head cannot be written back")
            content = tensor.to(_TYPES[kind]).contiguous().flatten().view(torch.uint8).numpy().tobytes()
            start, end = header[name]["data_offsets"]
            if len(content) != end - start:
                raise UsageError(f"{file.name}: {name} takes {end - start} bytes, its shape {len(content)}")
            stream.seek(data + start)
            stream.write(content)
