"""A server that we start never outlives us, however we end, and neither do its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from speculators.engines.process import Launch, running
from speculators.errors import StepError

SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *arguments): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
print("child", child.pid, "at", server.server_port, flush=True)
server.serve_forever()
"""
STARTER = """
import sys, time
from pathlib import Path
from speculators.engines.process import Launch, running
from tests_server import url_of
command = [sys.executable, "-c", Path(sys.argv[1]).read_text()]
with running([Launch(command, Path(sys.argv[2]), url_of)]):
    print("ready", flush=True)
    time.sleep(600)
"""


def url_of(printed: str) -> str | None:
    return f"http://127.0.0.1:{printed.split()[3]}" if printed.endswith("\n") else None


def server(log: Path) -> Launch:
    return Launch([sys.executable, "-c", SERVER], log, url_of)


def child_of(log: Path) -> int:
    return int(log.read_text().split()[1])


def gone(pid: int) -> bool:
    """Whether the process ends within some seconds; a zombie that nobody reaps has ended."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_server_and_its_children_end_with_the_block(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running([server(log)]) as (url,):
        child = child_of(log)
        assert url.startswith("http://127.0.0.1:")
        assert psutil.pid_exists(child)
    assert gone(child)


def test_they_end_with_an_error_inside(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ZeroDivisionError), running([server(log)]):
        _ = 1 / 0
    assert gone(child_of(log))


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that has started the server and is using it."""
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "tests_server.py").write_text(
        "def url_of(printed):\n"
        "    return f'http://127.0.0.1:{printed.split()[3]}' if printed.endswith(chr(10)) else None\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path / "server.py"), str(tmp_path / "log")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_they_end_with_us(starter: subprocess.Popen[str], tmp_path: Path, number: int) -> None:
    child = child_of(tmp_path / "log")
    starter.send_signal(number)
    assert gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_they_end_with_the_process_that_ties_them_to_us(starter: subprocess.Popen[str], tmp_path: Path) -> None:
    (tied,) = psutil.Process(starter.pid).children()
    (server,) = tied.children()
    tied.kill()
    assert gone(server.pid)


def test_a_server_that_does_not_start_shows_its_last_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('the model is too large'); raise SystemExit(3)"]
    with (
        pytest.raises(StepError, match=r"ended with code 3 before it was ready: the model is too large$"),
        running([Launch(command, tmp_path / "log", lambda _: None)]),
    ):
        pass


def test_the_error_that_a_log_names_first_is_told(tmp_path: Path) -> None:
    script = (
        "print('WARNING 1 INFO x', 'ValueError: no harm', sep=' WARNING ')\n"
        "print('(Worker) ERROR RuntimeError: head_dim=16 is not supported')\n"
        "print('EngineDeadError: see above')\nprint('leaked 3 objects')\nraise SystemExit(1)"
    )
    launch = Launch([sys.executable, "-c", script], tmp_path / "log", lambda _: None)
    with pytest.raises(StepError, match=r"ready: RuntimeError: head_dim=16 is not supported$"), running([launch]):
        pass


def test_an_error_that_comes_of_a_server_s_end_is_told_as_that(tmp_path: Path) -> None:
    logs = [tmp_path / "one", tmp_path / "two"]

    def lose_one() -> None:
        with running([server(log) for log in logs]) as urls:
            assert len(set(urls)) == 2
            psutil.Process(psutil.Process(child_of(logs[1])).ppid()).kill()
            time.sleep(0.5)
            raise ConnectionError

    with pytest.raises(StepError, match="while it was needed: child"):
        lose_one()
    assert gone(child_of(logs[0]))
    assert gone(child_of(logs[1]))
