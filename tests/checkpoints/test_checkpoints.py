"""The speculators format: written, read back bit for bit, and checked against what vLLM would make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speculators import __version__
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.layout import tensors as eagle3_tensors
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.layout import completed
from speculators.checkpoints.load import draft_shape, load_draft, read_checkpoint
from speculators.checkpoints.rules import config_problems
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.errors import UsageError

SIZES = (
    *("model_type", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size"),
    *("rms_norm_eps", "max_position_embeddings"),
)
VERIFIER = VerifierName("someone/Some-Model", ("LlamaForCausalLM",))


def _shape(**options: Any) -> Eagle3Config:
    return Eagle3Config(
        **{
            "hidden_size": 16,
            "intermediate_size": 24,
            "attention_heads": 4,
            "key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 50,
            "draft_vocab_size": 20,
            "aux_layers": (2, 3, 5),
            "rope": {"rope_type": "default", "rope_theta": 10000.0},
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 128,
            **options,
        }
    )


def _network(shape: Eagle3Config) -> Eagle3Network:
    torch.manual_seed(0)
    network = Eagle3Network(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    if shape.has_vocabulary_map:
        kept = torch.randperm(shape.vocab_size)[: shape.draft_vocab_size].sort().values
        network.d2t.copy_(kept - torch.arange(len(kept)))
        network.t2d[kept] = True
    return network


def _write(directory: Path, shape: Eagle3Config, dtype: str = "float32", **options: Any) -> Eagle3Network:
    network = _network(shape)
    config = speculators_config(shape.to_config_json(), VERIFIER, 3, dtype)
    write_checkpoint(directory, config, network.state_dict(), **options)
    return network


SHAPES = [
    _shape(),
    _shape(draft_vocab_size=50, norm_before_residual=True, norm_output=True),
    _shape(aux_layers=(2,), norm_before_fc=True, layers=2),
    _shape(fc_norm=True, norm_output=True, layers=3, embed_requires_grad=True),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_draft_comes_back_bit_for_bit_and_with_the_same_shape(tmp_path: Path, shape: Eagle3Config) -> None:
    network = _write(tmp_path, shape)
    loaded = load_draft(tmp_path)
    assert loaded.config == shape
    state = loaded.state_dict()
    assert set(state) == set(network.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert set(state) == set(eagle3_tensors(completed(read_checkpoint(tmp_path).config)))
    assert check_checkpoint(tmp_path) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_writing_again_what_was_read_changes_no_byte(tmp_path: Path, dtype: str) -> None:
    _write(tmp_path / "one", _shape(), dtype)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    config["something_new"] = {"kept": [1, None, "as it is"]}
    config["transformer_layer_config"]["unknown_too"] = 0.5
    (tmp_path / "one" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    read = read_checkpoint(tmp_path / "one")
    write_checkpoint(tmp_path / "two", read.config, read.tensors)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    stored = load_file(tmp_path / "two" / "model.safetensors")
    assert {value.dtype for name, value in stored.items() if name not in ("d2t", "t2d")} == {getattr(torch, dtype)}
    assert (stored["d2t"].dtype, stored["t2d"].dtype) == (torch.int64, torch.bool)


def test_the_config_says_everything_that_readers_disagree_about(tmp_path: Path) -> None:
    _write(tmp_path, _shape(), "bfloat16")
    config = json.loads((tmp_path / "config.json").read_text())
    layer = config.pop("transformer_layer_config")
    assert config == {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": __version__,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": 3,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "verifier": {"name_or_path": "someone/Some-Model", "architectures": ["LlamaForCausalLM"]},
        },
        "draft_vocab_size": 20,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "embed_requires_grad": False,
        "eagle_aux_hidden_state_layer_ids": [2, 3, 5],
        "target_hidden_size": None,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    assert (layer["model_type"], layer["vocab_size"], layer["num_aux_hidden_states"]) == ("llama", 50, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_large_drafts_are_sharded_with_an_index(tmp_path: Path) -> None:
    network = _write(tmp_path, _shape(), shard_bytes=4000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert set(index["weight_map"]) == set(network.state_dict())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(v.numel() * v.element_size() for v in network.state_dict().values())
    loaded = load_draft(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    (tmp_path / files[1]).unlink()
    with pytest.raises(UsageError, match=f"is not whole: {files[1]} is missing"):
        load_draft(tmp_path)


def test_keys_that_old_checkpoints_lack_mean_what_vllm_takes_them_to_mean(tmp_path: Path) -> None:
    _write(tmp_path, _shape(norm_before_residual=True))
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for key in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "embed_requires_grad"):
        del config[key]
    layer = config["transformer_layer_config"]
    layer["rope_theta"] = layer.pop("rope_parameters")["rope_theta"]  # as transformers 4 wrote it
    for key in ("num_aux_hidden_states", "attention_bias", "mlp_bias", "hidden_act", "tie_word_embeddings"):
        del layer[key]
    file.write_text(json.dumps(config))
    assert load_draft(tmp_path).config == _shape(norm_before_residual=True)


def test_layers_that_are_not_listed_are_worked_out_from_the_verifier(tmp_path: Path) -> None:
    _write(tmp_path / "draft", _shape(aux_layers=(2, 15, 27)))
    file = tmp_path / "draft" / "config.json"
    config = json.loads(file.read_text())
    del config["eagle_aux_hidden_state_layer_ids"]
    file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"without its verifier, and someone/Some-Model is not on this machine"):
        load_draft(tmp_path / "draft")
    (tmp_path / "verifier").mkdir()
    decoder = {name: config["transformer_layer_config"][name] for name in SIZES} | {"num_hidden_layers": 30}
    (tmp_path / "verifier" / "config.json").write_text(json.dumps(decoder))
    assert load_draft(tmp_path / "draft", verifier=tmp_path / "verifier").config.aux_layers == (2, 15, 27)
    config["speculators_config"]["verifier"]["name_or_path"] = str(tmp_path / "verifier")
    assert draft_shape(config).aux_layers == (2, 15, 27)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("embed_tokens.weight"), r"embed_tokens.weight \[50, 16\] is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is not a tensor of an eagle3 checkpoint"),
        (
            lambda t: t.update({"fc.weight": torch.zeros(16, 32)}),
            r"fc.weight has the shape \[16, 32\], but config.json makes it \[16, 48\]",
        ),
        (lambda t: t.update(d2t=torch.arange(20) + t["d2t"]), "d2t must hold offsets"),
        (lambda t: t.update(t2d=torch.ones(50, dtype=torch.bool)), "t2d marks 50"),
        (lambda t: t.update(d2t=t["d2t"].int()), "d2t must be int64 and t2d bool; they are int32 and bool"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: Any, message: str) -> None:
    _write(tmp_path, _shape())
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=message):
        load_draft(tmp_path)
    assert check_checkpoint(tmp_path)


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no config.json in it"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is not valid JSON"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="has no `speculators_model_type`"):
        read_checkpoint(tmp_path)
    _write(tmp_path, _shape())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"model.safetensors is broken"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("speculators_model_type", "no-such", "vLLM serves eagle3, peagle, dflash, dspark, dflash2"),
        ("speculators_config", None, "speculators_config is missing"),
        ("speculators_config.proposal_methods", [], "speculative_tokens must be a whole number from 1"),
        ("speculators_config.verifier.name_or_path", None, "name_or_path is missing"),
        ("speculators_config.verifier.name_or_path", "./model", "a directory must be absolute"),
        ("speculators_config.default_proposal_method", "tree", "'tree', which no proposal method is"),
        ("speculators_config.algorithm", "dflash", "algorithm is 'dflash', the type is 'eagle3'"),
        ("transformer_layer_config", None, "transformer_layer_config must be an object"),
        ("transformer_layer_config.model_type", "gemma", "vLLM has llama and qwen3"),
        ("transformer_layer_config.num_aux_hidden_states", 2, "vLLM sizes fc by that key"),
        ("norm_before_residual", ..., "norm_before_residual is not written"),
        ("draft_vocab_size", 51, "more than the verifier's 50"),
    ],
)
def test_what_vllm_would_refuse_or_misread_is_a_sentence(path: str, value: Any, problem: str) -> None:
    config = speculators_config(_shape().to_config_json(), VERIFIER, 3, "bfloat16")
    assert config_problems(config) == []
    changed: Any = json.loads(json.dumps(config))
    *above, last = path.split(".")
    here = changed
    for name in above:
        here = here[name]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    assert any(problem in sentence for sentence in config_problems(changed))
