"""Every family's streams, logits and borrowed tensors are those of transformers' own forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import HEAD, HIDDEN
from transformers import AutoConfig

from speculators.engines.transformers import VerifierModel
from speculators.errors import UsageError
from speculators.layers.vocabulary import VerifierHead
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights

LAYERS = (1, 2, 4)
LENGTHS = (21, 14)


@pytest.fixture(scope="session")
def verifier(checkpoint: Path) -> VerifierModel:
    return VerifierModel.load(checkpoint, "float32", aux_layers=LAYERS)


@pytest.fixture(scope="session")
def texts() -> torch.Tensor:
    return torch.randint(3, 250, (2, LENGTHS[0]), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def own(reference: Any, texts: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Logits, the streams entering each layer, and the stream before the final norm."""
    last: list[torch.Tensor] = []
    decoder = next(m for name, m in reference.named_modules() if hasattr(m, "layers") and "vision" not in name)
    norm = next(getattr(decoder, name) for name in ("norm", "norm_f") if hasattr(decoder, name))
    hook = norm.register_forward_pre_hook(lambda module, args: last.append(args[0]))
    with torch.no_grad():
        out = reference(input_ids=texts, use_cache=False, output_hidden_states=True)
    hook.remove()
    return out.logits, list(out.hidden_states), last[0]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-4)


def test_facts_are_those_of_transformers_config(family: Any, checkpoint: Path) -> None:
    whole = AutoConfig.from_pretrained(checkpoint)
    config = whole.get_text_config()
    facts = VerifierFacts.from_directory(checkpoint)
    assert facts.layers == config.num_hidden_layers
    assert (facts.hidden_size, facts.vocab_size) == (config.hidden_size, config.vocab_size)
    assert facts.tie_word_embeddings == whole.tie_word_embeddings
    assert facts.eos_token_ids == (258,)
    assert facts.max_position_embeddings == config.max_position_embeddings
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": 10000.0}
    assert facts.rope["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    has_experts = any(
        name in json.dumps(dict(family.values)) for name in ("num_experts_per_tok", "routed", "local_exp")
    )
    assert (facts.experts > facts.experts_per_token >= 1) if has_experts else facts.experts == 0
    latent = "kv_lora_rank" in family.values  # the draft's own heads then have 128 channels
    heads = (HIDDEN // 128, HIDDEN // 128, 128) if latent else (4, 2, HEAD)
    assert (facts.attention_heads, facts.key_value_heads, facts.head_dim) == heads


def test_streams_and_logits_are_those_of_transformers(
    family: Any, verifier: VerifierModel, own: Any, texts: torch.Tensor
) -> None:
    logits, streams, last = own
    out = verifier.forward(texts, None, torch.arange(2), "all")
    assert out.logits is not None
    assert out.aux is not None
    assert verifier.rereads == family.rereads
    close(out.logits, logits)
    close(out.last, last)
    close(out.aux, torch.cat([streams[1], streams[2], last], -1))
    assert not torch.allclose(streams[1], streams[2], atol=1e-2), "one layer off would not be noticed"
    assert torch.equal(verifier.argmax(out.last.flatten(0, 1)), logits.argmax(-1).flatten())


def test_rows_of_different_lengths_read_on_as_if_alone(verifier: VerifierModel, own: Any, texts: torch.Tensor) -> None:
    logits, _, last = own
    cache, rows = verifier.new_cache(3, 24), torch.tensor([2, 0])
    verifier.forward(texts[:, :11], cache, rows, None)
    cache.crop(rows, [11, 8])
    out = verifier.forward(torch.stack([texts[0, 11:14], texts[1, 8:11]]), cache, rows, "all")
    assert cache.lengths.tolist() == [11, 0, 14]
    for row, start in enumerate((11, 8)):
        assert out.logits is not None
        close(out.logits[row], logits[row, start : start + 3])
        close(out.last[row], last[row, start : start + 3])


def test_padding_on_the_right_changes_nothing_before_it(verifier: VerifierModel, own: Any, texts: torch.Tensor) -> None:
    padded = torch.cat([texts[1:, :9], torch.zeros(1, 6, dtype=torch.int64)], 1)
    close(verifier.forward(padded, None, torch.arange(1)).last[:, :9], own[2][1:, :9])


def test_borrowed_tensors_make_the_verifiers_own_logits(
    family: Any, checkpoint: Path, own: Any, reference: Any
) -> None:
    if family.model == "NemotronForCausalLM":
        with pytest.raises(UsageError, match="final norm is not an RMSNorm"):
            VerifierWeights.read(checkpoint)
        return
    weights = VerifierWeights.read(checkpoint)
    head = VerifierHead(weights.head, weights.norm, weights.eps, weights.scale, weights.softcap)
    close(head.bend(head.normed(own[2]) @ weights.head.T), own[0])
    assert torch.equal(weights.embedding, reference.get_input_embeddings().weight)
