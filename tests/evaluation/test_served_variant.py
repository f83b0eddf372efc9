"""How a variant is started: which type its weights run in, and which verifier its draft gets."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from speculators.evaluation import served_variant
from speculators.evaluation.served_variant import Variant, serving
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of every server that would have been started."""
    found: list[list[str]] = []

    @contextmanager
    def embedded(arguments, log):
        found.append(list(arguments))
        yield "http://embedded"

    @contextmanager
    def vllm(arguments, options, folder):
        model = Path(arguments[1])
        config = json.loads((model / "config.json").read_text())
        named = config.get("speculators_config", {}).get("verifier", {}).get("name_or_path")
        found.append([*arguments, f"named={named}"])
        yield ["http://vllm"]

    monkeypatch.setattr(served_variant, "served", embedded)
    monkeypatch.setattr(served_variant, "vllm_servers", vllm)
    return found


def engines() -> tuple[TransformersEngine, VllmEngine]:
    options = {"concurrency": 16, "tensor_parallel": 1, "data_parallel": 1, "replicas": 2, "max_length": None}
    vllm = VllmEngine(**options, endpoint=None, memory_fraction=0.9, cpu_cache=1, eager=True, start_seconds=900)
    return TransformersEngine(device="cpu", threads=None, batch_tokens=1), vllm


def folders(tmp_path: Path, **config: object) -> tuple[Path, Path]:
    verifier, checkpoint = tmp_path / "verifier", tmp_path / "checkpoint"
    for folder in (verifier, checkpoint):
        folder.mkdir()
    (verifier / "config.json").write_text(json.dumps(CONFIG | config))
    said = {"speculators_model_type": "eagle3", "speculators_config": {"verifier": {"name_or_path": "a/b"}}}
    (checkpoint / "config.json").write_text(json.dumps(said))
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    return verifier, checkpoint


@pytest.mark.parametrize(
    ("config", "dtype"), [({}, "float32"), ({"quantization_config": {"quant_method": "fp8"}}, "auto")]
)
def test_quantised_weights_run_in_their_own_type_and_others_in_the_recipe_s(tmp_path, started, config, dtype):
    verifier, _ = folders(tmp_path, **config)
    for engine in engines():
        with serving(Variant(verifier, None, "float32", slots=3), engine, tmp_path):
            pass
    assert [arguments[arguments.index("--dtype") + 1] for arguments in started] == [dtype, dtype]


def test_the_draft_gets_the_variant_s_verifier_and_the_checkpoint_stays_as_it_was(tmp_path, started):
    verifier, checkpoint = folders(tmp_path)
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    embedded, vllm = engines()
    with serving(Variant(verifier, checkpoint, "float32", slots=3), embedded, tmp_path) as url:
        assert url == "http://embedded"
    with serving(Variant(verifier, checkpoint, "float32", slots=3), vllm, tmp_path):
        weights = tmp_path / "served" / "model.safetensors"
        assert weights.is_symlink(), "weights are not copied"
        assert weights.read_bytes() == b"weights"
    assert started[0][started[0].index("--verifier") + 1] == str(verifier)
    assert started[1][-1] == f"named={verifier}"
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before
    assert not (tmp_path / "served").exists()
