"""A verifier with its fine-tuned head stitched in, in a real vLLM: no token changes, and acceptance is our loop's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from random_heads import add_head
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES

from speculators.checkpoints.load import load_draft, proposal_of
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.as_served import as_served
from speculators.engines.vllm.server import ServerOptions, serve_arguments
from speculators.evaluation.acceptance import Settings, decode, round_figures
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.random_model import write_random_model

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

TOKENS, STEPS, K = 40, 100, 3
SHAPE = SimpleNamespace(
    layers=3, hidden_size=128, intermediate_size=192, attention_heads=4, key_value_heads=2, vocab_size=300, seed=0
)


def write_mimo(directory: Path) -> None:
    """A random MiMo, which is a Qwen2 with a head."""
    write_random_model(SHAPE, directory)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config |= {"model_type": "qwen2", "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
    file.write_text(json.dumps({name: value for name, value in config.items() if name != "attention_bias"}))
    tensors = load_file(directory / "model.safetensors")
    for layer in range(SHAPE.layers):
        for name in "qkv":
            size = len(tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"])
            tensors[f"model.layers.{layer}.self_attn.{name}_proj.bias"] = 0.1 * torch.randn(size)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=["mimo", "glm"])
def verifier_with_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random MiMo, or a random GLM-4.5, whose head has experts."""
    directory: Path = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(1)
    if request.param == "mimo":
        write_mimo(directory)
        add_head(directory, attention_bias=True)
    else:
        FAMILIES["glm-4-moe"].write(directory)
        add_head(directory)
    return directory


def test_the_stitched_verifier_drafts_for_itself(
    verifier_with_head: Path, short_training: Callable[..., Any], inside: Callable[..., Any], tmp_path: Path
) -> None:
    facts = VerifierFacts.from_directory(verifier_with_head)
    model = VerifierModel.load(verifier_with_head, "float32", aux_layers=(facts.layers,))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 256, (5 + n % 7,), generator=generator).tolist() for n in range(16)]
    greedy = [list(one.tokens) for one in decode(model, None, prompts, Settings(0.0, 0, TOKENS, 16))]
    documents = list(zip(prompts, greedy, strict=True))
    objective, _, _, _ = short_training(f"type: mtp, steps: {K}", model, verifier_with_head, documents, steps=STEPS)
    checkpoint, stitched = tmp_path / "checkpoint", tmp_path / "stitched"
    name = VerifierName(str(verifier_with_head), facts.architectures)
    config = speculators_config(objective.network.config.to_config_json(), name, K, "float32")
    write_checkpoint(checkpoint, config, objective.network.state_dict())

    served, drafting = as_served(checkpoint, stitched, verifier_with_head)
    options = ServerOptions(
        max_length=512,
        cpu_cache=1,
        eager=True,
        most_requests=16,
        extra=drafting,
    )
    arguments = serve_arguments(served, "float32", options, trust_remote_code=False)
    found = inside(arguments, prompts, TOKENS)
    assert found["tokens"] == greedy
    assert len(found["accepted"]) == K

    own = decode(model, proposal_of(load_draft(checkpoint)), prompts, Settings(0.0, K, TOKENS, 16))
    figures = round_figures(own, K)
    assert figures["acceptance_length"] > 1.2
    # vLLM also counts proposals that it accepted beyond the end of an answer.
    assert 1 + sum(found["accepted"]) / found["drafts"] == pytest.approx(figures["acceptance_length"], rel=0.05)
