"""A real vLLM, where it is installed; without it every test here is skipped and says so."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from speculators.engines.vllm.environment import find_vllm
from speculators.engines.vllm.server import ServerOptions, environment
from speculators.errors import MachineError
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine
from speculators.verifiers.random_model import write_random_model

SHAPE = SimpleNamespace(
    layers=7, hidden_size=128, intermediate_size=192, attention_heads=4, key_value_heads=2, vocab_size=300, seed=0
)

INSIDE = Path(__file__).with_name("inside.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        find_vllm()
        reason = ""
    except MachineError as error:
        reason = str(error)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("vllm")
            item.add_marker(pytest.mark.timeout(1500))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose heads are wide enough for vLLM's attention on a CPU.

    Its makers recommend a penalty for repetitions, as some do: that would be another distribution than the model's.
    """
    directory = tmp_path_factory.mktemp("models") / "verifier"
    write_random_model(SHAPE, directory)
    recommended = directory / "generation_config.json"
    said = json.loads(recommended.read_text()) if recommended.is_file() else {}
    recommended.write_text(json.dumps(said | {"repetition_penalty": 1.5}))
    return directory


@pytest.fixture(scope="session")
def engine() -> VllmEngine:
    """Small, and started without compiling anything."""
    options: dict[str, Any] = {
        "endpoint": None, "concurrency": 16, "tensor_parallel": 1, "data_parallel": 1, "replicas": 1,
        "max_length": 1024, "memory_fraction": 0.9, "cpu_cache": 1, "eager": True, "start_seconds": 900,
    }  # fmt: skip
    return VllmEngine(**options)


@pytest.fixture(scope="session")
def embedded() -> TransformersEngine:
    return TransformersEngine(device="cpu", threads=None, batch_tokens=16384)


@pytest.fixture(scope="session")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """vLLM's own engine in one process (`inside.py`): `vllm serve`'s arguments, prompts and tokens -> what came of it.

    For whatever is about what vLLM computes; tests of the server start a server.
    """
    found, folder = find_vllm(), tmp_path_factory.mktemp("inside")
    started: list[subprocess.Popen[str]] = []
    log = folder / "log"

    def run(arguments: Sequence[str], prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
        if not started:
            told = log.open("w")
            variables = environment(found, ServerOptions(cpu_cache=1), 0)
            command = [str(found.python), str(INSIDE)]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": told, "text": True}
            started.append(subprocess.Popen(command, env=variables, **pipes))
        (process,) = started
        result = folder / "result.json"
        job = {"arguments": list(arguments), "prompts": list(map(list, prompts)), "tokens": tokens}
        process.stdin.write(json.dumps(job | {"result": str(result)}) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n", log.read_text()[-5000:]
        answer: dict[str, Any] = json.loads(result.read_text())
        result.unlink()
        assert "error" not in answer, answer["error"]
        return answer

    yield run
    for process in started:
        process.stdin.close()
        process.wait()


@pytest.fixture
def servers() -> Callable[[], list[psutil.Process]]:
    """The processes of vLLM and GuideLLM below this one, whenever asked, and none of other tests."""

    def found() -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process().children(recursive=True)
            if ("vllm" in (line := _command(child)) or "guidellm" in line) and str(INSIDE) not in line
        ]

    return found


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
