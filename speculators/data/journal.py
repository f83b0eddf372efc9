"""Records written as they are made: a killed step finds every one again that was whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

Record = dict[str, Any]


class Journal:
    """A file of one JSON object a line, only ever appended to; a last line that a kill cut off is left out."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> Journal:
        whole = sum(len(line) for line in self._lines())
        self._stream = self._file.open("ab")
        self._stream.truncate(whole)  # what a kill left of a line would spoil the next one
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, record: Record) -> None:
        """Append a record; it is the operating system's when this returns, and survives a kill."""
        self._stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()

    def records(self) -> Iterator[Record]:
        """All whole records, in the order in which they were added."""
        for line in self._lines():
            yield json.loads(line)

    def _lines(self) -> Iterator[bytes]:
        if self._file.is_file():
            with self._file.open("rb") as stream:
                yield from (line for line in stream if line.endswith(b"\n"))
