"""Digests: of plain values, for keys, and of files, remembered so that a large file is read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20
_SETTLED_SECONDS = 2.0  # a file changed a moment ago may change again within the same tick of its clock

_memory: ContextVar[FileDigests | None] = ContextVar("_memory", default=None)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, the same text for the same value; raises ValueError for nan and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def value_sha256(value: Any) -> str:
    """The sha256 of a plain value, 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, 64 hex digits; remembered by path, size, time and inode inside `remembering`."""
    memory = _memory.get()
    return read_sha256(path) if memory is None else memory.sha256(path)


def read_sha256(path: Path) -> str:
    """The sha256 of a file as it is now, always read in full."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def remembering(memory: FileDigests) -> Iterator[None]:
    """Let `file_sha256` remember in `memory`, so that steps need not know where the store lies."""
    token = _memory.set(memory)
    try:
        yield
    finally:
        _memory.reset(token)


class FileDigests:
    """Which file had which sha256, in SQLite; a file that changed in any way that `stat` shows is forgotten.

    Where SQLite cannot work (a read-only or odd file system) nothing is remembered and nothing fails. The runner
    shares it among its threads.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None
        self._usable = True
        self._lock = threading.Lock()

    def sha256(self, path: Path) -> str:
        """The file's sha256, read only when it is not known."""
        before = path.stat()
        known = self.known(path, before)
        if known is not None:
            return known
        digest = read_sha256(path)
        if time.time() - before.st_mtime > _SETTLED_SECONDS:
            self.remember(path, digest, before)
        return digest

    def known(self, path: Path, stat: os.stat_result) -> str | None:
        """What is remembered of the file in exactly this state."""
        row = None
        with self._open() as connection:
            if connection is None:
                return None
            row = connection.execute(
                "select sha256 from digests where path = ? and size = ? and mtime_ns = ? and inode = ?",
                (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino),
            ).fetchone()
        return str(row[0]) if row else None

    def remember(self, path: Path, sha256: str, stat: os.stat_result) -> None:
        """Note the sha256 of a file in the state `stat`."""
        with self._open() as connection:
            if connection is not None:
                connection.execute(
                    "insert or replace into digests values (?, ?, ?, ?, ?)",
                    (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino, sha256),
                )
                connection.commit()

    def forget(self, folder: Path) -> None:
        """Forget all files below a folder."""
        with self._open() as connection:
            if connection is not None:
                start = f"{folder.absolute()}{os.sep}"
                connection.execute("delete from digests where substr(path, 1, ?) = ?", (len(start), start))
                connection.commit()

    def close(self) -> None:
        """Close the database; it opens again when it is needed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """The connection, or None where SQLite cannot work; its errors end here."""
        with self._lock:
            try:
                if self._connection is None and self._usable:
                    self._connection = sqlite3.connect(self._database, timeout=10, check_same_thread=False)
                    self._connection.execute(
                        "create table if not exists digests"
                        " (path text primary key, size integer, mtime_ns integer, inode integer, sha256 text)"
                    )
            except sqlite3.Error:
                self._usable = False
            if not self._usable or self._connection is None:
                yield None
                return
            try:
                yield self._connection
            except sqlite3.Error:
                self._usable = False
