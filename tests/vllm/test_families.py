"""A verifier of another family than Llama in a real vLLM: its hidden states are those of the embedded engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from speculators.data.tokens import Reading
from speculators.engines.opened import Opening, extracting
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine
from speculators.verifiers.random_model import byte_tokenizer

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

LAYERS = (2, 3, 5)
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3-moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A family's random verifier."""
    config, model, values = FAMILIES[request.param]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**{**SIZES, **values}))
    made.generation_config.eos_token_id = [258]
    made.save_pretrained(tmp_path / "verifier")
    byte_tokenizer(SIZES["vocab_size"]).save_pretrained(tmp_path / "verifier")
    return tmp_path / "verifier"


def test_a_familys_states_are_ours(
    family: Path, engine: VllmEngine, embedded: TransformersEngine, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 250, (length,), generator=generator) for length in (40, 7, 90)]
    documents = [Reading(one, torch.arange(len(one)) >= 3) for one in ids]
    found = []
    for used in (embedded, engine):
        with extracting(Opening(used, family, "float32", None, tmp_path / "engine"), LAYERS) as extract:
            found.append({states.number: states for states in extract(documents)})
    for number, own in found[0].items():
        theirs = found[1][number]
        torch.testing.assert_close(theirs.aux.float(), own.aux, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(theirs.last.float(), own.last, rtol=2e-3, atol=2e-3)
        assert float((theirs.argmax == own.argmax).float().mean()) > 0.95
