"""A foreign checkpoint on this machine: its config and the headers of its tensors, and then single tensors.

Only safetensors files, or pickled ones that hold nothing but tensors (`torch.load(weights_only=True)`), are read.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.errors import UsageError
from speculators.verifiers.facts import safetensors_header
from speculators.verifiers.weight_index import INDEX, read_index

if TYPE_CHECKING:
    import torch

PATTERNS = ("*.safetensors", "*.bin", "*_head.pt")
"""Weights in the order in which they are looked for; a kind only where those before it are absent.

Medusa's and Hydra's authors name theirs medusa_lm_head.pt and hydra_lm_head.pt.
"""

_EXPECTED = "a draft is a config.json with *.safetensors, *.bin or *_head.pt beside it; GGUF is not converted"
_INDEXES = (INDEX, "pytorch_model.bin.index.json")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
_PICKLED = (".bin", ".pt")
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True)
class Header:
    """A tensor before it is read: its type under torch's name, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Foreign:
    """A foreign checkpoint, opened. `name` is how messages call it."""

    name: str
    config: Mapping[str, Any]
    headers: Mapping[str, Header]
    files: Mapping[str, Path] = field(repr=False)
    """Tensor -> the file that holds it."""

    @classmethod
    def open(cls, place: Path, name: str | None = None, only: Collection[str] = ()) -> Foreign:
        """Open a folder, or one weights file with its config.json beside it; of a folder, `only` these files.

        Raises UsageError, once and for all, when it is not whole or not to be read.
        """
        name = name or str(place)
        directory = place if place.is_dir() else place.parent
        config = read_foreign_config(directory, name, one_file=place.is_file())
        files = tuple(directory / file for file in only)
        if not files:
            files = (place,) if place.is_file() else weight_files(directory)
        headers: dict[str, Header] = {}
        where: dict[str, Path] = {}
        for file in files:
            for tensor, header in _headers(file).items():
                if tensor in where:
                    raise UsageError(f"{name} holds {tensor} twice, in {where[tensor].name} and in {file.name}")
                headers[tensor], where[tensor] = header, file
        if not headers:
            raise UsageError(f"{name} holds no weights; {_EXPECTED}")
        if not only:
            _check_index(directory, where, name)
        return cls(name, config, headers, where)

    @property
    def directory(self) -> Path:
        """The folder that it lies in."""
        return next(iter(self.files.values())).parent

    def read(self, tensor: str) -> torch.Tensor:
        """One tensor, as it was saved."""
        file = self.files[tensor]
        if file.suffix != ".safetensors":
            return self._pickled[file][tensor]
        from safetensors import safe_open

        with safe_open(file, framework="pt") as tensors:
            found: torch.Tensor = tensors.get_tensor(tensor)
        return found

    @cached_property
    def _pickled(self) -> Mapping[Path, Mapping[str, torch.Tensor]]:
        return {file: load_pickled(file) for file in dict.fromkeys(self.files.values()) if file.suffix in _PICKLED}


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The files with weights: safetensors, else pickled ones; where an index names them, no others.

    Raises UsageError when one that the index names is missing.
    """
    for pattern in PATTERNS:
        index = index_file(directory, pattern)
        if index is None:
            found = sorted(file for file in directory.glob(pattern) if file.name not in _NOT_WEIGHTS)
        else:
            found = [directory / name for name in sorted(set(read_index(index).values()))]
            missing = [file.name for file in found if not file.is_file()]
            if missing:
                raise UsageError(f"{directory} is not whole: {', '.join(missing)} is missing")
        if found:
            return tuple(found)
    return ()


def index_file(directory: Path, pattern: str) -> Path | None:
    """The index of the weights of one kind, transformers' own before others' (Mistral's); None: there is none."""
    found = sorted(directory.glob(f"{pattern}.index.json"), key=lambda file: (file.name not in _INDEXES, file.name))
    return found[0] if found else None


def load_pickled(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled file; raises UsageError when it is cut off, or holds anything else."""
    import pickle

    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{file} is not read: it is broken, or holds more than tensors, and such a file could run code"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{file} is broken or cut off: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UsageError(f"{file} is not a mapping from names to tensors")
    return {str(key): value for key, value in content.items()}


def _headers(file: Path) -> dict[str, Header]:
    if file.suffix == ".safetensors":
        return _safetensors_headers(file)
    if file.suffix in _PICKLED:
        return {
            name: Header(str(value.dtype).removeprefix("torch."), tuple(value.shape))
            for name, value in load_pickled(file).items()
        }
    raise UsageError(f"{file} is neither a .safetensors nor a .bin or .pt file; {_EXPECTED}")


def _safetensors_headers(file: Path) -> dict[str, Header]:
    found = safetensors_header(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    wanted = 8 + length + max((entry["data_offsets"][1] for entry in found.values()), default=0)
    size = file.stat().st_size
    if size != wanted:
        raise UsageError(f"{file} is cut off or damaged: it has {size} bytes, and its header says {wanted}")
    return {
        name: Header(_DTYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]))
        for name, entry in found.items()
    }


def read_foreign_config(directory: Path, name: str, *, one_file: bool = False) -> dict[str, Any]:
    """The config.json of a foreign checkpoint; raises UsageError, naming `name`, where there is none to be read."""
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        beside = "beside it" if one_file else "in it"
        raise UsageError(f"{name} cannot be read: there is no config.json {beside}; {_EXPECTED}") from error
    except ValueError as error:
        raise UsageError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{file} should hold a JSON object")
    return config


def _check_index(directory: Path, where: Mapping[str, Path], name: str) -> None:
    """Every tensor that a sharded checkpoint's index names must be there."""
    index = index_file(directory, f"*{next(iter(where.values())).suffix}")
    absent = sorted(set(read_index(index)) - set(where)) if index is not None else []
    if index is not None and absent:
        raise UsageError(f"{name} is not whole: {absent[0]}, which {index.name} lists, is in none of its files")
