"""`vllm serve` from its own environment: the arguments, the variables, and as many replicas as are asked for."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.engines.process import Launch, running
from speculators.engines.vllm.environment import INSIDE, VllmEnvironment, find_vllm
from speculators.recipe.shapes.verifier import VllmEngine

MODEL = "verifier"
"""What the served model is called."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server is run; nothing of this changes what it answers. Memory of the cache on a CPU in GiB."""

    tensor_parallel: int = 1
    data_parallel: int = 1
    replicas: int = 1
    max_length: int | None = None
    memory_fraction: float = 0.9
    cpu_cache: int = 4
    most_requests: int = 64
    eager: bool = False
    start_seconds: float = 1800
    reads_images: bool = False
    extra: tuple[str, ...] = ()


def server_options(engine: VllmEngine, extra: Sequence[str] = ()) -> ServerOptions:
    """What a recipe says of the server, and further arguments from the command line."""
    return ServerOptions(
        tensor_parallel=engine.tensor_parallel,
        data_parallel=engine.data_parallel,
        replicas=engine.replicas,
        max_length=engine.max_length,
        memory_fraction=engine.memory_fraction,
        cpu_cache=engine.cpu_cache,
        most_requests=engine.concurrency,
        eager=engine.eager,
        start_seconds=engine.start_seconds,
        extra=tuple(extra),
    )


def serve_arguments(model: Path | str, dtype: str, options: ServerOptions, *, trust_remote_code: bool) -> list[str]:
    """`vllm serve`'s arguments, without host and port."""
    arguments = [
        *("serve", str(model)),
        *("--served-model-name", MODEL),
        *("--dtype", dtype),
        *("--tensor-parallel-size", str(options.tensor_parallel)),
        *("--data-parallel-size", str(options.data_parallel)),
        *("--gpu-memory-utilization", str(options.memory_fraction)),
        *("--max-num-seqs", str(options.most_requests)),
        # Not what the model's makers recommend: a penalty for repetitions changes even the likeliest token.
        *("--generation-config", "vllm"),
        "--disable-uvicorn-access-log",
    ]
    if options.max_length is not None:
        arguments += ["--max-model-len", str(options.max_length)]
    # Without images neither the part of a model that sees them is loaded nor what would prepare them.
    arguments.append("--enable-scale-out" if options.reads_images else "--language-model-only")
    if options.eager:
        arguments.append("--enforce-eager")
    if trust_remote_code:
        arguments.append("--trust-remote-code")
    return [*arguments, *options.extra]


def extraction_arguments(layers: Sequence[int], scratch: Path, *, cpu: bool) -> list[str]:
    """The arguments that make vLLM write the streams entering `layers` to files in `scratch`."""
    speculative = {
        "method": "extract_hidden_states",
        "num_speculative_tokens": 1,
        "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(layers)}},
    }
    transfer: dict[str, Any] = {
        "kv_connector": "ExampleHiddenStatesConnector",
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"shared_storage_path": str(scratch)},
    }
    if cpu:
        transfer |= {
            "kv_connector": "CpuHiddenStatesConnector",
            "kv_connector_module_path": "speculators_cpu_connector",
        }
    return [
        *("--speculative-config", json.dumps(speculative)),
        *("--kv-transfer-config", json.dumps(transfer)),
        "--no-enable-prefix-caching",  # a cached prefix has no states to write
    ]


@contextmanager
def vllm_servers(arguments: Sequence[str], options: ServerOptions, folder: Path) -> Iterator[list[str]]:
    """Start every replica and give their base URLs once all are healthy; logs go to `vllm-N.log` in `folder`.

    On a machine with GPUs each replica gets its own `tensor_parallel * data_parallel` of them, in order.
    """
    found = find_vllm()
    launches = [_launch(found, arguments, options, folder, number) for number in range(options.replicas)]
    with running(launches, start_seconds=options.start_seconds) as urls:
        yield urls


def _launch(
    found: VllmEnvironment, arguments: Sequence[str], options: ServerOptions, folder: Path, number: int
) -> Launch:
    port = free_port()
    command = [str(found.python), "-m", "vllm.entrypoints.cli.main", *arguments]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = folder / f"vllm-{number}.log"
    return Launch(command, log, lambda _: f"http://127.0.0.1:{port}", environment(found, options, number))


def environment(found: VllmEnvironment, options: ServerOptions, replica: int) -> dict[str, str]:
    """Ours without what would lead vLLM's Python astray, and with what its build needs."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    kept |= {"PYTHONPATH": str(INSIDE), "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if found.cpu:
        kept.setdefault("VLLM_CPU_KVCACHE_SPACE", str(options.cpu_cache))
        kept.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        kept.pop("GOMP_SPINCOUNT", None)  # it binds its threads to cores, and measures better without
    elif options.replicas > 1:
        share = options.tensor_parallel * options.data_parallel
        every = kept["CUDA_VISIBLE_DEVICES"].split(",") if kept.get("CUDA_VISIBLE_DEVICES") else None
        own = range(replica * share, (replica + 1) * share)
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(every[number] if every else str(number) for number in own)
    return kept


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
