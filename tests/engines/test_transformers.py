"""Promises of the verifier: the same numbers as transformers, whatever the batch, the slots and the packing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GraniteConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from speculators.engines.transformers import VerifierModel
from speculators.errors import UsageError
from speculators.layers import packed_head
from speculators.layers.packed_linear import PackedLinear, can_pack

LAYERS = (2, 3, 6)


WAYS = {
    "own-plain": (False, False),
    "own-packed": (False, True),
    "lean-plain": (True, False),
    "lean-packed": (True, True),
}


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def verifier(request: pytest.FixtureRequest, llama: Path) -> VerifierModel:
    lean, packed = request.param
    return VerifierModel.load(llama, "float32", aux_layers=LAYERS, packed=packed, lean=lean)


def tokens(length: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 199, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def states(reference: Any, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Logits, `hidden_states[0..n-1]` and the stream before the final norm, of one sequence without a cache."""
    last: list[torch.Tensor] = []
    hook = reference.model.norm.register_forward_pre_hook(lambda module, args: last.append(args[0]))
    out = reference(ids[None], output_hidden_states=True, use_cache=False)
    hook.remove()
    return out.logits[0], [stream[0] for stream in out.hidden_states], last[0][0]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_layer_ids_are_the_indices_of_transformers_hidden_states(verifier: VerifierModel, reference: Any) -> None:
    ids = tokens(11, 0)
    logits, streams, last = states(reference, ids)
    out = verifier.forward(ids[None], verifier.new_cache(1, 16), torch.tensor([0]), logits="all")
    assert out.logits is not None
    assert out.aux is not None
    close(out.logits[0], logits)
    close(out.last[0], last)
    close(out.aux[0], torch.cat([streams[2], streams[3], last], dim=-1))
    assert not torch.allclose(last, streams[6], atol=1e-2), "transformers' own last entry is after the norm"


def test_rows_of_different_lengths_read_on_as_if_alone(verifier: VerifierModel, reference: Any) -> None:
    lengths, more = (3, 9, 5), 4
    texts = [tokens(length + more, 10 + length) for length in lengths]
    cache = verifier.new_cache(5, 24)
    slots = torch.tensor([4, 0, 2])
    for slot, text, length in zip(slots, texts, lengths, strict=True):
        verifier.forward(text[None, :length], cache, slot[None], logits=None)
    assert cache.lengths.tolist() == [9, 0, 5, 0, 3]
    new = torch.stack([text[length:] for text, length in zip(texts, lengths, strict=True)])
    out = verifier.forward(new, cache, slots, logits="all")
    assert cache.lengths.tolist() == [13, 0, 9, 0, 7]
    for row, text in enumerate(texts):
        logits, streams, last = states(reference, text)
        assert out.logits is not None
        assert out.aux is not None
        close(out.logits[row], logits[-more:])
        close(out.last[row], last[-more:])
        close(out.aux[row], torch.cat([streams[2], streams[3], last], dim=-1)[-more:])


@pytest.mark.parametrize("slots", [[0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize("width", [1, 3])
def test_a_batch_of_one_token_steps_equals_one_long_read(
    verifier: VerifierModel, reference: Any, slots: list[int], width: int
) -> None:
    texts = torch.stack([tokens(12, seed) for seed in range(3)])
    cache, rows = verifier.new_cache(3, 12), torch.tensor(slots)
    steps = [verifier.forward(texts[:, at : at + width], cache, rows, logits="last") for at in range(0, 12, width)]
    for row in range(3):
        logits, _, last = states(reference, texts[row])
        found = torch.stack([step.logits[row, 0] for step in steps if step.logits is not None])
        close(found, logits[width - 1 :: width])
        close(torch.cat([step.last[row] for step in steps]), last)


def test_what_was_cropped_leaves_no_trace(verifier: VerifierModel, reference: Any) -> None:
    text, wrong = tokens(10, 3), tokens(6, 4)
    cache, rows = verifier.new_cache(2, 20), torch.tensor([1])
    verifier.forward(text[None, :7], cache, rows, logits=None)
    verifier.forward(wrong[None], cache, rows, logits=None)
    cache.crop(rows, 7)
    out = verifier.forward(text[None, 7:], cache, rows, logits="all")
    assert out.logits is not None
    close(out.logits[0], states(reference, text)[0][7:])


def test_right_padding_in_a_prefill_is_cropped_away(verifier: VerifierModel, reference: Any) -> None:
    short, long = tokens(4, 5), tokens(9, 6)
    padded = torch.stack([torch.cat([short[:3], torch.zeros(5, dtype=torch.int64)]), long[:8]])
    cache, rows = verifier.new_cache(2, 12), torch.tensor([0, 1])
    verifier.forward(padded, cache, rows, logits=None)
    cache.crop(rows, torch.tensor([3, 8]))
    out = verifier.forward(torch.stack([short[3:], long[8:]]), cache, rows)
    assert out.logits is not None
    close(out.logits[0, 0], states(reference, short)[0][-1])
    close(out.logits[1, 0], states(reference, long)[0][-1])


def test_argmax_is_that_of_the_full_logits(verifier: VerifierModel, reference: Any) -> None:
    ids = tokens(40, 7)
    out = verifier.forward(ids[None], verifier.new_cache(1, 40), torch.tensor([0]), logits=None)
    assert out.logits is None
    assert torch.equal(verifier.argmax(out.last[0]), states(reference, ids)[0].argmax(dim=-1))


@pytest.mark.parametrize("lean", [True, False])
def test_a_split_head_changes_neither_argmax_nor_logits(
    llama: Path, reference: Any, lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_head, "BLOCK_ROWS", 16)
    split = VerifierModel.load(llama, "float32", aux_layers=LAYERS, lean=lean, split_head=True)
    ids = tokens(40, 7)
    out = split.forward(ids[None], split.new_cache(1, 40), torch.tensor([0]), logits="all")
    assert out.logits is not None
    expected = states(reference, ids)[0]
    close(out.logits[0], expected)
    assert torch.equal(split.argmax(out.last[0]), expected.argmax(dim=-1))


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="the processor has no bfloat16 products")
def test_bfloat16_products_leave_the_residual_stream_in_float32(llama: Path, reference: Any) -> None:
    mixed = VerifierModel.load(llama, "float32", aux_layers=LAYERS, compute_dtype="bfloat16")
    ids = tokens(11, 0)
    out = mixed.forward(ids[None], mixed.new_cache(1, 16), torch.tensor([0]))
    assert out.last.dtype == torch.float32
    assert out.logits is not None
    assert out.logits.dtype == torch.float32
    _, _, last = states(reference, ids)
    error = (out.last[0] - last).norm() / last.norm()
    assert 0 < error < 0.03


def test_packing_covers_the_tied_head_and_keeps_the_embedding(llama: Path) -> None:
    model = VerifierModel.load(llama, "float32").model
    if not can_pack(torch.float32):
        pytest.skip("no oneDNN here")
    assert isinstance(model.lm_head, PackedLinear)
    assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert model.get_input_embeddings().weight.shape == (199, 48)


def small(**changes: Any) -> dict[str, Any]:
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    return {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, **changes}


@pytest.mark.parametrize(
    ("config", "is_lean"),
    [
        (Qwen3Config(**small()), True),
        (Qwen2Config(**small()), True),
        (MistralConfig(**small(sliding_window=5)), False),
        (GraniteConfig(**small(residual_multiplier=0.3, logits_scaling=4.0)), False),
        (GemmaConfig(**small()), True),
    ],
    ids=["query-key-norms", "biases", "sliding-window", "scaled-residuals", "scaled-embedding"],
)
def test_other_families_need_no_code_of_their_own(config: Any, is_lean: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    verifier = VerifierModel.load(tmp_path, "float32")
    assert verifier.is_lean == is_lean
    ids = tokens(16, 9) % 99
    cache, rows = verifier.new_cache(1, 16), torch.tensor([0])
    found = [verifier.forward(part[None], cache, rows, logits="all").logits for part in (ids[:9], ids[9:13], ids[13:])]
    with torch.no_grad():
        expected = reference(ids[None], use_cache=False).logits
    close(torch.cat([part for part in found if part is not None], dim=1), expected)


def test_a_layer_that_does_not_exist_is_named(llama: Path) -> None:
    with pytest.raises(ValueError, match="no layer 7; ids go from 0 to 6"):
        VerifierModel.load(llama, "float32", aux_layers=(2, 7))


def test_a_cpu_without_units_keeps_rounded_weights_and_computes_in_float32(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    narrow = VerifierModel.load(llama, "bfloat16")
    assert (narrow.dtype, narrow.compute_dtype) == (torch.float32, torch.float32)
    weight = narrow.model.get_input_embeddings().weight
    assert torch.equal(weight, weight.bfloat16().float()), "the weights are those of a bfloat16 model"
    mixed = VerifierModel.load(llama, "float32", compute_dtype="bfloat16")
    whole = VerifierModel.load(llama, "float32")
    ids, rows = torch.arange(6)[None] + 3, torch.arange(1)
    assert torch.equal(mixed.forward(ids, None, rows).last, whole.forward(ids, None, rows).last)


def test_a_checkpoint_that_lacks_weights_is_refused_rather_than_filled_with_random_numbers(
    llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tensors = load_file(llama / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 weights of LlamaForCausalLM, such as model.layers.3.mlp.up_proj"):
        VerifierModel.load(tmp_path, "float32")
