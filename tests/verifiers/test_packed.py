"""Packed heads are what their formats say value by value, and what does not go together is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from speculators.errors import UsageError
from speculators.verifiers.packed import AWQ_ORDER
from speculators.verifiers.weights import VerifierWeights

ROWS, HIDDEN, GROUP = 32, 48, 4


@pytest.fixture
def head(tmp_path):
    """Writes a checkpoint with these tensors in the place of its head and this `quantization_config`, and reads it."""

    def read(tensors, quantization):
        others = {
            "model.embed_tokens.weight": torch.zeros(ROWS, HIDDEN),
            "model.norm.weight": torch.ones(HIDDEN),
            "model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 4),
        }
        save_file(others | {f"lm_head.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "m.safetensors")
        config = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
        return VerifierWeights.read(tmp_path).head

    return read


class Drawn:
    """Values [V, h], zero points and scales [V, groups] of so many bits, and the group of every input."""

    def __init__(self, bits, *, hidden=HIDDEN, ordered=True):
        generator = torch.Generator().manual_seed(bits)
        groups = hidden // GROUP
        self.values = torch.randint(0, 1 << bits, (ROWS, hidden), generator=generator)
        self.zeros = torch.randint(1, 1 << bits, (ROWS, groups), generator=generator)
        self.scales = torch.rand(ROWS, groups, generator=generator).half()
        self.groups = torch.arange(hidden) // GROUP
        if not ordered:
            self.groups = self.groups[torch.randperm(hidden, generator=generator)]

    def weight(self):
        """One value after another."""
        found = torch.empty(self.values.shape)
        for row in range(ROWS):
            for column in range(self.values.shape[1]):
                group = int(self.groups[column])
                whole = int(self.values[row, column]) - int(self.zeros[row, group])
                found[row, column] = whole * float(self.scales[row, group])
        return found


def words(numbers, bits):
    """The rows of a matrix in int32 words, the first value in the lowest bits; the last word is filled with zeros."""
    several, made = 32 // bits, []
    for row in numbers.tolist():
        filled = row + [0] * (-len(row) % several)
        line = []
        for start in range(0, len(filled), several):
            word = sum(value << (bits * place) for place, value in enumerate(filled[start : start + several]))
            line.append(word - (1 << 32) if word >= 1 << 31 else word)
        made.append(line)
    return torch.tensor(made, dtype=torch.int32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("ordered", [True, False])
def test_gptq(head, bits, second, ordered):
    drawn = Drawn(bits, ordered=ordered)
    tensors = {
        "qweight": words(drawn.values, bits).T.contiguous(),
        "qzeros": words(drawn.zeros.T - (0 if second else 1), bits),
        "scales": drawn.scales.T.contiguous(),
    }
    if not ordered:
        tensors["g_idx"] = drawn.groups.int()
    quantization = {"quant_method": "gptq", "bits": bits, "checkpoint_format": "gptq_v2" if second else "gptq"}
    assert torch.equal(head(tensors, quantization), drawn.weight())


def test_awq(head):
    drawn = Drawn(4)

    def mixed(numbers):
        """The columns of every eight in the order in which AWQ fills a word."""
        return numbers.reshape(len(numbers), -1, 8)[..., list(AWQ_ORDER)].flatten(1)

    tensors = {
        "qweight": words(mixed(drawn.values.T), 4),
        "qzeros": words(mixed(drawn.zeros.T), 4),
        "scales": drawn.scales.T.contiguous(),
    }
    assert AWQ_ORDER == (0, 2, 4, 6, 1, 3, 5, 7)
    quantization = {"quant_method": "awq", "bits": 4, "version": "gemm"}
    assert torch.equal(head(tensors, quantization), drawn.weight())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("hidden", [HIDDEN, HIDDEN - 4], ids=["whole-words", "the-last-word-not-full"])
def test_compressed_tensors(head, bits, symmetric, hidden):
    drawn = Drawn(bits, hidden=hidden)
    tensors = {
        "weight_packed": words(drawn.values, bits),
        "weight_scale": drawn.scales,
        "weight_shape": torch.tensor([ROWS, hidden]),
    }
    if symmetric:
        drawn.zeros.fill_(1 << (bits - 1))
    else:
        tensors["weight_zero_point"] = words(drawn.zeros.T, bits).T.contiguous()
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    assert torch.equal(head(tensors, quantization), drawn.weight())


def gptq_parts(**changes):
    drawn = Drawn(4)
    parts = {
        "qweight": words(drawn.values, 4).T.contiguous(),
        "qzeros": words(drawn.zeros.T - 1, 4),
        "scales": drawn.scales.T.contiguous(),
    }
    return {name: part for name, part in (parts | changes).items() if part is not None}


GPTQ = {"quant_method": "gptq", "bits": 4}


@pytest.mark.parametrize(
    ("tensors", "quantization", "message"),
    [
        (gptq_parts(scales=None), GPTQ, r"lm_head.qweight is packed, and scales is not beside it"),
        (
            gptq_parts(scales=torch.ones(3, 7)),
            GPTQ,
            r"its parts do not go together: qweight \(6, 32\), .*scales \(3, 7\)",
        ),
        (gptq_parts(), GPTQ | {"bits": 3}, "its parts do not go together"),
        (
            gptq_parts(),
            {"quant_method": "awq", "version": "gemv"},
            r"packed in a way that is not read \(awq gemv\); train",
        ),
        (
            gptq_parts(),
            {},
            "the config does not say which.*train the draft for the verifier that this one was quantised from",
        ),
    ],
    ids=["no-scales", "other-shapes", "three-bits", "other-version", "no-config"],
)
def test_what_cannot_be_unpacked_is_said_in_one_sentence(head, tensors, quantization, message):
    with pytest.raises(UsageError, match=message):
        head(tensors, quantization)
