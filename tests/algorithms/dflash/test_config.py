"""Windows in config.json: read as others write them, written as vLLM and transformers read them."""

import pytest

from speculators.algorithms.dflash.config import DFlashConfig
from speculators.errors import UsageError


@pytest.fixture
def written(shape):
    config = DFlashConfig(**shape, layers=3, block_size=5, mask_token_id=49).to_config_json()
    assert config["sliding_window_non_causal"] is True
    assert "layer_types" not in config["transformer_layer_config"]

    def change(layer, **top):
        return {**config, **top, "transformer_layer_config": {**config["transformer_layer_config"], **layer}}

    return change


SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("kinds", "non_causal", "fields"),
    [
        ([SLIDING] * 3, False, (2048, (0, 1, 2), True)),
        ([SLIDING, FULL, SLIDING], True, (2048, (0, 2), False)),
        ([FULL] * 3, False, (None, (), True)),
        (None, True, (None, (), True)),
    ],
)
def test_windows_are_read_and_written_alike(written, kinds, non_causal, fields):
    config = written(
        {"layer_types": kinds, "sliding_window": 2048, "use_sliding_window": True},
        sliding_window_non_causal=non_causal,
    )
    found = DFlashConfig.from_config_json(config)
    assert (found.window, found.windowed_layers, found.window_is_causal) == fields
    again = found.to_config_json()
    assert DFlashConfig.from_config_json(again) == found
    if fields[0]:
        layer = again["transformer_layer_config"]
        assert (layer["layer_types"], layer["sliding_window"], layer["use_sliding_window"]) == (kinds, 2048, True)
        assert again["sliding_window_non_causal"] is non_causal


def test_without_the_key_about_causality_a_window_is_not_causal(written):
    config = written({"layer_types": [SLIDING] * 3, "sliding_window": 64})
    del config["sliding_window_non_causal"]
    assert not DFlashConfig.from_config_json(config).window_is_causal


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"layer_types": [SLIDING] * 2}, "says sliding_attention or full_attention of every layer"),
        ({"layer_types": [SLIDING, FULL, "chunked_attention"]}, "says sliding_attention or full_attention of every"),
        ({"layer_types": [SLIDING] * 3, "sliding_window": None}, "no `sliding_window` that says how far they see"),
    ],
)
def test_what_is_no_window_is_refused(written, layer, said):
    with pytest.raises(UsageError, match=said):
        DFlashConfig.from_config_json(written(layer))
