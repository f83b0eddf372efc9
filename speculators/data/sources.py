"""The sources of a recipe's `data.sources` that exist already: files and data sets, read, sampled and pinned.

(What the verifier synthesises itself is `magpie.py`.) Nothing here imports torch: digests are taken while planning.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speculators.data.conversations import Conversation, conversation, read_rows
from speculators.data.images import FOLDER, Album, local_images
from speculators.errors import MachineError, UsageError
from speculators.pipeline.digests import file_sha256, value_sha256
from speculators.shipped import shipped_folder
from speculators.verifiers.hub import resolve_commit

_DATA_FILES = ("*.parquet", "*.jsonl", "*.json", "*.arrow", "*.csv")


def digests(sources: Sequence[Any]) -> Mapping[str, str]:
    """What pins each source, by its place in the recipe: sha256 of a file or of a local data set's files, a commit."""
    return {f"data.sources[{place}]": digest for place, source in enumerate(sources) if (digest := _digest(source))}


def read_source(source: Any, place: int, *, seed: int, holdout: float, output: Path) -> list[Conversation]:
    """All conversations of a file or data set, or `samples` of them drawn with the seed, in the source's own order.

    Their images go into a folder of the artifact `output`.
    """
    rows: Any
    album = Album(output / FOLDER, None)
    if source.file is not None:
        file = find_file(source.file)
        album = Album(output / FOLDER, file.parent)
        label, rows = f"file:{file.name}", list(read_rows(file))
    else:
        label, rows = f"dataset:{source.dataset}", _load(source)
    chosen: Sequence[int] = range(len(rows))
    if source.samples is not None and source.samples < len(rows):
        chance = random.Random(f"{seed}/{place}")  # noqa: S311  not for secrets
        chosen = sorted(chance.sample(chosen, source.samples))
    found = (
        conversation(rows[number], source=label, holdout=holdout, where=f"{label}, row {number + 1}", keep=album.keep)
        for number in chosen
    )
    return [item for item in found if item is not None]


def find_file(name: str) -> Path:
    """A recipe's file: where it says, else among the files shipped with us; raises UsageError when neither has it."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_folder("recipes") / name
    if not path.is_absolute() and shipped.is_file():
        return shipped
    raise UsageError(f"`data.sources`: there is no file {path}")


def _load(source: Any) -> Any:
    """The rows of a data set, of the hub or in a local directory: a `datasets.Dataset`."""
    import datasets

    # Its own cache of transforms has silently served another tokenizer's work; our store is the only cache.
    datasets.disable_caching()
    datasets.disable_progress_bars()
    local = Path(source.dataset).expanduser()
    revision = None if local.is_dir() else resolve_commit(source.dataset, source.revision, "dataset")
    name = str(local) if local.is_dir() else source.dataset
    try:
        return datasets.load_dataset(name, source.subset, split=source.split or "train", revision=revision)
    except ConnectionError as error:
        raise MachineError(f"the data set {name} cannot be reached: {error}") from error
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(f"`data.sources`: the data set {name} cannot be read: {error}") from error


def _digest(source: Any) -> str | None:
    if source.file is not None:
        file = find_file(source.file)
        images = {name: file_sha256(image) for name, image in local_images(file, read_rows(file)).items()}
        shown = f"; images sha256:{value_sha256(images)}" if images else ""
        return f"sha256:{file_sha256(file)}{shown}"
    if source.dataset is None:
        return None
    local = Path(source.dataset).expanduser()
    if not local.is_dir():
        return f"hub:{source.dataset}@{resolve_commit(source.dataset, source.revision, 'dataset')}"
    files = sorted({file for pattern in _DATA_FILES for file in local.rglob(pattern)})
    return "; ".join(f"{file.relative_to(local).as_posix()} sha256:{file_sha256(file)}" for file in files)
