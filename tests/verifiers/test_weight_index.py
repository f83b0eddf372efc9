"""An index may be a stranger's: it names files of its own folder, or is refused in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.load import read_checkpoint
from speculators.errors import UsageError
from speculators.verifiers.lender import Lender
from speculators.verifiers.weight_index import INDEX, read_index

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "speculators_model_type": "eagle3",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 16,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
}
OUTSIDE = ["../secret.safetensors", "/secret.safetensors", "parts/../../secret.safetensors", "C:\\secret.safetensors"]


def written(folder: Path, name: str) -> Path:
    """An index of one tensor, with a config beside it and a real file where a careless reader would find one."""
    place = folder / "draft"
    place.mkdir()
    save_file({"fc.weight": torch.ones(2, 2)}, folder / "secret.safetensors")
    (place / "config.json").write_text(json.dumps(CONFIG))
    (place / INDEX).write_text(json.dumps({"weight_map": {"fc.weight": name}}))
    return place


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="which is not in this folder"):
        read_index(written(tmp_path, name) / INDEX)


def test_a_folder_inside_is_allowed(tmp_path: Path) -> None:
    assert read_index(written(tmp_path, "parts/one.safetensors") / INDEX) == {"fc.weight": "parts/one.safetensors"}


def test_whoever_reads_weights_refuses_it(tmp_path: Path) -> None:
    place = written(tmp_path, OUTSIDE[0])
    readers = (Foreign.open, read_checkpoint, lambda folder: Lender.of_directory(folder, "draft").lend("head"))
    for reader in readers:
        with pytest.raises(UsageError, match="which is not in this folder"):
            reader(place)
