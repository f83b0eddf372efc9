"""Heads of quantised checkpoints come back as what they were, or are refused with what to do."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from speculators.errors import UsageError
from speculators.verifiers.weights import VerifierWeights

ROWS, HIDDEN = 300, 256


@pytest.fixture
def quantise(tmp_path):
    """Writes a checkpoint whose head is replaced by the tensors given, and reads it; gives the true head as well."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(ROWS, HIDDEN, generator=generator)

    def write(make):
        tensors = {
            "model.embed_tokens.weight": torch.randn(ROWS, HIDDEN, generator=generator).bfloat16(),
            "model.norm.weight": torch.ones(HIDDEN).bfloat16(),
            "model.layers.0.mlp.up_proj.weight": torch.zeros(4, 4),
        }
        save_file(
            tensors | {f"lm_head.{name}": tensor for name, tensor in make(head).items()}, tmp_path / "m.safetensors"
        )
        config = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return VerifierWeights.read(tmp_path).head, head

    return write


def eight_bits(values, scale):
    return (values / scale).to(torch.float8_e4m3fn)


def blocks(head):
    """DeepSeek's: one factor for 128 by 128 values; the last block of rows is cut off."""
    factors = torch.tensor([[0.01, 0.02], [0.03, 0.04], [0.05, 0.06]])
    wide = factors.repeat_interleave(128, 0).repeat_interleave(128, 1)[:ROWS]
    return {"weight": eight_bits(head, wide), "weight_scale_inv": factors}


def rows(head):
    factors = head.abs().amax(1, keepdim=True) / 400
    return {"weight": eight_bits(head, factors), "weight_scale": factors.bfloat16()}


def whole(head):
    factor = head.abs().max() / 400
    return {"weight": eight_bits(head, factor), "weight_scale": factor.reshape(1)}


def integers(head):
    low, high = head.aminmax(dim=1, keepdim=True)
    factors = (high - low) / 255
    zero = (-128 - low / factors).round()
    weight = (head / factors + zero).round().clamp(-128, 127).to(torch.int8)
    return {"weight": weight, "weight_scale": factors, "weight_zero_point": zero.to(torch.int8)}


@pytest.mark.parametrize("make", [blocks, rows, whole, integers])
def test_a_head_of_eight_bits_is_read(quantise, make):
    found, head = quantise(make)
    assert found.dtype == torch.float32
    assert float((found - head).norm() / head.norm()) < 0.05


def test_a_head_that_was_kept_is_read_as_it_is(quantise):
    found, head = quantise(lambda head: {"weight": head.half()})
    assert torch.equal(found, head.half().float())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda head: {"weight": head.to(torch.float8_e4m3fn)}, "stored as torch.float8_e4m3fn and there is no scale"),
        (
            lambda head: {"weight": head.to(torch.uint8)},
            "stored as torch.uint8, which is not read; train the draft for",
        ),
        (
            lambda head: {"weight": head.to(torch.int8), "weight_scale": torch.ones(7)},
            r"has the shape \(300, 256\), and scales of the shape \(7,\)",
        ),
    ],
    ids=["no-scale", "unknown-type", "scales-that-do-not-fit"],
)
def test_what_cannot_be_read_is_said_in_one_sentence(quantise, make, message):
    with pytest.raises(UsageError, match=message):
        quantise(make)


def test_the_verifier_keeps_its_other_tensors(quantise, tmp_path):
    quantise(blocks)
    assert load_file(tmp_path / "m.safetensors")["model.embed_tokens.weight"].dtype == torch.bfloat16
