"""Images of conversations: fetched from where a row names them, looked at, and kept once under their content's digest.

A row names an image by a path beside its data file, by an http(s) URL, or brings it along in a `data:` URL. Artifacts
hold it as `images/<sha256>.<ending>`, so that they depend on nothing outside.
"""

from __future__ import annotations

import base64
import hashlib
import io
import mmap
import os
import re
import shutil
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speculators.data.download import Unreachable, check_url, download, shown_url
from speculators.errors import MachineError, UsageError

FOLDER = "images"
"""Of an artifact whose conversations have images."""
MOST_BYTES = 20 << 20
"""Of one image as it is stored or sent."""
_MOST_SHOWN = 200
"""Characters of a name in a message."""
MOST_PIXELS = 50_000_000
FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_DATA_URL = re.compile(r"data:[\w.+/-]*;base64,(.*)", re.DOTALL)
_NAMES_A_PATH = re.compile(rb'"path"|\\u00[67]')
"""The key of an image's path in JSON, or a small letter of it that is written as an escape."""


class UnreadableImage(ValueError):
    """Why an image cannot be read, without saying where it was named."""


@dataclass(frozen=True)
class Album:
    """Where images are kept: `folder`, of an artifact. `root` is the data file's folder; without it no path is read.

    What a path or a URL names is read once, so that it is the same image in every row.
    """

    folder: Path
    root: Path | None
    _known: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def keep(self, part: Mapping[str, Any], where: str) -> str:
        """The file name of the image that a message's part names, read, checked and kept.

        Raises UsageError, naming the place `where` and the reason, when it cannot be read, and MachineError when its
        server cannot be reached.
        """
        named = source_of(part)
        known = (str(part["type"]), named)
        content = None
        try:
            name = self._known.get(known)
            if name is None:
                content = self._fetch(part, named)
                name = f"{hashlib.sha256(content).hexdigest()}.{_ending(content)}"
            _check_pin(part, name)
        except Unreachable as error:
            raise MachineError(f"`data.sources`: {where}: {_shown(named)} cannot be fetched: {error}") from error
        except (ValueError, OSError) as error:
            raise UsageError(f"`data.sources`: {where}: {_shown(named)} cannot be read: {_reason(error)}") from error
        if content is not None:
            self._store(name, content)
        if not named.startswith("data:"):
            self._known[known] = name
        return name

    def _store(self, name: str, content: bytes) -> None:
        file = self.folder / name
        if not file.is_file():
            self.folder.mkdir(exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(file)

    def _fetch(self, part: Mapping[str, Any], named: str) -> bytes:
        if part.get("type") == "image":
            if self.root is None:
                raise UnreadableImage("paths are read beside a file (`{file: ...}`) only; data sets name images by URL")
            file = beside(self.root, named)
            _check_size(file.stat().st_size)
            content = file.read_bytes()
        elif found := _DATA_URL.fullmatch(named):
            _check_size(len(found[1]) // 4 * 3 - 2)  # at least; the last four characters may stand for a single byte
            try:
                content = base64.b64decode(found[1], validate=True)
            except ValueError as error:
                raise UnreadableImage(f"it is not base64: {error}") from error
        else:
            check_url(named)
            if os.environ.get("HF_HUB_OFFLINE") == "1":  # what --offline sets
                raise UnreadableImage("the run is offline")
            content = download(named, MOST_BYTES)
        _check_size(len(content))
        return content


def is_image(part: Any) -> bool:
    """Whether a part of a message is an image."""
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")


def source_of(part: Mapping[str, Any]) -> str:
    """The path or the URL of an image's part; empty when it names none."""
    if part["type"] == "image":
        return str(part.get("path") or "")
    named = part.get("image_url")
    return str((named.get("url") if isinstance(named, dict) else named) or "")


def beside(root: Path, name: str) -> Path:
    """The file `name` in the folder `root` or below it; raises UnreadableImage for every other place."""
    try:
        file = (root / name).resolve()
        is_there = file.is_file()
    except (ValueError, OSError, RuntimeError) as error:  # null bytes, lone surrogates; a loop of links
        raise UnreadableImage(f"it is no path: {_reason(error)}") from error
    if not name or Path(name).is_absolute() or not file.is_relative_to(root.resolve()):
        raise UnreadableImage("a path is relative to the data file, and stays in that file's folder")
    if not is_there:
        raise UnreadableImage("there is no such file")
    return file


def local_images(file: Path, rows: Iterator[Mapping[str, Any]]) -> dict[str, Path]:
    """The image files that the rows of a data file name and that are there, by the paths as the rows write them.

    `rows` are only asked for when the file speaks of images at all.
    """
    if not _mentions_images(file):
        return {}
    found = {}
    for row in rows:
        for part in _parts(row):
            if part["type"] == "image":
                try:
                    found[source_of(part)] = beside(file.parent, source_of(part))
                except UnreadableImage:
                    continue  # whoever reads the rows says so
    return found


def image_files(artifact: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """The images of these names in an artifact."""
    return tuple(artifact / FOLDER / name for name in names)


def carry_images(source: Path, destination: Path, names: Sequence[str]) -> None:
    """Copy images from one artifact to another that names them too; those that are there already stay."""
    folder = destination / FOLDER
    for name in dict.fromkeys(names):
        if not (folder / name).is_file():
            folder.mkdir(exist_ok=True)
            partial = (folder / name).with_suffix(".partial")
            shutil.copyfile(source / FOLDER / name, partial)
            partial.replace(folder / name)


def _parts(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for turns in (row.get("messages"), row.get("conversations")):
        for turn in turns if isinstance(turns, list) else ():
            content = (turn.get("content") or turn.get("value")) if isinstance(turn, dict) else None
            yield from (part for part in (content if isinstance(content, list) else ()) if is_image(part))


def _mentions_images(file: Path) -> bool:
    if file.suffix == ".parquet":
        import pyarrow.parquet  # type: ignore[import-untyped]

        return "path" in str(pyarrow.parquet.read_schema(file))
    if not file.stat().st_size:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _NAMES_A_PATH.search(content) is not None


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise UnreadableImage(f"it is larger than {MOST_BYTES >> 20} MiB")


def _shown(named: str) -> str:
    """What a part names, for a message: without secrets, and with escapes for what cannot be printed."""
    if named.startswith("data:"):
        return "the image in a `data:` URL"
    text = shown_url(named) if ":/" in named else named
    text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return f"the image {text if len(text) <= _MOST_SHOWN else f'{text[:_MOST_SHOWN]}...'}"


def _ending(content: bytes) -> str:
    """The ending for an image's format, once all of it was decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=list(FORMATS)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise UnreadableImage(f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
                image.load()
                # Cameras' JPEGs with further pictures behind the first, which is what is seen of them.
                return FORMATS["JPEG" if image.format == "MPO" else str(image.format)]
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"it is not an image in one of the formats {', '.join(FORMATS)}") from error
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        SyntaxError,
        ValueError,
        OSError,
        EOFError,
        struct.error,
    ) as error:
        raise UnreadableImage(str(error)) from error


def _check_pin(part: Mapping[str, Any], name: str) -> None:
    named = part.get("image_url")
    pinned = named.get("sha256") if isinstance(named, dict) else part.get("sha256")
    if pinned and str(pinned).lower() != name.partition(".")[0]:
        raise UnreadableImage(f"its sha256 is {name.partition('.')[0]}, the row says {pinned}")


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
