"""The acceptance step: real drafting and verifying on the held-out prompts, kept suite by suite."""

import json
from types import SimpleNamespace

import pytest
import torch

from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.data.conversations import Conversation, Message, write_conversations
from speculators.errors import UsageError
from speculators.evaluation import acceptance as measuring
from speculators.recipe.shapes.eval import DynamicTree
from speculators.steps import acceptance

(STEP,) = acceptance.steps(SimpleNamespace(eval=SimpleNamespace(acceptance=True)))

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "attention_heads": 4,
    "key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 300,
    "draft_vocab_size": 300,
    "rope": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
}
"""Of a draft for the tests' verifier."""


@pytest.fixture
def values(make_recipe):
    asked = {
        "suites": ("holdout",),
        "temperature": (0.0, 1.0),
        "speculative_tokens": 3,
        "max_new_tokens": 12,
        "prompts": None,
        "tree": None,
        "least_confidence": 0.0,
        "concurrency": 2,
    }
    return make_recipe() | {"eval": {"acceptance": asked}}


@pytest.fixture
def prompts(tmp_path):
    talks = [
        Conversation(
            f"p{n}", (Message("user", "word " * (n % 3 + 1)),), "holdout" if n > 3 else "train", "chat", "test"
        )
        for n in range(8)
    ]
    artifact = tmp_path / "made-prompts"
    artifact.mkdir()
    write_conversations(artifact / "prompts.jsonl", talks)
    return artifact


@pytest.fixture
def checkpoint(tmp_path, verifier):
    shape = Eagle3Config(**SIZES, aux_layers=(0, 1, 2))
    torch.manual_seed(0)
    config = speculators_config(shape.to_config_json(), VerifierName(str(verifier / "model"), ("L",)), 3, "bfloat16")
    write_checkpoint(tmp_path / "draft", config, Eagle3Network(shape).state_dict())
    return tmp_path / "draft"


@pytest.fixture
def block_draft(tmp_path, verifier):
    """A DFlash draft of blocks of 4 that says it drafts 5 tokens in a round."""
    shape = DFlashConfig(**SIZES, aux_layers=(1, 2), layers=1, block_size=4, mask_token_id=299)
    config = speculators_config(shape.to_config_json(), VerifierName(str(verifier / "model"), ("L",)), 5, "float32")
    write_checkpoint(tmp_path / "draft", config, DFlashNetwork(shape).state_dict())
    return tmp_path / "draft"


def test_every_suite_is_measured_at_every_temperature(run_step, values, verifier, prompts, checkpoint):
    output, told = run_step(STEP, values, verifier=verifier, prompts=prompts, checkpoint=checkpoint)
    assert [file.name for file in output.iterdir()] == ["acceptance.json"]
    found = json.loads((output / "acceptance.json").read_text(encoding="utf-8"))
    assert list(found["suites"]) == ["holdout"]
    assert list(found["suites"]["holdout"]) == ["T0.0", "T1.0"]
    greedy, sampled = found["suites"]["holdout"].values()
    assert (greedy["prompts"], greedy["speculative_tokens"], greedy["temperature"]) == (4, 3, 0.0)
    assert greedy["acceptance_length"] == greedy["tokens"] / greedy["rounds"]
    assert len(greedy["positions"]) == 3
    assert greedy["equal_prompts"] == 4
    assert (greedy["lossless"], greedy["differences"]) == (True, [])
    assert sampled["lossless"] is None
    assert [sample["id"] for sample in found["samples"]] == ["p4", "p5", "p6", "p7"]
    for sample in found["samples"]:
        assert sample["prompt"].startswith("word")
        assert 0 < len(sample["pieces"]) <= 12
    assert any("acceptance length" in message for message in told.messages)
    assert told.progressed[-1] == (4, 4, "prompts")


def test_what_was_measured_before_a_kill_is_not_measured_again(
    run_step, values, verifier, prompts, checkpoint, monkeypatch
):
    real, temperatures = measuring.measure, []

    def dies_at_one(verifier, proposal, prompts, settings, tell, images=None):
        temperatures.append(settings.temperature)
        if settings.temperature == 1.0 and len(temperatures) == 2:
            raise KeyboardInterrupt
        return real(verifier, proposal, prompts, settings, tell)

    monkeypatch.setattr(measuring, "measure", dies_at_one)
    inputs = {"verifier": verifier, "prompts": prompts, "checkpoint": checkpoint}
    with pytest.raises(KeyboardInterrupt):
        run_step(STEP, values, **inputs)
    output, _ = run_step(STEP, values, **inputs)
    assert temperatures == [0.0, 1.0, 1.0]
    assert list(json.loads((output / "acceptance.json").read_text())["suites"]["holdout"]) == ["T0.0", "T1.0"]


def test_no_step_where_the_recipe_asks_for_none():
    assert acceptance.steps(SimpleNamespace(eval=SimpleNamespace(acceptance=None))) == ()


def test_a_suite_without_any_prompt_that_fits_names_the_option(run_step, values, verifier, prompts, checkpoint):
    values["eval"]["acceptance"]["max_new_tokens"] = 100_000
    said = (
        r"`holdout` fits: the verifier reads at most \d+ tokens, of which `eval.acceptance.max_new_tokens` takes 100000"
    )
    with pytest.raises(UsageError, match=said):
        run_step(STEP, values, verifier=verifier, prompts=prompts, checkpoint=checkpoint)


def test_a_draft_that_foretells_nothing_is_not_asked_to_end_early(run_step, values, verifier, prompts, checkpoint):
    values["eval"]["acceptance"]["least_confidence"] = 0.5
    said = "type eagle3 foretells no acceptance, .* remove `eval.acceptance.least_confidence`"
    with pytest.raises(UsageError, match=said):
        run_step(STEP, values, verifier=verifier, prompts=prompts, checkpoint=checkpoint)


def test_a_draft_without_trees_is_not_asked_for_them(run_step, values, verifier, prompts, block_draft):
    values["eval"]["acceptance"]["tree"] = DynamicTree(2, 2, 4)
    with pytest.raises(UsageError, match="asks for trees, and this draft of type dflash makes none"):
        run_step(STEP, values, verifier=verifier, prompts=prompts, checkpoint=block_draft)


def test_more_than_a_block_is_not_asked_for(run_step, values, verifier, prompts, block_draft):
    with pytest.raises(UsageError, match=r"asks for 5 tokens in a round, and the draft proposes at most 3"):
        run_step(STEP, values, verifier=verifier, prompts=prompts, checkpoint=block_draft)
