"""Facts are read from the config and the weights' headers alone, whichever transformers wrote them."""

import json
import subprocess
import sys

import pytest

from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts, rope_parameters, weight_bytes
from speculators.verifiers.random_model import random_facts

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 128256,
}


def test_random_weights_are_known_before_they_are_made(tiny, shape):
    assert VerifierFacts.from_directory(tiny) == random_facts(shape)


def test_weight_bytes_count_the_tensors_and_not_the_header(tiny):
    import safetensors.torch

    tensors = safetensors.torch.load_file(tiny / "model.safetensors")
    assert weight_bytes(tiny) == sum(tensor.nbytes for tensor in tensors.values())


def test_missing_sizes_follow_from_the_others():
    facts = VerifierFacts.from_config(LLAMA)
    assert (facts.key_value_heads, facts.head_dim, facts.tie_word_embeddings) == (32, 128, False)


def test_a_model_with_images_keeps_its_decoder_one_level_down():
    facts = VerifierFacts.from_config({"model_type": "gemma3", "text_config": LLAMA, "eos_token_id": [1, 106]})
    assert (facts.layers, facts.model_type, facts.eos_token_ids) == (32, "llama", (1, 106))


def test_quantised_weights_are_known_from_the_config():
    assert not VerifierFacts.from_config(LLAMA | {"quantization_config": None}).is_quantized
    assert VerifierFacts.from_config(LLAMA | {"quantization_config": {"quant_method": "fp8"}}).is_quantized
    assert VerifierFacts.from_config({"text_config": LLAMA, "compression_config": {"format": "int"}}).is_quantized


def test_ends_of_sequence_come_from_both_configs_once():
    facts = VerifierFacts.from_config(LLAMA | {"eos_token_id": 2}, generation={"eos_token_id": [7, 2]})
    assert facts.eos_token_ids == (2, 7)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, {"rope_theta": 1e6, "rope_type": "default"}),
        ({"rope_theta": 500000}, {"rope_theta": 500000.0, "rope_type": "default"}),
        (
            {"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_theta": 500000.0, "rope_type": "linear", "factor": 2.0},
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "proportional", "rope_theta": 1e6}}},
            {"rope_theta": 1e6, "rope_type": "default"},
        ),
        ({"rope_theta": 1e4, "rope_scaling": None}, {"rope_theta": 1e4, "rope_type": "default"}),
        ({}, {"rope_theta": 1e4, "rope_type": "default"}),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {},
                }
            },
            {"rope_type": "default", "rope_theta": 1e6},
        ),
    ],
)
def test_rotary_settings_have_one_form_whichever_version_wrote_them(config, expected):
    assert rope_parameters(config) == expected


def test_a_directory_without_config_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"is not a verifier: there is no config\.json in it"):
        VerifierFacts.from_directory(tmp_path)


def test_a_config_that_is_no_decoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 8}))
    with pytest.raises(UsageError, match="has no `num_attention_heads`"):
        VerifierFacts.from_directory(tmp_path)


def test_a_truncated_weights_file_is_refused(tmp_path, tiny):
    (tmp_path / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:40])
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        weight_bytes(tmp_path)


def test_facts_and_sources_never_import_torch():
    code = "import speculators.verifiers.source, speculators.steps.verifier, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
