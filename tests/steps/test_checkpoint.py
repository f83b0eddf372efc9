"""The checkpoint step: a directory that is served as it was trained."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.load import load_draft, read_checkpoint
from speculators.checkpoints.trained import served_name
from speculators.errors import StepError
from speculators.pipeline.step import Scope
from speculators.recipe.load import load_recipe
from speculators.steps import checkpoint
from speculators.verifiers.source import verifier_directory

SETS = ["algorithm.training_time_test.steps=4", "algorithm.draft_vocab_size=40"]
(STEP,) = checkpoint.steps(load_recipe("tiny").recipe)


@pytest.fixture
def values(make_recipe):
    return make_recipe() | {
        "name": "tiny",
        "convert": {"dtype": "bfloat16"},
        "algorithm": load_recipe("tiny", sets=SETS).recipe.algorithm,
        "eval": {"acceptance": {"speculative_tokens": 5}},
    }


@pytest.fixture
def train(tmp_path):
    """A train artifact of random weights, shaped like the tests' verifier."""
    shape = Eagle3Config(
        hidden_size=32,
        intermediate_size=64,
        attention_heads=4,
        key_value_heads=2,
        head_dim=8,
        vocab_size=300,
        draft_vocab_size=40,
        aux_layers=(0, 1, 2),
        rope={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-6,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    network = Eagle3Network(shape)
    network.d2t.copy_(torch.arange(40) * 3)
    network.t2d[torch.arange(40) * 4] = True
    artifact = tmp_path / "made-train"
    artifact.mkdir()
    save_file(network.state_dict(), artifact / "model.safetensors")
    (artifact / "draft.json").write_text(json.dumps(shape.to_config_json()))
    (artifact / "result.json").write_text(json.dumps({"best": {"walk_estimate": 1.5}, "tokens": 1000}))
    return artifact


def test_the_draft_is_written_in_the_recipes_type_with_its_verifier(run_step, values, verifier, train):
    output, _ = run_step(STEP, values, verifier=verifier, train=train)
    assert sorted(file.name for file in output.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert check_checkpoint(output) == []
    read = read_checkpoint(output)
    assert (read.speculative_tokens, read.config["dtype"]) == (5, "bfloat16")
    assert read.verifier == str(verifier_directory(verifier).resolve())
    assert read.config["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]
    trained = load_file(train / "model.safetensors")
    assert set(read.tensors) == set(trained)
    for name, value in trained.items():
        wanted = value.bfloat16() if value.is_floating_point() else value
        assert torch.equal(read.tensors[name], wanted)
    assert load_draft(output).config.aux_layers == (0, 1, 2)
    card = (output / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "# tiny" in card


def test_without_acceptance_the_draft_proposes_as_many_tokens_as_training_unrolled(run_step, values, verifier, train):
    output, _ = run_step(STEP, values | {"eval": {"acceptance": None}}, verifier=verifier, train=train)
    assert read_checkpoint(output).speculative_tokens == 4


def test_a_verifier_from_the_hub_is_named_by_its_id(tmp_path):
    record = {"source": "Qwen/Qwen3-8B", "digest": "x", "location": {"hub": "Qwen/Qwen3-8B", "commit": "0" * 40}}
    (tmp_path / "verifier.json").write_text(json.dumps(record))
    assert served_name(tmp_path, tmp_path) == "Qwen/Qwen3-8B"


def test_a_draft_that_would_be_served_wrongly_is_not_published(run_step, values, verifier, train):
    tensors = load_file(train / "model.safetensors")
    save_file({**tensors, "d2t": tensors["d2t"] + torch.arange(40)}, train / "model.safetensors")
    with pytest.raises(StepError, match="d2t must hold offsets"):
        run_step(STEP, values, verifier=verifier, train=train)


def test_the_size_is_foreseen_within_a_half(run_step, values, verifier, train, as_view):
    output, _ = run_step(STEP, values, verifier=verifier, train=train)
    facts = {"vocab_size": 300.0, "hidden_size": 32.0, "intermediate_size": 64.0}
    foreseen = checkpoint.estimate(Scope(as_view(STEP, values), facts)).disk
    real = (output / "model.safetensors").stat().st_size
    assert 0.5 < real / foreseen < 1.5


def test_the_number_that_was_found_best_goes_into_the_config(run_step, values, verifier, train, tmp_path):
    recipe = load_recipe("tiny", sets=["eval.acceptance.speculative_tokens=auto"]).recipe
    (step,) = checkpoint.steps(recipe)
    (tmp_path / "speculative_tokens.json").write_text('{"best": 7, "curve": []}')
    output, _ = run_step(step, values, verifier=verifier, train=train, speculative_tokens=tmp_path)
    assert read_checkpoint(output).speculative_tokens == 7
