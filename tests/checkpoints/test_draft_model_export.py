"""An independent draft as a plain model: transformers computes the same with it, and it comes back as a draft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from speculators.algorithms.draft_model.config import DraftModelConfig
from speculators.algorithms.draft_model.network import DraftModelNetwork
from speculators.algorithms.draft_model.proposal import DraftModelProposal
from speculators.checkpoints.convert import convert
from speculators.checkpoints.describe import describe
from speculators.checkpoints.exporters import write_export
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.load import load_draft, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.errors import UsageError
from speculators.verifiers.lender import Lender
from speculators.verifiers.random_model import write_random_model

V = 300
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope": LLAMA3, "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "rope": DEFAULT},
    "qwen2": {"model_type": "qwen2", "rope": YARN, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "rope": DEFAULT, "tie_word_embeddings": True},
}


@pytest.fixture(params=list(FAMILIES))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A draft of a family with random weights, in our format."""
    shape = DraftModelConfig(
        layers=2, hidden_size=24, intermediate_size=40, attention_heads=4, key_value_heads=2, head_dim=8, vocab_size=V,
        rms_norm_eps=1e-5, max_position_embeddings=128, bos_token_id=3, eos_token_ids=(5, 7),
        **FAMILIES[request.param],
    )  # fmt: skip
    network = DraftModelNetwork(shape)
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    name = VerifierName("a/b", ("LlamaForCausalLM",))
    config = speculators_config(network.config.to_config_json(), name, 3, "float32")
    write_checkpoint(tmp_path / "ours", config, network.state_dict())
    return tmp_path / "ours"


def test_transformers_loads_it_and_computes_what_we_compute(checkpoint: Path, tmp_path: Path) -> None:
    """Logits at every position of a text longer than its rotary positions were first made for."""
    write_export(read_checkpoint(checkpoint), "draft_model", tmp_path / "plain")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values()), info
    assert (model.config.bos_token_id, model.config.eos_token_id) == (3, [5, 7])
    text = torch.randint(0, V, (1, 60), generator=torch.Generator().manual_seed(1))
    logits = model(text).logits[0]
    proposal = DraftModelProposal(load_draft(checkpoint))  # type: ignore[arg-type]
    states = proposal._pass(proposal.new_cache(1, 64), torch.tensor([0]), text)
    torch.testing.assert_close(proposal._logits(states[0]), logits, rtol=1e-4, atol=1e-4)


def test_versions_of_transformers_before_5_read_the_same_positions(checkpoint: Path, tmp_path: Path) -> None:
    write_export(read_checkpoint(checkpoint), "draft_model", tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    rope = config.pop("rope_parameters")
    assert {**(config["rope_scaling"] or {"rope_type": "default"}), "rope_theta": config["rope_theta"]} == rope
    kind = config.pop("model_type")
    assert AutoConfig.for_model(kind, **config).rope_parameters == rope


@pytest.fixture
def lender(tmp_path: Path) -> Lender:
    shape: Any = type(
        "Shape",
        (),
        {"layers": 2, "hidden_size": 32, "intermediate_size": 48, "attention_heads": 4, "key_value_heads": 2,
         "vocab_size": V, "seed": 0},
    )  # fmt: skip
    write_random_model(shape, tmp_path / "verifier")
    return Lender.of_directory(tmp_path / "verifier", "verifier")


def test_a_plain_model_is_told_and_becomes_a_draft(checkpoint: Path, lender: Lender, tmp_path: Path) -> None:
    write_export(read_checkpoint(checkpoint), "draft_model", tmp_path / "plain")
    told = describe(Foreign.open(tmp_path / "plain"))
    assert told.format == "draft_model"
    assert '"method": "draft_model"' in told.problems[0]
    ours, back = read_checkpoint(checkpoint), convert(Foreign.open(tmp_path / "plain"), lender)
    expected = DraftModelConfig.from_config_json(ours.config)
    assert DraftModelConfig.from_config_json(back.draft) == expected
    assert all(torch.equal(value, ours.tensors[name]) for name, value in back.tensors.items())
    assert back.tensors.keys() == ours.tensors.keys()


def tokenizer(folder: Path, shift: int) -> None:
    words = {f"w{number}": (number + shift) % V for number in range(V)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))


@pytest.mark.parametrize("checkpoint", ["qwen3"], indirect=True)
def test_a_model_with_another_tokenizer_is_refused_as_in_training(
    checkpoint: Path, lender: Lender, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    write_export(read_checkpoint(checkpoint), "draft_model", plain)
    tokenizer(lender.directory, 0)
    tokenizer(plain, 0)
    assert convert(Foreign.open(plain), lender).draft["speculators_model_type"] == "draft_model"
    tokenizer(plain, 1)
    with pytest.raises(UsageError, match=r"its token 'w0' is 1, the verifier's 0; both must have the same tokenizer"):
        convert(Foreign.open(plain), lender)


def refused(lender: Lender, folder: Path, edit: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> str:
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    edit(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError) as refusal:
        convert(Foreign.open(folder), lender)
    return str(refusal.value)


@pytest.mark.parametrize("checkpoint", ["qwen3"], indirect=True)
def test_a_model_that_does_not_fit_is_refused_with_why(checkpoint: Path, lender: Lender, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    write_export(read_checkpoint(checkpoint), "draft_model", plain)
    assert "its vocabulary has 299 tokens, the verifier's 300" in refused(
        lender, plain, lambda config, tensors: config.update(vocab_size=V - 1)
    )
    assert "model.layers.1.self_attn.q_proj.bias is no tensor of such a model" in refused(
        lender,
        plain,
        lambda config, tensors: (
            config.update(vocab_size=V),
            tensors.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(32)}),
        )[0],
    )
    foreign = Foreign.open(plain)
    with pytest.raises(UsageError, match="reads the text alone; there are no layers to choose"):
        convert(foreign, lender, aux_layers=[1])
