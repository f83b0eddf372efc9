"""A draft that vLLM would not serve as it was trained is refused before anything runs, with the place in the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speculators.algorithms import load
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.load import draft_shape, read_config
from speculators.checkpoints.preflight import draft_config
from speculators.checkpoints.rules import draft_problems, parallel_problems
from speculators.checkpoints.save import VerifierName, speculators_config
from speculators.engines.vllm.preflight import write_untrained
from speculators.errors import RecipeError
from speculators.recipe.load import load_recipe
from speculators.steps import check_fields
from speculators.verifiers.random_model import random_facts


def test_a_split_that_the_heads_do_not_allow_is_refused_at_its_place() -> None:
    loaded = load_recipe("tiny", sets=["verifier.engine.type=vllm", "verifier.engine.tensor_parallel=3"])
    with pytest.raises(RecipeError) as caught:
        check_fields(loaded.recipe, {}, loaded.origins)
    assert "`verifier.engine.tensor_parallel` is 3, but 4 attention heads cannot be shared by 3 GPUs" in str(
        caught.value
    )
    assert "--set verifier.engine.tensor_parallel=3" in str(caught.value)
    fitting = load_recipe("tiny", sets=["verifier.engine.type=vllm", "verifier.engine.tensor_parallel=4"])
    assert check_fields(fitting.recipe, {}, fitting.origins)


@pytest.mark.parametrize(
    ("heads", "groups", "inner", "gpus", "said"),
    [
        (32, 8, 12288, 8, None),
        (32, 8, 12288, 16, None),
        (32, 8, 12288, 3, "32 attention heads"),
        (12, 4, 12288, 6, "4 key and value heads can be neither shared by nor copied to 6 GPUs"),
        (32, 8, 1000, 16, "1000 rows of the MLP"),
    ],
)
def test_what_so_many_gpus_can_share(heads: int, groups: int, inner: int, gpus: int, said: str | None) -> None:
    layer = {"num_attention_heads": heads, "num_key_value_heads": groups, "intermediate_size": inner}
    found = parallel_problems(layer, gpus)
    assert found == [] if said is None else any(said in problem for problem in found)


def test_the_config_that_is_judged_is_the_one_that_will_be_written() -> None:
    recipe = load_recipe("tiny").recipe
    assert recipe.verifier.random is not None
    config = draft_config(recipe, random_facts(recipe.verifier.random))
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert config["draft_vocab_size"] == 288
    assert draft_problems(config) == []
    assert "cannot both be true" in draft_problems({**config, "norm_before_fc": True, "fc_norm": True})[0]


PEAGLE = {"type": "peagle", "layers": 2, "aux_layers": [1, 2, 3], "draft_vocab_size": 288}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"fc_norm": True}, "fc_norm is true: vLLM does not read it"),
        ({"norm_output": True}, "norm_output is true: vLLM does not read it"),
        ({"norm_before_residual": ...}, "norm_before_residual is not written: readers disagree about its meaning"),
        ({"mask_token_id": None}, "mask_token_id must be a whole number"),
    ],
)
def test_what_vllm_does_not_read_of_a_parallel_draft_is_refused(change: dict[str, Any], problem: str) -> None:
    recipe = load_recipe("tiny", sets=[f"algorithm={json.dumps(PEAGLE)}"]).recipe
    assert recipe.verifier.random is not None
    config = draft_config(recipe, random_facts(recipe.verifier.random))
    assert draft_problems(config) == []
    assert config["mask_token_id"] == 511, "the last token of the verifier"
    changed = {key: value for key, value in {**config, **change}.items() if value is not ...}
    (said,) = draft_problems(changed)
    assert said.startswith(problem)


DFLASH = {"type": "dflash", "layers": 2, "block_size": 4, "aux_layers": [1, 3]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"sliding_window_non_causal": False},
            "sliding_window_non_causal is false: vLLM then makes",
        ),
        (
            {"transformer_layer_config": {"layer_types": ["sliding_attention"] * 2, "sliding_window": 64}},
            "transformer_layer_config has layers of sliding_attention, and vLLM reads their sliding_window only with",
        ),
        ({"aux_hidden_state_layer_ids": [0, 2]}, "aux_hidden_state_layer_ids has 0, the embeddings"),
        ({"mask_token_id": ...}, "mask_token_id is missing"),
        ({"block_size": 3}, "proposal_methods[0].speculative_tokens is 3, and a block of 3 drafts 2"),
    ],
)
def test_what_vllm_would_make_of_another_block_draft_is_refused(change: dict[str, Any], problem: str) -> None:
    recipe = load_recipe("tiny", sets=[f"algorithm={json.dumps(DFLASH)}"]).recipe
    assert recipe.verifier.random is not None
    draft = draft_config(recipe, random_facts(recipe.verifier.random))
    config = speculators_config(draft, VerifierName("org/model", ("LlamaForCausalLM",)), 3, "float32")
    assert draft_problems(config) == []
    layer = {**config["transformer_layer_config"], **change.get("transformer_layer_config", {})}
    changed = {**config, **change, "transformer_layer_config": layer}
    (said,) = draft_problems({key: value for key, value in changed.items() if value is not ...})
    assert said.startswith(problem)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("type: dflash, sliding_window: {size: 64}", None),
        ("type: dflash, sliding_window: {size: 64, causal: false}", None),
        ("type: dflash, sliding_window: {size: 64, layers: [0], causal: false}", None),
        ("type: dflash, sliding_window: {size: 64, layers: [0]}", "every layer causal within a block, those without"),
        ("type: dflash2, sliding_window: {size: 64, layers: [0]}", "every layer causal within a block, those without"),
        ("type: dspark, sliding_window: {size: 64, layers: [0]}", None),
        ("type: dspark, sliding_window: {size: 64, causal: false}", "makes a DSpark draft's windowed layers causal"),
        ("type: xpress, sliding_window: {size: 64, layers: [0]}", None),
    ],
)
def test_a_window_that_vllm_would_read_otherwise_is_refused(said: str, problem: str | None) -> None:
    loaded = load_recipe("tiny", sets=[f"algorithm={{{said}, layers: 2, block_size: 4, aux_layers: [1, 3]}}"])
    if problem is None:
        assert check_fields(loaded.recipe, {}, loaded.origins)
        return
    with pytest.raises(RecipeError, match=problem):
        check_fields(loaded.recipe, {}, loaded.origins)


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ("type: xpress", "xpress"),
        ("type: dspark, markov_head_type: rnn", "dspark with a Markov head of the type rnn"),
        ("type: hydra", "hydra"),
        ("type: eagle, fc_bias: true", "eagle with `fc_bias: true`"),
    ],
)
def test_a_draft_that_vllm_does_not_know_is_refused_where_vllm_would_have_to_serve_it(said: str, form: str) -> None:
    blocks = "" if said.startswith(("type: hydra", "type: eagle")) else ", layers: 2, block_size: 4, aux_layers: [1, 3]"
    draft = f"algorithm={{{said}{blocks}}}"
    embedded = load_recipe("tiny", sets=[draft])
    assert check_fields(embedded.recipe, {}, embedded.origins)
    vllm = load_recipe("tiny", sets=[draft, "verifier.engine.type=vllm"])
    with pytest.raises(RecipeError, match=f"vLLM does not serve {form}, which the variant `speculator` asks for"):
        check_fields(vllm.recipe, {}, vllm.origins)
    alone = load_recipe("tiny", sets=[draft, "verifier.engine.type=vllm", "eval.benchmark.variants=[{name: dense}]"])
    assert check_fields(alone.recipe, {}, alone.origins)


@pytest.mark.parametrize("said", ["medusa", "eagle", "hass", "draft_model, random: {hidden_size: 16}"])
def test_a_draft_that_vllm_has_in_a_form_of_its_own_may_be_measured_there(said: str) -> None:
    loaded = load_recipe("tiny", sets=[f"algorithm={{type: {said}}}", "verifier.engine.type=vllm"])
    assert check_fields(loaded.recipe, {}, loaded.origins)


LAYERS = "layers: 2, aux_layers: [1, 3]"
UNTRAINED = [
    "type: eagle3, aux_layers: [1, 2, 3], draft_vocab_size: 288",
    "type: eagle3, aux_layers: [1, 2, 3], draft_vocab_size: null",
    f"type: peagle, {LAYERS}, draft_vocab_size: 288",
    f"type: dflash, {LAYERS}, block_size: 4",
    f"type: dflash, {LAYERS}, block_size: 4, draft_vocab_size: 288",
    f"type: dflash, {LAYERS}, block_size: 4, sliding_window: {{size: 64, layers: all}}",
    f"type: dflash, {LAYERS}, block_size: 4, sliding_window: {{size: 64, layers: [1], causal: false}}",
    f"type: dspark, {LAYERS}, block_size: 4, markov_rank: 8, sliding_window: {{size: 64, layers: [0]}}",
    f"type: dspark, {LAYERS}, block_size: 4, markov_rank: 8",
    f"type: dspark, {LAYERS}, block_size: 4, markov_rank: 8, confidence: {{with_markov: false}}",
    f"type: dspark, {LAYERS}, block_size: 4, markov_rank: 8, confidence: {{weight: 0}}",
    f"type: dspark, {LAYERS}, block_size: 4, markov_rank: 8, markov_head_type: gated",
    f"type: dspark, {LAYERS}, block_size: 4, markov_rank: 8, markov_head_type: rnn",
    f"type: dflash2, {LAYERS}, block_size: 4, selector: {{rank: 8}}",
    f"type: xpress, {LAYERS}, block_size: 4, refiner: {{rank: 8}}",
]


@pytest.mark.parametrize("said", UNTRAINED)
def test_an_untrained_checkpoint_keeps_every_rule_and_comes_back(tmp_path: Path, said: str) -> None:
    recipe = load_recipe("tiny", sets=[f"algorithm={{{said}}}"]).recipe
    assert recipe.verifier.random is not None
    facts = random_facts(recipe.verifier.random)
    name = VerifierName("/models/verifier", ("LlamaForCausalLM",))
    write_untrained(recipe, facts, name, tmp_path / "draft")
    assert check_checkpoint(tmp_path / "draft") == []
    module = load(recipe.algorithm.name, "config")
    size = getattr(recipe.algorithm, "draft_vocab_size", None) or facts.vocab_size
    layers = module.verifier_layers(recipe.algorithm, facts.layers)
    made = module.Config.for_verifier(facts, recipe.algorithm, draft_vocab_size=size, aux_layers=layers)
    assert draft_shape(read_config(tmp_path / "draft")) == made
