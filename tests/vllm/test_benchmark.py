"""A draft on a verifier of quantised weights in a real vLLM, measured by GuideLLM; and a server that dies under it."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.engines.process import read
from speculators.engines.prometheus import parse
from speculators.errors import StepError
from speculators.evaluation.guidellm import Load, measure
from speculators.evaluation.points import SYNCHRONOUS, THROUGHPUT
from speculators.evaluation.served_points import measure_until_heard
from speculators.evaluation.served_process import warm_up
from speculators.evaluation.served_variant import MODEL, Variant, serving
from speculators.recipe.shapes.verifier import VllmEngine

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

INTEGERS = {"num_bits": 8, "type": "int", "symmetric": True}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": INTEGERS | {"strategy": "channel", "dynamic": False},
            "input_activations": INTEGERS | {"strategy": "token", "dynamic": True},
        }
    },
}


def quantized(verifier: Path, folder: Path) -> Path:
    """The verifier with its linear layers' weights as 8-bit integers, one scale a row, as compressed-tensors has it."""
    shutil.copytree(verifier, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": INT8, "dtype": "bfloat16"}))
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = tensor.abs().amax(dim=1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def untrained_draft(folder: Path) -> Path:
    """A checkpoint of random weights for the tests' verifier, whose name for the verifier leads nowhere."""
    config = Eagle3Config(
        hidden_size=128,
        intermediate_size=192,
        attention_heads=4,
        key_value_heads=2,
        head_dim=32,
        vocab_size=300,
        draft_vocab_size=300,
        aux_layers=(2, 3, 5),
        rope={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
    )
    tensors = Eagle3Network(config).state_dict()
    named = VerifierName(str(folder / "nowhere"), ("LlamaForCausalLM",))
    write_checkpoint(folder, speculators_config(config.to_config_json(), named, 3, "float32"), tensors)
    return folder


def kill_the_server(url: str) -> None:
    """Kill the server below this process when it has written some more tokens."""
    before = parse(read(f"{url}/metrics"))["generation_tokens_total"][0]
    while parse(read(f"{url}/metrics"))["generation_tokens_total"][0] < before + 50:
        time.sleep(0.05)
    below = psutil.Process().children(recursive=True)
    next(one for one in below if "serve" in (line := one.cmdline()) and "tied" not in str(line)).kill()


def test_a_draft_serves_a_quantised_verifier_until_the_server_is_killed_and_that_is_told(
    verifier: Path, engine: VllmEngine, servers: Callable[[], list[psutil.Process]], tmp_path: Path
) -> None:
    int8, draft = quantized(verifier, tmp_path / "int8"), untrained_draft(tmp_path / "draft")
    output = tmp_path / "output"
    output.mkdir()
    load = Load(requests=6, max_tokens=16, prompts=("Hello", "How are you?", "Write a line."))

    def measure_until_killed() -> None:
        with serving(Variant(int8, draft, dtype="float32", slots=4), engine, output) as url:
            warm_up(url, MODEL, 8)
            figures = measure_until_heard(lambda: measure(url, MODEL, verifier, load, output / "01", SYNCHRONOUS), url)
            assert figures["output_tokens_per_second"] > 0
            assert figures["acceptance_length"] >= 1
            assert len(figures["positions"]) == 3
            log = (output / "vllm-0.log").read_text()
            assert "dtype=torch.bfloat16" in log, "quantised weights run in the type of their own config"
            assert "quantization=compressed-tensors" in log
            threading.Thread(target=kill_the_server, args=(url,)).start()
            measure(url, MODEL, verifier, Load(2000, 64, load.prompts), output / "02", THROUGHPUT)

    with pytest.raises(StepError, match="the server ended with code -9 while it was needed"):
        measure_until_killed()
    assert psutil.wait_procs(servers(), timeout=30)[1] == []
    assert not (output / "served").exists(), "the folder that stood for the checkpoint is gone"
    assert not (output / "02" / "prompts.jsonl").exists()
