"""What of a recipe enters keys, and what a step may see of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.recipe.load import Loaded, load_recipe, recipe_of
from speculators.recipe.schema import fields, fields_at
from speculators.recipe.semantic import operational_paths, semantic
from speculators.recipe.shapes.recipe import Recipe
from speculators.recipe.view import view

Load = Callable[..., Loaded]
ALL = ("recipe", "name", "description", "seed", "verifier", "algorithm", "data", "train", "convert", "eval")
TINY = load_recipe("tiny")


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [leaf for key, below in value.items() for leaf in leaves(below, (*path, key))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for number, below in enumerate(value) for leaf in leaves(below, (*path, number))]
    return [path]


def changed(value: Any, schema: Any) -> Any:
    """Some other value of the same property."""
    if "enum" in schema:
        return next(other for other in schema["enum"] if other != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, changed(value[0], schema["items"])] if value else schema["items"].get("enum", ["x > 1"])
    if isinstance(value, str) and "array" in schema["type"]:
        return [1]  # auto, or a list
    if isinstance(value, str):
        return value + "x"
    types = schema["type"]
    return 1 if "integer" in types or "number" in types else {} if "object" in types else "x"


def at(data: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        data = data[part]
    return data


LEAVES = [path for path in leaves(TINY.data) if path[-1] != "type"]


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: ".".join(map(str, path)))
def test_every_leaf_changes_the_key_unless_it_is_operational(path: tuple[str | int, ...]) -> None:
    dotted = ".".join(part if isinstance(part, str) else "[]" for part in path).replace(".[]", "[]")
    field = fields_at(dotted)[0]
    data = deepcopy(TINY.data)
    old = at(data, path)
    new = changed(old, field.schema)
    if dotted == "train.optimizer.betas":
        new = [0.5, 0.5]
    if new == {}:
        pytest.skip("a whole section; its leaves are tested")
    at(data, path[:-1])[path[-1]] = new
    before, after = (semantic(recipe_of(each), ALL) for each in (TINY.data, data))
    assert (before == after) == (dotted in operational_paths())


def test_what_is_operational_is_a_decision() -> None:
    assert sorted(operational_paths()) == [
        "data.hidden_states.buffer_tokens",
        "data.hidden_states.keep",
        "data.sources[].file",
        "eval.acceptance.concurrency",
        "train.checkpoint",
        "train.checkpoint.every",
        "train.checkpoint.keep",
        "train.execution",
        "train.execution.compile",
        "train.execution.loss_positions",
        "train.execution.recompute",
        "train.initialize_from",
        "train.tracking",
        "verifier.engine.batch_tokens",
        "verifier.engine.concurrency",
        "verifier.engine.cpu_cache",
        "verifier.engine.data_parallel",
        "verifier.engine.device",
        "verifier.engine.eager",
        "verifier.engine.endpoint",
        "verifier.engine.max_length",
        "verifier.engine.memory_fraction",
        "verifier.engine.replicas",
        "verifier.engine.start_seconds",
        "verifier.engine.tensor_parallel",
        "verifier.engine.threads",
    ]


def test_a_recipe_of_defaults_says_only_what_it_must(load: Load) -> None:
    recipe = load("verifier: {model: a/b}\nalgorithm: {type: eagle3}\n").recipe
    assert semantic(recipe, ALL) == {
        "recipe": 1,
        "name": "bad",
        "verifier": {"model": "a/b"},
        "algorithm": {"type": "eagle3"},
        "data": {"sources": [{"synthesize": "magpie", "samples": 4}]},
    }


def test_saying_a_default_changes_nothing(load: Load) -> None:
    said = "train: {epochs: 1, optimizer: {type: adamw, betas: [0.9, 0.95]}, schedule: {warmup: 3e-2}}\n"
    assert semantic(load(said).recipe, ALL) == semantic(load().recipe, ALL)
    said = "algorithm: {type: eagle3, aux_layers: [1, 2, 3], draft_vocab_size: 300, loss: {kl: 1}}\n"
    assert semantic(load(said).recipe, ALL) == semantic(load().recipe, ALL)


def test_another_optimizer_is_another_key_though_all_its_options_are_defaults(load: Load) -> None:
    assert semantic(load("train: {optimizer: {type: muon}}\n").recipe, ("train",)) == {
        "train": {"optimizer": {"type": "muon"}}
    }


def test_null_and_an_empty_section_differ(load: Load) -> None:
    assert semantic(load("eval: {benchmark: null}\n").recipe, ("eval.benchmark",)) == {"eval": {"benchmark": None}}
    assert semantic(load().recipe, ("eval.benchmark",)) == {}
    assert semantic(load().recipe, ("verifier.random",)) == {"verifier": {"random": {}}}
    assert semantic(load("verifier: {model: a/b}\n").recipe, ("verifier.random",)) == {}


def test_only_declared_paths_are_there() -> None:
    found = semantic(TINY.recipe, ("train.optimizer", "data.max_length", "train.epochs", "data.regenerate.dtype"))
    assert found == {"train": {"optimizer": {"learning_rate": 0.001}}, "data": {"max_length": 384}}


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_never_matters(chance: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            chance.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    before, after = (json.dumps(semantic(recipe_of(data), ALL)) for data in (TINY.data, shuffled(TINY.data)))
    assert before == after


def test_a_step_cannot_declare_what_no_recipe_has() -> None:
    for path in ("train.epocs", "data.sources[0].file", ""):
        with pytest.raises(ValueError, match="which no recipe has"):
            semantic(TINY.recipe, (path,))
        with pytest.raises(ValueError, match="which no recipe has"):
            view(TINY.recipe, (path,))


def test_a_view_shows_what_is_declared_and_below() -> None:
    config = view(TINY.recipe, ("train.optimizer", "data.regenerate.dtype", "seed", "train.optimizer.learning_rate"))
    assert config.seed == 0
    assert config.train.optimizer == TINY.recipe.train.optimizer
    assert config.data.regenerate.dtype == "verifier"


def test_a_view_shows_nothing_else_and_says_why() -> None:
    config = view(TINY.recipe, ("train.optimizer", "seed"))
    with pytest.raises(AttributeError) as caught:
        _ = config.train.epochs
    assert str(caught.value) == (
        "`train.epochs` is not among the recipe paths that this step reads: train.optimizer, seed"
    )
    with pytest.raises(AttributeError, match="`data` is not among"):
        _ = config.data


def test_a_view_of_a_section_that_is_null_is_null(load: Load) -> None:
    recipe = load("data: {sources: [{dataset: a/b}], regenerate: null}\n").recipe
    assert view(recipe, ("data.regenerate.dtype",)).data.regenerate is None


def test_defaults_change_only_with_the_steps_that_read_them() -> None:
    """Values equal to their default are left out of keys: a changed default would make old artifacts pass for new ones.

    A section that several algorithms have may have another default in each: those that there are, in their order.
    If this fails, bump the version of every step that reads the property, and only then change the table.
    """
    every: dict[str, list[Any]] = {}
    for field in fields():
        if "default" in field.schema and not field.is_operational and field.schema["default"] not in ({}, None):
            defaults = every.setdefault(f"{field.path}{field.branch and ':'}{field.branch}", [])
            defaults += [field.schema["default"]] if field.schema["default"] not in defaults else []
    found = {path: defaults[0] if len(defaults) == 1 else tuple(defaults) for path, defaults in every.items()}
    found.pop("extends")
    assert found == DEFAULTS


def test_shapes_hold_no_defaults_of_their_own() -> None:
    with pytest.raises(msgspec.ValidationError, match="missing required field"):
        msgspec.convert({}, Recipe)


DEFAULTS = {
    "seed": 0,
    "verifier.random.layers": 4,
    "verifier.random.hidden_size": 64,
    "verifier.random.intermediate_size": 128,
    "verifier.random.attention_heads": 4,
    "verifier.random.key_value_heads": 2,
    "verifier.random.vocab_size": 512,
    "verifier.random.seed": 0,
    "verifier.dtype": "auto",
    "verifier.trust_remote_code": False,
    "verifier.engine.type": "transformers",
    "algorithm.loss.smooth_l1": 1.0,
    "algorithm.loss.soft_ce": 0.1,
    "algorithm.loss.top_k": (0.0, 1.0),
    "algorithm.feature_noise:eagle": 0.1,
    "algorithm.fc_bias:eagle": False,
    "algorithm.judged_steps:eagle": 5,
    "algorithm.aligned_steps:hass": 3,
    "algorithm.feature_noise:hass": 0.1,
    "algorithm.fc_bias:hass": False,
    "algorithm.judged_steps:hass": 5,
    "algorithm.layers:eagle3": 1,
    "algorithm.draft_vocab_size:eagle3": 32000,
    "algorithm.aux_layers:eagle3": "auto",
    "algorithm.training_time_test.steps": 7,
    "algorithm.training_time_test.decay": 0.8,
    "algorithm.normalization.before_residual": True,
    "algorithm.normalization.before_fc": False,
    "algorithm.normalization.per_aux_layer": False,
    "algorithm.normalization.output": False,
    "algorithm.loss:eagle3": {"kl": 1.0},
    "algorithm.loss.kl": 0.0,
    "algorithm.loss.rkl": 0.0,
    "algorithm.loss.jsd": 0.0,
    "algorithm.loss.ce": 0.0,
    "algorithm.loss.tv": 0.0,
    "algorithm.loss.nla": 0.0,
    "algorithm.loss.lk": 0.0,
    "algorithm.loss.ce_target": "teacher",
    "algorithm.reduction:eagle3": "token_mean",
    "algorithm.teacher:eagle3": "renormalized",
    "algorithm.out_of_vocabulary:eagle3": "keep",
    "algorithm.feature_noise:eagle3": 0.0,
    "algorithm.train_embeddings:eagle3": False,
    "algorithm.train_head:eagle3": True,
    "algorithm.layers:peagle": 4,
    "algorithm.depths:peagle": 8,
    "algorithm.decay:peagle": 1.0,
    "algorithm.sampling.ratio": 0.7,
    "algorithm.sampling.least": 0.2,
    "algorithm.draft_vocab_size:peagle": 32000,
    "algorithm.aux_layers:peagle": "auto",
    "algorithm.loss:peagle": {"kl": 1.0},
    "algorithm.reduction:peagle": "token_mean",
    "algorithm.teacher:peagle": "renormalized",
    "algorithm.out_of_vocabulary:peagle": "keep",
    "algorithm.feature_noise:peagle": 0.0,
    "algorithm.train_embeddings:peagle": True,
    "algorithm.train_head:peagle": True,
    "algorithm.layers:dflash": 5,
    "algorithm.block_size:dflash": 16,
    "algorithm.anchors:dflash": 512,
    "algorithm.aux_layers:dflash": "auto",
    "algorithm.sliding_window.size": 2048,
    "algorithm.sliding_window.layers": "all",
    "algorithm.sliding_window.causal": True,
    "algorithm.weights.type": "exponential",
    "algorithm.weights.gamma:exponential": 7.0,
    "algorithm.weights.alpha:dpace": 0.5,
    "algorithm.loss:dflash": {"ce": 1.0},
    "algorithm.reduction:dflash": "token_mean",
    "algorithm.teacher:dflash": "renormalized",
    "algorithm.out_of_vocabulary:dflash": "keep",
    "algorithm.layers:dspark": 5,
    "algorithm.block_size:dspark": 7,
    "algorithm.anchors:dspark": 512,
    "algorithm.aux_layers:dspark": "auto",
    "algorithm.gamma:dspark": 4.0,
    "algorithm.markov_rank:dspark": 256,
    "algorithm.markov_head_type:dspark": "vanilla",
    "algorithm.confidence.weight": 1.0,
    "algorithm.confidence.with_markov": True,
    "algorithm.loss:dspark": {"ce": 0.1, "tv": 0.9},
    "algorithm.reduction:dspark": "token_mean",
    "algorithm.teacher:dspark": "renormalized",
    "algorithm.out_of_vocabulary:dspark": "keep",
    "algorithm.layers:dflash2": 5,
    "algorithm.block_size:dflash2": 16,
    "algorithm.anchors:dflash2": 512,
    "algorithm.aux_layers:dflash2": "auto",
    "algorithm.gamma:dflash2": 7.0,
    "algorithm.convolution.taps": 2,
    "algorithm.convolution.group_size": 16,
    "algorithm.selector.rank": 256,
    "algorithm.selector.top_k": 16,
    "algorithm.selector.weight": 1.0,
    "algorithm.loss:dflash2": {"ce": 1.0},
    "algorithm.reduction:dflash2": "token_mean",
    "algorithm.layers:xpress": 5,
    "algorithm.block_size:xpress": 16,
    "algorithm.anchors:xpress": 512,
    "algorithm.aux_layers:xpress": "auto",
    "algorithm.gamma:xpress": 4.0,
    "algorithm.refiner.rank": 256,
    "algorithm.refiner.mlp_ratio": 2,
    "algorithm.refiner.passes": 6,
    "algorithm.free_running.rounds": 3,
    "algorithm.free_running.weight": 0.3,
    "algorithm.base_weight:xpress": 0.6,
    "algorithm.loss:xpress": {"ce": 0.1, "tv": 0.9},
    "algorithm.reduction:xpress": "token_mean",
    "algorithm.teacher:xpress": "renormalized",
    "algorithm.out_of_vocabulary:xpress": "keep",
    "algorithm.heads:medusa": 5,
    "algorithm.layers:medusa": 1,
    "algorithm.shared_head:medusa": False,
    "algorithm.decay:medusa": 0.8,
    "algorithm.loss:medusa": {"kl": 1.0},
    "algorithm.reduction:medusa": "token_mean",
    "algorithm.teacher:medusa": "renormalized",
    "algorithm.out_of_vocabulary:medusa": "keep",
    "algorithm.train_head:medusa": True,
    "algorithm.heads:hydra": 5,
    "algorithm.layers:hydra": 1,
    "algorithm.shared_head:hydra": False,
    "algorithm.decay:hydra": 1.0,
    "algorithm.loss:hydra": {"kl": 1.0},
    "algorithm.reduction:hydra": "token_mean",
    "algorithm.teacher:hydra": "renormalized",
    "algorithm.out_of_vocabulary:hydra": "keep",
    "algorithm.train_head:hydra": True,
    "algorithm.heads:mlp_speculator": 3,
    "algorithm.tie_weights:mlp_speculator": True,
    "algorithm.scale_input:mlp_speculator": True,
    "algorithm.decay:mlp_speculator": 1.0,
    "algorithm.loss:mlp_speculator": {"kl": 1.0},
    "algorithm.reduction:mlp_speculator": "token_mean",
    "algorithm.steps:mtp": 3,
    "algorithm.decay:mtp": 0.6,
    "algorithm.loss:mtp": {"ce": 1.0},
    "algorithm.reduction:mtp": "token_mean",
    "algorithm.random.layers": 2,
    "algorithm.random.hidden_size": 64,
    "algorithm.random.intermediate_size": 128,
    "algorithm.random.attention_heads": 4,
    "algorithm.random.key_value_heads": 2,
    "algorithm.steps:draft_model": 5,
    "algorithm.loss:draft_model": {"kl": 1.0},
    "algorithm.reduction:draft_model": "token_mean",
    "data.sources[].temperature": 1.0,
    "data.sources[].top_p": 1.0,
    "data.sources[].max_new_tokens": 256,
    "data.regenerate.max_new_tokens": 512,
    "data.regenerate.temperature": 0.7,
    "data.regenerate.top_p": 1.0,
    "data.regenerate.samples_per_prompt": 1,
    "data.regenerate.dtype": "verifier",
    "data.max_length": 2048,
    "data.train_on": "assistant",
    "data.holdout": 0.05,
    "data.hidden_states.mode": "offline",
    "data.hidden_states.dtype": "bfloat16",
    "data.hidden_states.compute_dtype": "verifier",
    "train.epochs": 1,
    "train.tokens_per_step": 8192,
    "train.optimizer.type": "adamw",
    "train.optimizer.learning_rate:adamw": 0.0001,
    "train.optimizer.weight_decay:adamw": 0.0,
    "train.optimizer.betas:adamw": [0.9, 0.95],
    "train.optimizer.epsilon:adamw": 1e-08,
    "train.optimizer.learning_rate:adamw8bit": 0.0001,
    "train.optimizer.weight_decay:adamw8bit": 0.0,
    "train.optimizer.betas:adamw8bit": [0.9, 0.95],
    "train.optimizer.epsilon:adamw8bit": 1e-08,
    "train.optimizer.learning_rate:muon": 0.02,
    "train.optimizer.adamw_learning_rate:muon": 0.0003,
    "train.optimizer.weight_decay:muon": 0.0,
    "train.optimizer.momentum:muon": 0.95,
    "train.schedule.type": "cosine",
    "train.schedule.warmup": 0.03,
    "train.schedule.final": 0.0,
    "train.second_phase.epochs": 1,
    "train.second_phase.optimizer.type": "adamw",
    "train.second_phase.optimizer.learning_rate:adamw": 0.0001,
    "train.second_phase.optimizer.weight_decay:adamw": 0.0,
    "train.second_phase.optimizer.betas:adamw": [0.9, 0.95],
    "train.second_phase.optimizer.epsilon:adamw": 1e-08,
    "train.second_phase.optimizer.learning_rate:adamw8bit": 0.0001,
    "train.second_phase.optimizer.weight_decay:adamw8bit": 0.0,
    "train.second_phase.optimizer.betas:adamw8bit": [0.9, 0.95],
    "train.second_phase.optimizer.epsilon:adamw8bit": 1e-08,
    "train.second_phase.optimizer.learning_rate:muon": 0.02,
    "train.second_phase.optimizer.adamw_learning_rate:muon": 0.0003,
    "train.second_phase.optimizer.weight_decay:muon": 0.0,
    "train.second_phase.optimizer.momentum:muon": 0.95,
    "train.second_phase.schedule.type": "cosine",
    "train.second_phase.schedule.warmup": 0.03,
    "train.second_phase.schedule.final": 0.0,
    "train.gradient_clip": 0.5,
    "train.precision": "bfloat16",
    "convert.format": "auto",
    "convert.aux_layers": "auto",
    "convert.dtype": "bfloat16",
    "eval.acceptance.suites": ["holdout"],
    "eval.acceptance.temperature": [0.0],
    "eval.acceptance.speculative_tokens": 3,
    "eval.acceptance.max_new_tokens": 128,
    "eval.acceptance.most_speculative_tokens": 5,
    "eval.acceptance.least_confidence": 0.0,
    "eval.acceptance.tree.type": "dynamic",
    "eval.acceptance.tree.depth:dynamic": 6,
    "eval.acceptance.tree.width:dynamic": 10,
    "eval.acceptance.tree.nodes:dynamic": 60,
    "eval.benchmark.profile.type": "concurrent",
    "eval.benchmark.profile.levels:concurrent": [1],
    "eval.benchmark.profile.points:sweep": 5,
    "eval.benchmark.requests_per_level": 16,
    "eval.benchmark.max_tokens": 128,
    "eval.benchmark.variants": [{"name": "dense"}, {"name": "speculator"}],
    "eval.benchmark.variants[].draft": True,
    "eval.gates": [],
}
