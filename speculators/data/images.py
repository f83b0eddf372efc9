"""Images of conversations: fetched from where a row names them, looked at, and kept once under their content's digest.

A row names an image by a path beside its data file, by an http(s) URL, or brings it along in a `data:` URL. Artifacts
hold it as `images/<sha256>.<ending>`, so that they depend on nothing outside.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import mmap
import os
import re
import shutil
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.errors import UsageError

FOLDER = "images"
"""Of an artifact whose conversations have images."""
MOST_BYTES = 20 << 20
"""Of one image as it is stored or sent."""
MOST_PIXELS = 50_000_000
FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
TIMEOUT_SECONDS = 60.0
_BLOCK = 1 << 16
_DATA_URL = re.compile(r"data:[\w.+/-]*;base64,(.*)", re.DOTALL)
_NAMES_A_PATH = re.compile(rb'"path"|\\u00[67]')
"""The key of an image's path in JSON, or a small letter of it that is written as an escape."""


class UnreadableImage(ValueError):
    """Why an image cannot be read, without saying where it was named."""


@dataclass(frozen=True)
class Album:
    """Where images are kept: `folder`, of an artifact. `root` is the data file's folder; without it no path is read."""

    folder: Path
    root: Path | None

    def keep(self, part: Mapping[str, Any], where: str) -> str:
        """The file name of the image that a message's part names, read, checked and kept.

        Raises UsageError, naming the place `where` and the reason, when it cannot be read.
        """
        named = source_of(part)
        shown = "the image in a `data:` URL" if named.startswith("data:") else f"the image {named}"
        try:
            content = self._fetch(part, named)
            name = f"{hashlib.sha256(content).hexdigest()}.{_ending(content)}"
            _check_pin(part, name)
        except (UnreadableImage, OSError) as error:
            raise UsageError(f"`data.sources`: {where}: {shown} cannot be read: {_reason(error)}") from error
        file = self.folder / name
        if not file.is_file():
            self.folder.mkdir(exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(file)
        return name

    def _fetch(self, part: Mapping[str, Any], named: str) -> bytes:
        if part.get("type") == "image":
            if self.root is None:
                raise UnreadableImage("paths are read beside a file (`{file: ...}`) only; data sets name images by URL")
            return _limited(beside(self.root, named).read_bytes())
        if found := _DATA_URL.fullmatch(named):
            try:
                return _limited(base64.b64decode(found[1], validate=True))
            except binascii.Error as error:
                raise UnreadableImage(f"it is not base64: {error}") from error
        if named.startswith(("http://", "https://")):
            return _download(named)
        raise UnreadableImage("a URL begins with http://, https:// or data: (base64)")


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
    file = (root / name).resolve()
    if not name or Path(name).is_absolute() or not file.is_relative_to(root.resolve()):
        raise UnreadableImage("a path is relative to the data file, and stays in that file's folder")
    if not file.is_file():
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
                except (UnreadableImage, OSError):
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


def _download(url: str) -> bytes:
    if os.environ.get("HF_HUB_OFFLINE") == "1":  # what --offline sets
        raise UnreadableImage("the run is offline")
    request = urllib.request.Request(url, headers={"User-Agent": "speculators"})  # noqa: S310  http(s), the caller looked
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            return _limited(answer.read(MOST_BYTES + 1))
    except urllib.error.HTTPError as error:
        raise UnreadableImage(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise UnreadableImage(f"the server cannot be reached: {error.reason}") from error


def _limited(content: bytes) -> bytes:
    if len(content) > MOST_BYTES:
        raise UnreadableImage(f"it is larger than {MOST_BYTES >> 20} MiB")
    return content


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
                return FORMATS[str(image.format)]
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"it is not an image in one of the formats {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, SyntaxError, ValueError, OSError) as error:
        raise UnreadableImage(str(error)) from error


def _check_pin(part: Mapping[str, Any], name: str) -> None:
    named = part.get("image_url")
    pinned = named.get("sha256") if isinstance(named, dict) else part.get("sha256")
    if pinned and str(pinned).lower() != name.partition(".")[0]:
        raise UnreadableImage(f"its sha256 is {name.partition('.')[0]}, the row says {pinned}")


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
