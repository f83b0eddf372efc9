"""The next batch, read in a thread of its own while this one is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Generic, TypeVar

_Asked = TypeVar("_Asked")
_Read = TypeVar("_Read")


class Ahead(Generic[_Asked, _Read]):
    """What `read` makes of each of `wanted`, in order; at any time one that was not taken yet is there or being read.

    `read` is called in one thread only. It must not be needed for anything else while this is open.
    """

    def __init__(self, read: Callable[[_Asked], _Read], wanted: Iterable[_Asked]) -> None:
        self._read, self._wanted = read, wanted
        self._room = threading.Semaphore(1)
        self._ready: SimpleQueue[_Read | _Failed] = SimpleQueue()
        self._is_closed = False
        threading.Thread(target=self._run, name="read-ahead", daemon=True).start()

    def take(self) -> _Read:
        """The next one, waited for if need be; raises what `read` raised."""
        found = self._ready.get()
        if isinstance(found, _Failed):
            raise found.error
        self._room.release()
        return found

    def close(self) -> None:
        """Read no more; what is being read just now is finished, and dropped."""
        self._is_closed = True
        self._room.release()

    def _run(self) -> None:
        try:
            for one in self._wanted:
                self._room.acquire()
                if self._is_closed:
                    return
                self._ready.put(self._read(one))
        except BaseException as error:  # noqa: BLE001  it is the taker that has to end by it
            self._ready.put(_Failed(error))


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error
