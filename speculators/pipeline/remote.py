"""A remote second level of the store, at any URL that fsspec knows: S3, GCS, the hub's buckets, a mounted disk.

    URL/artifacts/tokens-6d20f03c9a41be77/artifact.json    as in the store; written last: with it the artifact is there
    URL/artifacts/tokens-6d20f03c9a41be77/INSTANCE/...     the payload, in a folder named by its own digest

Two machines that do the same work at once may come to different bytes. Each fills a folder of its own, so whichever
`artifact.json` is there belongs to a payload that is whole; no lock is needed, and what is there is not replaced,
except by a run whose steps are on machines that have no other disk in common.

Whoever may write there may be less trusted than this machine: names are checked before they become paths, and every
file's size and sha256 before it is published here. Retries, parallel parts and credentials are the packages' own.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urlsplit
from uuid import uuid4

from speculators.errors import MachineError, SpeculatorsError, StepError, UsageError
from speculators.pipeline.digests import read_sha256, value_sha256
from speculators.pipeline.manifest import NAME, FileEntry, Manifest, artifact_id, instance_of
from speculators.pipeline.store import Artifact, Damaged, Store

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

VARIABLE = "SPECULATORS_REMOTE"
"""The variable with the URL, which may hold a password."""

Moved = Callable[[int], None]
"""Told how many more bytes have been moved, in any thread; raises Stopped to end it."""

_I = TypeVar("_I")
_T = TypeVar("_T")

_AT_ONCE = 8  # files, or manifests
_ONE_BY_ONE = ("ftp", "ftps")  # fsspec has one connection there, which several threads would mix up
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_NO_NETWORK = ("file", "local", "memory")
_KINDS = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, hf://buckets/ORG/NAME, file:///FOLDER"
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=,-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class Stopped(Exception):
    """A transfer that was ended from outside; what was moved so far serves the next attempt."""


class _Differs(Exception):
    """A file of the remote store is not what its manifest says."""


def unheeded(size: int) -> None:
    """Move on."""


class Remote:
    """The artifacts of a remote store; `str` of it is its URL, with secrets masked."""

    def __init__(self, url: str, files: AbstractFileSystem, root: str) -> None:
        self._url, self._files, self._root = url, files, root.rstrip("/")
        self._at_once = 1 if _split(url).scheme in _ONE_BY_ONE else _AT_ONCE
        self.damaged: dict[str, str] = {}
        """The artifacts that were found damaged, and why: they are taken for absent, and may be pushed anew."""

    @classmethod
    def open(cls, url: str) -> Remote:
        """The store at a URL; nothing is asked of it yet.

        Raises UsageError for what is no URL of a known kind, MachineError where the package for its kind is missing.
        """
        from fsspec.core import url_to_fs

        shown, scheme = masked(url), _split(url).scheme
        if not scheme or "::" in url or not url.startswith(f"{scheme}://"):
            raise UsageError(f"--remote is {shown!r}; write a URL such as {_KINDS}")
        try:
            files, root = url_to_fs(url, **({"auto_mkdir": True} if _is_folder(url) else {}))
        except ImportError as error:
            needed = f"pip install 'speculators[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else str(error)
            raise MachineError(f"--remote {shown} needs a package that is not installed here: {needed}") from None
        except ValueError as error:
            raise UsageError(f"--remote is {shown!r}: {_reason(error, url)}; write {_KINDS}") from None
        except Exception as error:  # noqa: BLE001  every kind has errors of its own
            raise MachineError(f"--remote {shown} cannot be used: {_reason(error, url)}") from None
        return cls(url, files, root)

    def __str__(self) -> str:
        return masked(self._url)

    def offers(self, keys: Mapping[str, str]) -> dict[str, Manifest]:
        """What there is of these steps with these keys, by step; only manifests are read.

        Raises MachineError where the store cannot be read.
        """
        names = {step: artifact_id(step, key) for step, key in keys.items()}
        unspoilt = {step: name for step, name in names.items() if name not in self.damaged}
        found = self._manifests(unspoilt.values())
        return {step: found[name] for step, name in unspoilt.items() if name in found and found[name].key == keys[step]}

    def all(self) -> list[Manifest]:
        """Everything there, newest first; raises MachineError where the store cannot be listed."""
        with self._telling("cannot be listed"):
            self._files.invalidate_cache()
            try:
                places = self._files.ls(f"{self._root}/artifacts", detail=False)
            except _NOT_THERE:
                return []
        found = self._manifests(PurePosixPath(str(place)).name for place in places)
        return sorted(found.values(), key=lambda manifest: manifest.finished, reverse=True)

    def pull(
        self, manifest: Manifest, store: Store, *, run: str, waiting: Callable[[str], None], moved: Moved = unheeded
    ) -> Artifact | Damaged:
        """Fetch an artifact that was offered into the store; one that is there meanwhile is taken as it is.

        Damaged: it is not what its manifest says, nothing was published, and from now on it is not offered. Files that
        an attempt which was ended had fetched are kept. Raises MachineError where the store cannot be read to the end.
        """
        name = artifact_id(manifest.step, manifest.key)
        with store.hold(name, run=run, waiting=waiting), self._telling(f"{name} could not be fetched"):
            there = store.find(manifest.step, manifest.key)
            if isinstance(there, Artifact):
                return there
            incoming = store.incoming(name)
            for path in [path for path in incoming.rglob("*") if path.is_symlink() or path.is_file()]:
                if path.is_symlink() or path.relative_to(incoming).as_posix() not in manifest.files:
                    path.unlink()
            source = f"{self._place(name)}/{manifest.instance}"
            try:
                self._each(partial(self._fetch, source, incoming, moved), manifest.files.items())
            except _Differs as difference:
                self.damaged[name] = str(difference)
                store.discard_incoming(name)
                return Damaged(incoming, str(difference))
            return store.adopt(incoming, manifest)

    def push(self, artifact: Artifact, moved: Moved = unheeded, *, replaces: bool = False) -> bool:
        """Copy an artifact there; False: it is there already. What an attempt that was ended had copied is kept.

        Another instance of the same key that is there stays, unless this one `replaces` it.

        Raises MachineError where the store cannot be written, StepError for an artifact that changes meanwhile.
        """
        name, manifest = artifact.path.name, artifact.manifest
        with self._telling(f"{name} could not be pushed"):
            if why := _unfit(name, manifest):
                raise StepError(f"{name} cannot be pushed: {why}")
            self._files.invalidate_cache()
            again = name in self.damaged
            if not again and (found := self._read(name)) and (not replaces or found.instance == manifest.instance):
                return False
            target = f"{self._place(name)}/{manifest.instance}"
            there = {} if again else self._sizes(target)
            wanted = [path for path, entry in manifest.files.items() if there.get(f"{target}/{path}") != entry.size]
            self._each(lambda path: self._put(artifact.path / path, f"{target}/{path}", moved), wanted)
            try:
                changed = Manifest.read(artifact.path) != manifest
            except ValueError:
                changed = True
            if changed:
                raise StepError(f"{name} was removed or made again while it was pushed")
            self._put(artifact.path / NAME, f"{self._place(name)}/{NAME}", unheeded)
            self.damaged.pop(name, None)
            return True

    def discard(self, name: str) -> None:
        """Remove an artifact, `artifact.json` first; raises MachineError where the store cannot be written."""
        with self._telling(f"{name} could not be removed"):
            self._files.invalidate_cache()
            for place in (f"{self._place(name)}/{NAME}", self._place(name)):
                with contextlib.suppress(*_NOT_THERE):
                    self._files.rm(place, recursive=True)

    def _place(self, name: str) -> str:
        return f"{self._root}/artifacts/{name}"

    def _manifests(self, names: Iterable[str]) -> dict[str, Manifest]:
        """The manifests of those that are there and can be trusted so far."""
        with self._telling("cannot be read"):
            self._files.invalidate_cache()
            asked = list(names)
            found = zip(asked, self._each(self._read, asked), strict=True)
            return {name: manifest for name, manifest in found if manifest is not None}

    def _read(self, name: str) -> Manifest | None:
        try:
            text = self._files.cat_file(f"{self._place(name)}/{NAME}")
        except _NOT_THERE:
            return None
        try:
            manifest = Manifest.decode(text)
            why = _unfit(name, manifest)
        except ValueError as error:
            why = str(error)
        if why:
            self.damaged[name] = why
            return None
        return manifest

    def _fetch(self, source: str, incoming: Path, moved: Moved, file: tuple[str, FileEntry]) -> None:
        """Bring one file of a payload; raises _Differs for one that is not what the manifest says."""
        path, entry = file
        target = incoming / path
        if not (target.is_file() and target.stat().st_size == entry.size and read_sha256(target) == entry.sha256):
            target.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            with _counted(entry.size, moved) as callback:
                try:
                    self._files.get_file(f"{source}/{path}", str(target), callback=callback)
                except _NOT_THERE:
                    raise _Differs(f"{path} is missing") from None
            size = target.stat().st_size if target.is_file() else 0
            if size != entry.size:
                raise _Differs(f"{path} has {size} bytes instead of {entry.size}")
            if read_sha256(target) != entry.sha256:
                raise _Differs(f"{path} has changed")

    def _put(self, source: Path, target: str, moved: Moved) -> None:
        """Copy one file there; other stores than folders show a file only when it is whole."""
        beside = f"{target}.{uuid4().hex[:8]}" if _is_folder(self._url) else target
        with _counted(source.stat().st_size, moved) as callback:
            self._files.put_file(str(source), beside, callback=callback)
        if beside != target:
            self._files.mv(beside, target)

    def _sizes(self, folder: str) -> dict[str, int]:
        try:
            found = self._files.find(folder, detail=True)
        except _NOT_THERE:
            return {}
        return {str(path): int(info["size"]) for path, info in found.items()}

    def _each(self, do: Callable[[_I], _T], items: Iterable[_I]) -> list[_T]:
        """Do it with every item, several at once; the first that goes wrong ends all that have not begun."""
        with ThreadPoolExecutor(self._at_once) as threads:
            doing = [threads.submit(do, item) for item in items]
            try:
                for one in wait(doing, return_when=FIRST_EXCEPTION).done:
                    one.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [one.result() for one in doing]

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Let whatever goes wrong in the block be told in one line, with the URL and without its secrets."""
        try:
            yield
        except (SpeculatorsError, Stopped):
            raise
        except Exception as error:  # noqa: BLE001  every kind of store has errors of its own
            raise MachineError(f"the remote store {self}: {what}: {_reason(error, self._url)}") from None


def needs_network(url: str) -> bool:
    """Whether the store at this URL lies beyond this machine."""
    return _split(url).scheme not in _NO_NETWORK


def masked(url: str) -> str:
    """The URL without user, password and query, in which stores take keys."""
    parts = _split(url)
    host = f"***@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    slashes = "//" if url.startswith(f"{parts.scheme}://") else ""
    return f"{parts.scheme}:{slashes}{host}{parts.path}{'?***' if parts.query else ''}" if parts.scheme else url


def _split(url: str) -> SplitResult:
    """The parts of a URL; of what is none, nothing but a path."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", url, "", "")


def _is_folder(url: str) -> bool:
    return _split(url).scheme in {"file", "local"}


def _reason(error: Exception, url: str) -> str:
    """What an error says, in one line, without what `masked` hides."""
    parts = _split(url)
    text = (str(error).strip() or type(error).__name__).splitlines()[0].replace(url, masked(url))
    for secret in (parts.netloc.rpartition("@")[0], parts.password, parts.query):
        text = text.replace(secret, "***") if secret else text
    return text


def _unfit(name: str, manifest: Manifest) -> str | None:
    """Why a manifest cannot be that of the artifact of this name, or names a file that must not be written.

    Raises ValueError where that cannot even be told.
    """
    if artifact_id(manifest.step, manifest.key) != name or value_sha256(manifest.hashed) != manifest.key:
        return f"{NAME} belongs to another key"
    if not manifest.files or instance_of(manifest.files) != manifest.instance:
        return f"{NAME} does not go with its own list of files"
    for path, entry in manifest.files.items():
        if path == NAME or not all(_FILE.fullmatch(part) for part in path.split("/")):
            return f"{NAME} names a file that no step would write: {path!r}"
        if entry.size < 0 or not _DIGEST.fullmatch(entry.sha256):
            return f"{NAME} has no size or sha256 of {path}"
    folders = {str(above) for path in manifest.files for above in PurePosixPath(path).parents}
    if both := sorted(folders & manifest.files.keys()):
        return f"{NAME} names a file that is a folder too: {both[0]!r}"
    datetime.fromisoformat(manifest.finished.replace("Z", "+00:00"))
    return None


@contextlib.contextmanager
def _counted(size: int, moved: Moved) -> Iterator[Any]:
    """What tells `moved` of a file's bytes as they go, and of the rest at its end."""
    from fsspec.callbacks import Callback

    told, lock = 0, threading.Lock()

    def hear(_: int | None, value: int, **__: Any) -> None:
        nonlocal told
        with lock:
            more, told = value - told, value
        moved(more)

    moved(0)
    yield Callback(hooks={"moved": hear})
    moved(size - told)
