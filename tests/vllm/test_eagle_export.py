"""An exported EAGLE-1 draft in an unmodified vLLM: not a token changes, and it accepts what our own loop accepts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from speculators.algorithms.base import Batch
from speculators.algorithms.building import build_objective
from speculators.checkpoints.exporters.eagle import export
from speculators.checkpoints.layout import completed
from speculators.checkpoints.load import proposal_of
from speculators.data.vocabulary import Coverage, DraftVocabulary
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.server import ServerOptions, serve_arguments
from speculators.evaluation.acceptance import Settings, decode, round_figures
from speculators.recipe.load import load_recipe
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

OPTIONS = ServerOptions(max_length=512, cpu_cache=1, eager=True, most_requests=16)
TOKENS, STEPS, PROPOSED = 40, 150, 4


def trained(model: VerifierModel, verifier: Path, documents: list[tuple[list[int], list[int]]]):
    """A draft after a short training on the verifier's greedy answers."""
    options = load_recipe("tiny", sets=["algorithm={type: hass, feature_noise: 0.0}"]).recipe.algorithm
    facts = VerifierFacts.from_directory(verifier)
    whole = DraftVocabulary(facts.vocab_size, facts.vocab_size, None, None, Coverage(1.0, 1.0))
    objective = build_objective(
        options, facts, VerifierWeights.read(verifier), whole, aux_layers=(), precision="float32", seed=0
    )
    ids = [torch.tensor(prompt + answer) for prompt, answer in documents]
    passes = [model.forward(one[None], None, torch.tensor([0]), "all") for one in ids]
    batch = Batch(
        lengths=tuple(map(len, ids)),
        input_ids=torch.cat(ids),
        loss_mask=torch.cat(
            [torch.arange(len(one)) >= len(prompt) for one, (prompt, _) in zip(ids, documents, strict=True)]
        ),
        aux=torch.empty(sum(map(len, ids)), 0),
        last=torch.cat([one.last[0] for one in passes]),
        argmax=torch.cat([one.logits[0].argmax(-1) for one in passes]),
    )
    optimizer = torch.optim.Adam([one for one in objective.network.parameters() if one.requires_grad], 5e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        objective.evaluate(batch, lambda number: torch.Generator()).loss.backward()
        optimizer.step()
    return objective


def test_vllm_drafts_with_an_exported_checkpoint_as_we_do(
    verifier: Path, inside: Callable[..., Any], tmp_path: Path
) -> None:
    depth = VerifierFacts.from_directory(verifier).layers
    model = VerifierModel.load(verifier, "float32", aux_layers=(depth,))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 256, (5 + n % 7,), generator=generator).tolist() for n in range(16)]
    dense = [list(one.tokens) for one in decode(model, None, prompts, Settings(0.0, 0, TOKENS, 16))]
    objective = trained(model, verifier, list(zip(prompts, dense, strict=True)))
    network = objective.network.requires_grad_(False).eval()

    config, tensors = {**completed(objective.draft_config()), "dtype": "float32"}, network.state_dict()
    exported = export(config, list(tensors))
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "config.json").write_text(json.dumps(exported.config))
    save_file(
        {theirs: tensors[ours].contiguous() for theirs, ours in exported.tensors.items()}, draft / "model.safetensors"
    )

    speculative = {"method": "eagle", "model": str(draft), "num_speculative_tokens": PROPOSED}
    options = replace(OPTIONS, extra=("--speculative-config", json.dumps(speculative)))
    found = inside(serve_arguments(verifier, "float32", options, trust_remote_code=False), prompts, TOKENS)
    assert found["tokens"] == dense
    assert len(found["accepted"]) == PROPOSED

    own = decode(model, proposal_of(network), prompts, Settings(0.0, PROPOSED, TOKENS, 16))
    figures = round_figures(own, PROPOSED)
    assert figures["acceptance_length"] > 1.5
    # vLLM also counts proposals that it accepted beyond the end of an answer.
    assert 1 + sum(found["accepted"]) / found["drafts"] == pytest.approx(figures["acceptance_length"], rel=0.03)
