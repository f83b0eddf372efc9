"""Families in a real vLLM (CPU build): hidden states are ours, and a draft speaks for them without a changed word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, HIDDEN, LAYERS

from speculators.checkpoints.load import load_draft, proposal_of
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.data.tokens import Reading
from speculators.engines.extraction import extract
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.server import ServerOptions, extraction_arguments, serve_arguments
from speculators.evaluation.acceptance import Settings, decode, round_figures
from speculators.verifiers.facts import VerifierFacts

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

OPTIONS = ServerOptions(max_length=256, cpu_cache=1, eager=True, most_requests=8)
AUX, TOKENS, STEPS = (1, 2, 3), 16, 60
SAID = f"type: eagle3, aux_layers: {list(AUX)}, draft_vocab_size: 250, training_time_test: {{steps: 2, decay: 1.0}}"
SERVED = (
    *("llama-3", "qwen3", "qwen3-moe", "gpt-oss", "gemma-4", "mistral-small-3"),
    *("qwen3-vl", "qwen3-vl-moe", "llama-4"),
)
CHUNK = 128
FITTED: dict[str, dict[str, Any]] = {
    # vLLM turns the tuning off for models that are served with 32,768 tokens or fewer.
    "llama-4": {"attention_chunk_size": CHUNK, "attn_temperature_tuning": False},
    "qwen3.5": {"linear_key_head_dim": 64, "linear_value_head_dim": 64},
}
"""Values of some families with which vLLM's CPU build works."""


@pytest.fixture(scope="module", params=SERVED)
def verifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family's random verifier."""
    directory = tmp_path_factory.mktemp("families") / request.param
    write(request.param, directory)
    return directory


def write(name: str, directory: Path) -> None:
    """As the family's checkpoints are published: transformers reads Qwen3-VL's experts either way round, vLLM one."""
    family = FAMILIES[name]
    replace(family, values={**family.values, **FITTED.get(name, {})}).write(directory)
    if name == "qwen3-vl-moe":
        file = directory / "model.safetensors"
        weights = {
            key: weight.mT.contiguous() if ".mlp.experts." in key else weight for key, weight in load_file(file).items()
        }
        save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def model(verifier: Path) -> VerifierModel:
    return VerifierModel.load(verifier, "float32", aux_layers=AUX)


def test_a_familys_states_are_ours(
    verifier: Path, model: VerifierModel, inside: Callable[..., Any], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 250, (length,), generator=generator) for length in (40, 7, CHUNK + 60)]
    own = {one.number: one for one in extract(model, [Reading(one, one >= 0) for one in ids], batch_tokens=256)}
    written = replace(OPTIONS, extra=tuple(extraction_arguments((*AUX, LAYERS), tmp_path, cpu=True)))
    arguments = serve_arguments(verifier, "float32", written, trust_remote_code=False)
    found = inside(arguments, [one.tolist() for one in ids], 1)
    for number, file in enumerate(found["states"]):
        theirs = load_file(file)
        assert torch.equal(theirs["token_ids"], ids[number])
        *aux, last = theirs["hidden_states"].unbind(1)
        torch.testing.assert_close(torch.cat(aux, -1).float(), own[number].aux, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(last.float(), own[number].last, rtol=2e-3, atol=2e-3)
        assert found["tokens"][number] == [int(own[number].argmax[-1])]


@pytest.mark.parametrize("name", ["qwen3-next", "qwen3.5"])
def test_a_family_that_computes_in_bfloat16_alone_gives_our_states_as_far_as_its_experts_are_ours(
    name: str, inside: Callable[..., Any], tmp_path: Path
) -> None:
    """vLLM's linear layers on a CPU are bfloat16's; there a rounded router now and then chooses another expert."""
    verifier = tmp_path / name
    write(name, verifier)
    model = VerifierModel.load(verifier, "float32", aux_layers=AUX)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 250, (length,), generator=generator) for length in (40, 7, 90)]
    own = {one.number: one for one in extract(model, [Reading(one, one >= 0) for one in ids], batch_tokens=256)}
    written = replace(OPTIONS, extra=tuple(extraction_arguments((*AUX, LAYERS), tmp_path, cpu=True)))
    arguments = serve_arguments(verifier, "bfloat16", written, trust_remote_code=False)
    found = inside(arguments, [one.tolist() for one in ids], 1)
    for number, file in enumerate(found["states"]):
        streams = (*own[number].aux.split(HIDDEN, -1), own[number].last)
        for theirs, ours in zip(load_file(file)["hidden_states"].unbind(1), streams, strict=True):
            likeness = torch.nn.functional.cosine_similarity(theirs.float(), ours, dim=-1)
            assert likeness.median() > 0.998
            assert (likeness > 0.99).float().mean() > 0.8
        assert found["tokens"][number] == [int(own[number].argmax[-1])]


def test_a_draft_speaks_for_a_family(
    verifier: Path,
    model: VerifierModel,
    short_training: Callable[..., Any],
    inside: Callable[..., Any],
    tmp_path: Path,
) -> None:
    prompts = torch.randint(3, 250, (8, 9), generator=torch.Generator().manual_seed(1)).tolist()
    greedy = [list(one.tokens) for one in decode(model, None, prompts, Settings(0.0, 0, TOKENS, 8))]
    documents = list(zip(prompts, greedy, strict=True))
    objective, _, _, k = short_training(SAID, model, verifier, documents, steps=STEPS)
    name = VerifierName(str(verifier), VerifierFacts.from_directory(verifier).architectures)
    config = speculators_config(objective.network.config.to_config_json(), name, k, "float32")
    write_checkpoint(tmp_path / "draft", config, objective.network.state_dict())

    arguments = serve_arguments(tmp_path / "draft", "float32", OPTIONS, trust_remote_code=False)
    found = inside(arguments, prompts, TOKENS)
    assert found["tokens"] == greedy
    own = decode(model, proposal_of(load_draft(tmp_path / "draft")), prompts, Settings(0.0, k, TOKENS, 8))
    figures = round_figures(own, k)
    assert figures["acceptance_length"] > 1.2
    # vLLM also counts proposals that it accepted beyond the end of an answer.
    assert 1 + sum(found["accepted"]) / found["drafts"] == pytest.approx(figures["acceptance_length"], rel=0.06)
