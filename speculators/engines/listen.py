"""The server's socket: bound before anything is said, so that the address told is the address that answers."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from speculators.engines.server import Served, make_app
from speculators.errors import MachineError


def listen(served: Served, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `announce` gets the base URL. Port 0 picks a free one.

    Raises MachineError when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except OSError as error:
            served.scheduler.close()
            raise MachineError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        shown = f"[{host}]" if ":" in host else host
        announce(f"http://{shown}:{bound.getsockname()[1]}")
        config = uvicorn.Config(make_app(served), log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[bound])
