"""The store: finished work by key, work in progress, locks, trash.

    store.json                        {"format": 1}
    artifacts/tokens-6d20f03c9a41be77/    published: artifact.json and the payload, read-only, never changed
    partial/tokens-6d20f03c9a41be77/      the step's own folder while it works; survives a crash
    partial/tokens-....from               the instances of the inputs that the partial work was begun with
    incoming/tokens-6d20f03c9a41be77/     what is being fetched from a remote store (pipeline.remote)
    locks/tokens-6d20f03c9a41be77         flock while working
    trash/                                what was removed is renamed here first, then deleted
    digests.sqlite                        sha256 of files by path, size, time and inode
    machines/                             what machine Slurm gives to jobs that ask for the same

Publishing is one `rename` of a folder whose files are on the disk: there is never anything in `artifacts/` that only
looks finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from speculators.errors import StepError, UsageError
from speculators.pipeline.digests import FileDigests, read_sha256
from speculators.pipeline.locks import check_locks_work, hold, try_hold
from speculators.pipeline.manifest import NAME, FileEntry, Manifest, artifact_id, instance_of, payload

FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """A published artifact: its folder and its manifest."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class Damaged:
    """A folder among the artifacts whose files are not what was published, and why."""

    path: Path
    why: str


def default_store() -> Path:
    """`$SPECULATORS_STORE`, else the user's cache folder."""
    named = os.environ.get("SPECULATORS_STORE")
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("speculators")


class Store:
    """A store on a file system that this machine can lock."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.artifacts = self.root / "artifacts"
        self.partials = self.root / "partial"
        self.incomings = self.root / "incoming"
        self.locks = self.root / "locks"
        self.trash = self.root / "trash"
        self.digests = FileDigests(self.root / "digests.sqlite")

    @classmethod
    def open(cls, root: Path) -> Store:
        """Open the store, made new where there is none.

        Raises UsageError for a store of another format, MachineError where locks do not work or nothing can be written.
        """
        store = cls(root)
        mark = store.root / "store.json"
        if not mark.is_file():
            store._create(mark)
        try:
            found = json.loads(mark.read_text(encoding="utf-8"))["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{mark} cannot be read as the mark of a store: {error}") from error
        if found != FORMAT:
            raise UsageError(
                f"{store.root} has format {found}; this version reads format {FORMAT}; give another --store"
            )
        return store

    def _create(self, mark: Path) -> None:
        try:
            for folder in (self.artifacts, self.partials, self.locks, self.trash):
                folder.mkdir(parents=True, exist_ok=True)
            check_locks_work(self.root)
            beside = mark.with_name(f".store.json.{os.getpid()}")
            beside.write_text(json.dumps({"format": FORMAT}) + "\n", encoding="utf-8")
            beside.replace(mark)
        except OSError as error:
            raise UsageError(f"no store can be made in {self.root}: {error.strerror}; give another --store") from error

    def find(self, step: str, key: str) -> Artifact | Damaged | None:
        """The artifact with this key, if all its files are what was published.

        A file that `stat` knows to be unchanged is not read; one that may have changed is read in full.
        """
        path = self.artifacts / artifact_id(step, key)
        if not path.is_dir() or path.is_symlink():
            return Damaged(path, "it is not a folder") if path.is_symlink() or path.exists() else None
        try:
            manifest = Manifest.read(path)
        except ValueError as error:
            return Damaged(path, str(error))
        if manifest.key != key or manifest.step != step:
            return Damaged(path, f"{NAME} belongs to another key")
        why = self._difference(path, manifest)
        return Damaged(path, why) if why else Artifact(path, manifest)

    def serving(self, step: str, key: str, replaces: str | None, instances: Mapping[str, str]) -> Artifact | None:
        """The artifact with this key if it can serve a run: made by another run than `replaces`, from these inputs."""
        found = self.find(step, key)
        if isinstance(found, Artifact) and found.manifest.run != replaces and not made_from(found.manifest, instances):
            return found
        return None

    def all(self) -> Iterator[Artifact]:
        """Every artifact whose manifest can be read, newest first; files are not looked at."""
        found = []
        for path in self.artifacts.iterdir() if self.artifacts.is_dir() else ():
            with contextlib.suppress(ValueError):
                found.append(Artifact(path, Manifest.read(path)))
        return iter(sorted(found, key=lambda artifact: artifact.manifest.finished, reverse=True))

    def history(self, step: str) -> list[Artifact]:
        """The artifacts of one step, newest first."""
        found = []
        for path in self.artifacts.glob(f"{step}-{'[0-9a-f]' * 16}"):
            with contextlib.suppress(ValueError):
                found.append(Artifact(path, Manifest.read(path)))
        return sorted(found, key=lambda artifact: artifact.manifest.finished, reverse=True)

    def verify(self, artifact: Artifact) -> str | None:
        """Read every file again; what is wrong, or None."""
        return self._difference(artifact.path, artifact.manifest, read_all=True)

    def touch(self, artifact: Artifact) -> None:
        """Note that the artifact is in use; `prune` goes by the last use."""
        with contextlib.suppress(OSError):
            os.utime(artifact.path / NAME)

    def hold(
        self, artifact: str, *, run: str, waiting: Callable[[str], None]
    ) -> contextlib.AbstractContextManager[None]:
        """Be the only process that works on an artifact."""
        return hold(self.locks / artifact, run=run, waiting=waiting)

    def try_hold(self, artifact: str) -> contextlib.AbstractContextManager[bool]:
        """Be the only process that works on an artifact if nobody else is; False: somebody is."""
        return try_hold(self.locks / artifact)

    def partial(self, artifact: str, instances: Mapping[str, str]) -> Path:
        """The folder in which the work on an artifact goes on; call it holding the lock.

        Work begun with other instances of the inputs is thrown away: a step would mix old and new shards.
        """
        folder = self.partials / artifact
        if folder.exists() and not self.is_begun(artifact, instances):
            self._remove(folder)
        if not folder.exists():
            self._origin(artifact).write_text(json.dumps(dict(instances), sort_keys=True), encoding="utf-8")
            folder.mkdir()
        for _, path in payload(folder):
            path.chmod(0o644)  # an attempt that died while publishing had made them read-only
        return folder

    def partial_path(self, artifact: str) -> Path:
        """Where the work on an artifact goes on, for who only reads there."""
        return self.partials / artifact

    def is_begun(self, artifact: str, instances: Mapping[str, str]) -> bool:
        """Whether there is work on an artifact with these instances of the inputs."""
        origin = self._origin(artifact)
        wanted = json.dumps(dict(instances), sort_keys=True)
        return (self.partials / artifact).is_dir() and origin.is_file() and origin.read_text(encoding="utf-8") == wanted

    def publish(self, partial: Path, describe: Callable[[str, dict[str, FileEntry]], Manifest]) -> Artifact:
        """Make the work in `partial` the artifact; call it holding the lock.

        `describe` turns the payload's instance and files into the manifest. An artifact with the same key that is there
        already goes to the trash: the caller looked at it and found it damaged or made from other inputs.
        """
        files: dict[str, FileEntry] = {}
        for relative, path in payload(partial):
            _sync(path)
            files[relative] = FileEntry(path.stat().st_size, read_sha256(path))
            path.chmod(0o444)
        if not files:
            raise StepError("the step ended without writing a file")
        self._remove_hidden(partial)
        artifact = self._place(partial, describe(instance_of(files), files))
        self._origin(partial.name).unlink(missing_ok=True)
        return artifact

    def incoming(self, artifact: str) -> Path:
        """The folder into which an artifact is fetched from elsewhere; call it holding the lock."""
        folder = self.incomings / artifact
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def adopt(self, incoming: Path, manifest: Manifest) -> Artifact:
        """Make what was fetched the artifact; call it holding the lock, after every file was held to the manifest."""
        for relative in manifest.files:
            _sync(incoming / relative)
            (incoming / relative).chmod(0o444)
        return self._place(incoming, manifest)

    def discard(self, artifact: str) -> None:
        """Remove a published artifact; one rename, so nothing half removed is ever found."""
        self.digests.forget(self.artifacts / artifact)
        self._remove(self.artifacts / artifact)

    def discard_partial(self, artifact: str) -> None:
        """Remove unfinished work and what was fetched so far; call it holding the lock."""
        if (self.partials / artifact).exists():
            self._remove(self.partials / artifact)
        self._origin(artifact).unlink(missing_ok=True)
        self.discard_incoming(artifact)

    def discard_incoming(self, artifact: str) -> None:
        """Remove what was fetched of an artifact so far; call it holding the lock."""
        if (self.incomings / artifact).exists():
            self._remove(self.incomings / artifact)

    def empty_trash(self) -> None:
        """Delete what an interrupted removal left behind."""
        for path in self.trash.iterdir():
            _delete(path)

    def _place(self, folder: Path, manifest: Manifest) -> Artifact:
        """Rename a folder whose files are whole, on the disk and read-only to where artifacts are."""
        manifest.write(folder)
        for place, _, _ in os.walk(folder):
            _sync(Path(place))
        target = self.artifacts / folder.name
        if target.exists():
            self.discard(folder.name)
        folder.rename(target)
        _sync(self.artifacts)
        for relative, entry in manifest.files.items():
            self.digests.remember(target / relative, entry.sha256, (target / relative).stat())
        return Artifact(target, manifest)

    def _origin(self, artifact: str) -> Path:
        return self.partials / f"{artifact}.from"

    def _remove(self, path: Path) -> None:
        gone = self.trash / f"{path.name}.{uuid4().hex[:8]}"
        path.rename(gone)
        _delete(gone)

    def _remove_hidden(self, folder: Path) -> None:
        for path in sorted(folder.rglob(".*")):
            if path.exists():
                _delete(path)

    def _difference(self, path: Path, manifest: Manifest, *, read_all: bool = False) -> str | None:
        """What in the folder is not as published, in words."""
        try:
            there = dict(payload(path))
        except (StepError, OSError) as error:
            return str(error)
        if missing := sorted(manifest.files.keys() - there.keys()):
            return f"{missing[0]} is missing"
        if added := sorted(there.keys() - manifest.files.keys()):
            return f"{added[0]} was added"
        for relative, entry in manifest.files.items():
            stat = there[relative].stat()
            if stat.st_size != entry.size:
                return f"{relative} has {stat.st_size} bytes instead of {entry.size}"
            sha256 = None if read_all else self.digests.known(there[relative], stat)
            if sha256 is None:
                sha256 = read_sha256(there[relative])
                if sha256 == entry.sha256:
                    self.digests.remember(there[relative], sha256, stat)
            if sha256 != entry.sha256:
                return f"{relative} has changed"
        return None


def instances(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """The instances of the inputs, and of everything that they were made from."""
    found: dict[str, str] = {}
    for artifact in inputs.values():
        found.update(artifact.manifest.instances)
    found.update({step: artifact.manifest.instance for step, artifact in inputs.items()})
    return found


def made_from(manifest: Manifest, present: Mapping[str, Any]) -> str | None:
    """The first step whose present instance is not the one that an artifact was made from; None: it is up to date.

    `present` are the instances that exist, by step. One that is gone cannot contradict.
    """
    for step, instance in manifest.instances.items():
        if present.get(step, instance) != instance:
            return step
    return None


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
