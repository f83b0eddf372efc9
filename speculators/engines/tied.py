"""Runs a command that never outlives its starter: `python -m speculators.engines.tied COMMAND...`.

The starter holds the other end of our standard input. When that closes, however the starter ended, and on SIGTERM, the
command and all its children are asked to end, and killed if they do not. We end as the command did, by a signal too.
On Linux the command is also asked to end when we ourselves are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

GRACE_SECONDS = 20.0
"""A server that holds a GPU needs some seconds to give it back."""
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


def main(command: Sequence[str]) -> int:
    """Run `command` in a process group of its own until it ends, or until we are to end it."""
    asked: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.append(True))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent)

    def wait_for_the_starter() -> None:
        os.read(0, 1)  # returns when the pipe closes
        asked.append(True)

    threading.Thread(target=wait_for_the_starter, daemon=True).start()
    while process.poll() is None and not asked:
        time.sleep(_POLL_SECONDS)
    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_SECONDS)
    _signal(process.pid, signal.SIGKILL)  # what the command left behind, or the command itself
    return process.wait()


def _end_with_parent() -> None:
    """In the command's process, before it is the command's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if status < 0 and -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)
