"""Heads of families whose own classes carry them: read out of the checkpoint, trained, drafted with, stitched back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_heads import add_head
from safetensors.torch import load_file

from speculators.checkpoints.load import load_draft, proposal_of
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.checkpoints.stitch import stitch
from speculators.engines.transformers import VerifierModel
from speculators.evaluation.acceptance import Settings, decode, round_figures
from speculators.verifiers.facts import VerifierFacts

ONLY = ("qwen3-next", "qwen3.5-moe", "deepseek-v3", "glm-4-moe")
K, TOKENS, STEPS = 3, 14, 50


@pytest.fixture
def with_head(checkpoint: Path, tmp_path: Path) -> Path:
    """The family's verifier with a random head."""
    directory = tmp_path / "with-head"
    shutil.copytree(checkpoint, directory)
    torch.manual_seed(2)
    add_head(directory)
    return directory


def test_a_family_s_own_head_learns_drafts_and_goes_back(
    with_head: Path, short_training: Callable[..., Any], tmp_path: Path
) -> None:
    facts = VerifierFacts.from_directory(with_head)
    model = VerifierModel.load(with_head, "float32", aux_layers=(facts.layers,))
    prompts = torch.randint(3, 250, (6, 9), generator=torch.Generator().manual_seed(1)).tolist()
    greedy = [list(one.tokens) for one in decode(model, None, prompts, Settings(0.0, 0, TOKENS, 6))]
    documents = list(zip(prompts, greedy, strict=True))
    objective, _, losses, _ = short_training(f"type: mtp, steps: {K}", model, with_head, documents, steps=STEPS)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])

    name = VerifierName(str(with_head), facts.architectures)
    config = speculators_config(objective.network.config.to_config_json(), name, K, "float32")
    write_checkpoint(tmp_path / "ours", config, objective.network.state_dict())
    drafted = decode(model, proposal_of(load_draft(tmp_path / "ours")), prompts, Settings(0.0, K, TOKENS, 6))
    assert [list(one.tokens) for one in drafted] == greedy
    assert round_figures(drafted, K)["acceptance_length"] > 1.3

    done = stitch(tmp_path / "ours", with_head, tmp_path / "stitched")
    before, after = (load_file(place / "model.safetensors") for place in (with_head, tmp_path / "stitched"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert before.keys() == after.keys()
    kept = {name for name in done.tensors if name.endswith("e_score_correction_bias")}
    assert kept.isdisjoint(changed)
    assert changed <= set(done.tensors) - kept
    assert len(changed) > 10
