"""What configs leave out is what transformers' own classes take it for."""

import transformers

from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.families import OMITTED, plain_attention, text_config

CLASSES = {
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "gemma4_text": "Gemma4TextConfig",
}


def test_omitted_values_are_the_defaults_of_transformers():
    for kind, values in OMITTED.items():
        default = getattr(transformers, CLASSES[kind])().to_dict()
        for name, value in values.items():
            found = (default["rope_parameters"]["full_attention"] if name == "rope_theta" else default)[name]
            assert found == value, (kind, name)


def test_a_config_that_says_next_to_nothing_is_whole():
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    rope = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    facts = VerifierFacts.from_config({"model_type": "gemma3", "text_config": text | rope, "eos_token_id": [1, 106]})
    assert (facts.attention_heads, facts.key_value_heads, facts.head_dim) == (8, 4, 256)
    assert (facts.vocab_size, facts.tie_word_embeddings, facts.max_position_embeddings) == (262208, True, 131072)
    assert facts.rope == {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}


def test_what_the_config_says_comes_before_what_it_leaves_out():
    assert text_config({"model_type": "gemma2", "head_dim": 128, "tie_word_embeddings": False})["head_dim"] == 128
    composite = {"text_config": {"model_type": "gemma3_text"}, "tie_word_embeddings": False}
    assert text_config(composite)["tie_word_embeddings"] is False


def test_layers_are_counted_where_only_their_kinds_are_named():
    assert text_config({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*-"})["num_hidden_layers"] == 5


def test_drafts_of_latent_attention_have_ordinary_heads():
    assert plain_attention(7168, 128) == (56, 8, 128)  # DeepSeek-V3
    assert plain_attention(32, 4) == (4, 4, 8)
