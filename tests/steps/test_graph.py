"""The steps of real recipes as one graph: their order, and that each reads only what it declares."""

import pytest

from speculators.errors import RecipeError
from speculators.pipeline.plan import make_plan, ordered
from speculators.pipeline.step import Scope
from speculators.pipeline.store import Store
from speculators.recipe.load import load_recipe
from speculators.steps import assemble, gathered_facts, graph, reassemble

WHOLE = [
    "verifier", "prompts", "answers", "tokens", "vocabulary", "hidden_states", "train", "checkpoint",
    "acceptance", "benchmark-dense", "benchmark-speculator", "report",
]  # fmt: skip


@pytest.mark.parametrize("name", ["tiny", "quickstart"])
def test_a_whole_recipe_has_all_steps_and_they_are_in_order(name):
    recipe = load_recipe(name).recipe
    assert [step.name for step in graph(recipe)] == WHOLE
    assert [step.name for step in ordered(graph(recipe))] == WHOLE


def test_the_best_number_of_speculative_tokens_is_found_before_the_checkpoint_is_written():
    recipe = load_recipe("tiny", sets=["eval.acceptance.speculative_tokens=auto"]).recipe
    names = [step.name for step in ordered(graph(recipe))]
    assert names.index("train") < names.index("speculative_tokens") < names.index("checkpoint")
    (checkpoint,) = (step for step in graph(recipe) if step.name == "checkpoint")
    assert "speculative_tokens" in checkpoint.inputs


def test_what_a_recipe_leaves_out_is_no_step():
    sets = ["data.regenerate=null", "data.sources=[{dataset: org/chats, split: train}]", "eval.acceptance=null"]
    recipe = load_recipe("tiny", sets=[*sets, "eval.benchmark=null"]).recipe
    left = [step.name for step in ordered(graph(recipe))]
    assert left == [n for n in WHOLE if n not in {"answers", "acceptance"} and not n.startswith("benchmark")]


def test_planning_a_step_reads_only_what_it_declares():
    """A view raises at anything else, so that the key covers all that can decide; `run` is held to it by the worker."""
    loaded = load_recipe("tiny")
    assembly = assemble(loaded.recipe, loaded.data)
    for step in assembly.steps:
        view = assembly.view(step.reads)
        step.external(view)
        step.estimate(Scope(view, gathered_facts(loaded.recipe, {})))
        with pytest.raises(AttributeError):
            _ = view.recipe


def test_a_worker_s_recipe_is_the_planner_s(tmp_path):
    loaded = load_recipe("tiny")
    store = Store.open(tmp_path)
    plans = [make_plan(made, store) for made in (assemble(loaded.recipe, loaded.data), reassemble(loaded.data))]
    assert [step.key for step in plans[0].steps] == [step.key for step in plans[1].steps]


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ("train.epochs=7", {"train"}),
        ("data.max_length=100", {"tokens"}),
        ("eval.acceptance.max_new_tokens=7", {"acceptance"}),
        ("eval.benchmark.max_tokens=7", {"benchmark-dense", "benchmark-speculator"}),
        ("verifier.engine.threads=1", set()),
        ("train.checkpoint.every=7", set()),
        ("description=other", set()),
    ],
)
def test_a_change_reaches_exactly_the_steps_that_read_it(tmp_path, change, steps):
    def configs(sets):
        loaded = load_recipe("tiny", sets=sets)
        plan = make_plan(assemble(loaded.recipe, loaded.data), Store.open(tmp_path))
        return {step.name: step.hashed["config"] for step in plan.steps}

    before, after = configs([]), configs([change])
    assert {name for name in before if before[name] != after[name]} == steps


def states_key(said, store):
    loaded = load_recipe("tiny", sets=["verifier.random.layers=9", f"algorithm={{{said}}}"])
    return make_plan(assemble(loaded.recipe, loaded.data), store)["hidden_states"].key


def test_algorithms_that_read_the_same_streams_share_their_hidden_states(tmp_path):
    """And no others: what is auto in two of them may be two things."""
    store = Store.open(tmp_path)
    alike = (
        ("type: eagle3, aux_layers: auto, draft_vocab_size: 300", "type: peagle, draft_vocab_size: null"),
        (
            "type: eagle3, aux_layers: [1, 3], draft_vocab_size: 300",
            "type: dflash, aux_layers: [1, 3]",
            "type: xpress, aux_layers: [1, 3]",
        ),
        ("type: eagle", "type: hass", "type: medusa", "type: hydra", "type: draft_model, random: {hidden_size: 16}"),
        ("type: dflash, layers: 3", "type: dspark, layers: 3", "type: dflash2, layers: 3"),
        ("type: dflash, layers: 2",),
        ("type: eagle3, aux_layers: [1, 2], draft_vocab_size: 300",),
    )
    keys = [{states_key(said, store) for said in group} for group in alike]
    assert [len(one) for one in keys] == [1] * len(alike)
    assert len(set.union(*keys)) == len(alike)


def test_a_field_that_does_not_fit_the_verifier_is_found_while_planning(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,'
        ' "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512, "rms_norm_eps": 1e-5,'
        ' "max_position_embeddings": 512}'
    )
    sets = ["verifier.random=null", f"verifier.model={directory}", "algorithm.aux_layers=[0, 1, 3]"]
    loaded = load_recipe("tiny", sets=sets)
    with pytest.raises(RecipeError, match=r"aux_layers.* is 3, but .* has 2 layers"):
        make_plan(assemble(loaded.recipe, loaded.data, loaded.origins), Store.open(tmp_path / "store"))
