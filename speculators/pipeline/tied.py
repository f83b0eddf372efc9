"""Processes that end when whoever started them is gone, killed though it may be."""

from __future__ import annotations

import os
import signal
import threading
import time

_GRACE_SECONDS = 10.0


def end_with_the_runner() -> None:
    """Ask this process to end (SIGTERM) when its standard input closes, and kill its group after some seconds.

    The runner holds the other end of the pipe, and gave the process a group of its own.
    """

    def wait() -> None:
        os.read(0, 1)  # returns when the pipe closes; `sys.stdin` would hold a lock at exit
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
