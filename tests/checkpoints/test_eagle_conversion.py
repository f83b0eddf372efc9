"""EAGLE-1's own format in and out: nothing changes on the way, and what does not fit is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from speculators.algorithms.eagle.config import EagleConfig
from speculators.algorithms.eagle.network import EagleNetwork
from speculators.algorithms.hass.config import HassConfig
from speculators.checkpoints.exporters import eagle as exporter
from speculators.checkpoints.foreign import Foreign, Header
from speculators.checkpoints.importers import eagle as importer
from speculators.checkpoints.layout import completed
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.random_model import write_random_model

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "attention_heads": 4, "key_value_heads": 2, "head_dim": 8,
    "vocab_size": 300, "verifier_layers": 3, "rope": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    from types import SimpleNamespace

    directory = tmp_path_factory.mktemp("models") / "verifier"
    shape = SimpleNamespace(
        layers=3, hidden_size=32, intermediate_size=48, attention_heads=4, key_value_heads=2, vocab_size=300, seed=0
    )
    write_random_model(shape, directory)
    return VerifierFacts.from_directory(directory)


def draft(kind=EagleConfig, **changes):
    torch.manual_seed(0)
    config = kind(**(SIZES | changes))
    return completed(config.to_config_json()), EagleNetwork(config).state_dict()


def foreign(config, shapes):
    return Foreign("draft", config, {name: Header("float32", tuple(shape)) for name, shape in shapes.items()}, {})


def released(changes=None, absent=()):
    """What the authors release: a flat Llama config and `pytorch_model.bin`'s names."""
    config, tensors = draft()
    export = exporter.export(config, list(tensors))
    written, names = export.config, export.tensors
    shapes = {theirs: tuple(tensors[ours].shape) for theirs, ours in names.items()} | (changes or {})
    return written, {name: shape for name, shape in shapes.items() if name not in absent}


@pytest.mark.parametrize("kind", [EagleConfig, HassConfig])
def test_out_and_in_again_is_the_same_draft(tmp_path, facts, kind):
    config, tensors = draft(kind)
    export = exporter.export({**config, "dtype": "float32"}, list(tensors))
    written, names = export.config, export.tensors
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert (written["model_type"], written["num_hidden_layers"], written["bias"]) == ("llama", 1, False)
    save_file({theirs: tensors[ours].contiguous() for theirs, ours in names.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(written))
    back = load_file(tmp_path / "model.safetensors")
    read = json.loads((tmp_path / "config.json").read_text())
    shapes = {name: tuple(tensor.shape) for name, tensor in back.items()}
    assert importer.recognise(foreign(read, shapes))
    found = importer.translate(foreign(read, shapes), facts, None)
    assert EagleConfig.from_config_json(found.draft) == EagleConfig(**SIZES)
    assert (found.dropped, found.attached) == ({}, ())
    for ours, theirs in found.tensors.items():
        assert torch.equal(back[theirs], tensors[ours]), ours
    assert found.tensors.keys() == tensors.keys()


def test_older_releases_are_read(facts):
    config, shapes = released(
        {"fc.bias": (32,), "layers.0.self_attn.rotary_emb.inv_freq": (4,)}, ("embed_tokens.weight",)
    )
    for key in ("rope_parameters", "head_dim", "rms_norm_eps"):
        del config[key]
    config |= {"rope_scaling": None, "max_position_embeddings": 128}
    found = importer.translate(foreign(config, shapes), facts, None)
    assert found.draft["fc_bias"]
    assert found.attached == ("embed_tokens.weight",)
    assert list(found.dropped) == ["layers.0.self_attn.rotary_emb.inv_freq"]
    shape = EagleConfig.from_config_json(found.draft)
    assert (shape.head_dim, shape.rms_norm_eps, shape.rope["rope_theta"]) == (8, 1e-6, 10000.0)
    assert shape.max_position_embeddings == facts.max_position_embeddings


@pytest.mark.parametrize(
    ("config", "shapes", "message"),
    [
        ({}, {"embed_layernorm.weight": (32,)}, "embed_layernorm.weight is no tensor of an EAGLE-1 draft here"),
        ({}, {"layers.0.self_attn.q_proj.bias": (32,)}, "q_proj.bias is no tensor"),
        ({}, {"layers.0.input_layernorm.weight": (32,)}, "input_layernorm.weight is no tensor"),
        ({}, {"fc.weight": (32, 96)}, "fc.weight has the shape \\[32, 96\\], expected \\[32, 64\\]"),
        ({"vocab_size": 301}, {}, "for a vocabulary of 301 tokens, the verifier has 300"),
        ({"num_hidden_layers": 2}, {}, "it has 2 layers"),
    ],
)
def test_what_does_not_fit_is_named(facts, config, shapes, message):
    written, sizes = released(shapes)
    with pytest.raises(UsageError, match=message):
        importer.translate(foreign(written | config, sizes), facts, None)


def test_an_eagle_3_draft_is_not_taken_for_one():
    config, shapes = released()
    assert not importer.recognise(foreign(config, shapes | {"fc.weight": (32, 96)}))
    assert not importer.recognise(foreign(config, shapes | {"midlayer.hidden_norm.weight": (32,)}))


def test_what_vllm_would_not_load_is_not_written():
    config, tensors = draft(fc_bias=True)
    with pytest.raises(UsageError, match="has a bias, which vLLM does not load"):
        exporter.export(config, list(tensors))
