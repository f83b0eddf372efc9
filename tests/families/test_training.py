"""Every family from a checkpoint to a draft that speaks for it: tokens, states, training, checkpoint, proposals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speculators.algorithms.eagle3.proposal import Eagle3Proposal
from speculators.checkpoints.load import load_draft
from speculators.data.tokens import TokenDataset
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Request
from speculators.engines.transformers import VerifierModel
from speculators.pipeline.step import Context
from speculators.recipe.load import load_recipe
from speculators.steps import checkpoint as checkpoint_step
from speculators.steps import hidden_states, tokens, train, vocabulary
from speculators.verifiers.tokenizer import ChatTokenizer

SETS = [
    "algorithm.aux_layers=[1, 2, 3]",
    "algorithm.draft_vocab_size=64",
    "algorithm.training_time_test.steps=2",
    "data.hidden_states.dtype=float32",
    "train.tokens_per_step=128",
    "train.epochs=2",
    "train.precision=float32",
]
READ_ONLY = ("nemotron",)
"""Nemotron's final norm is no RMSNorm, which `test_reading.py` sees refused."""
ASKED = ("What is a draft?", "Count to three.", "Why?", "Tell me more about it.", "And then?", "Who said so?")


@pytest.fixture(scope="session")
def recipe() -> SimpleNamespace:
    loaded = load_recipe("tiny", sets=SETS).recipe
    return SimpleNamespace(**{name: getattr(loaded, name) for name in type(loaded).__struct_fields__}, whole=loaded)


@pytest.fixture
def run(tmp_path: Path, recipe: SimpleNamespace) -> Callable[..., Path]:
    """Runs a step and gives its artifact."""

    def run(step: Any, **inputs: Path) -> Path:
        output = tmp_path / step.name
        output.mkdir()
        report = SimpleNamespace(progress=print, metric=print, message=print)
        step.run(Context(config=recipe, inputs=inputs, output=output, report=report))
        return output

    return run


@pytest.fixture
def artifact(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint as a verifier artifact."""
    artifact = tmp_path / "verifier"
    artifact.mkdir()
    record = {"source": "tiny", "digest": "tree:0", "location": {"directory": str(checkpoint)}}
    (artifact / "verifier.json").write_text(json.dumps(record))
    return artifact


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Conversations as the answers step leaves them."""
    folder = tmp_path / "answers"
    folder.mkdir()
    with (folder / "answers-00000.jsonl").open("w") as lines:
        for number, text in enumerate(ASKED):
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"Because {text[::-1]}"}]
            line = {"id": str(number), "messages": messages, "split": "holdout" if number == 3 else "train"}
            lines.write(json.dumps(line) + "\n")
    return folder


def test_a_draft_is_trained_saved_and_speaks_for_its_verifier(
    family: Any, checkpoint: Path, artifact: Path, answers: Path, recipe: SimpleNamespace, run: Callable[..., Path]
) -> None:
    words = run(tokens.steps(recipe.whole)[0], verifier=artifact, answers=answers)
    assert len(TokenDataset.open(words)) == len(ASKED)
    known = run(vocabulary.STEP, tokens=words)
    states = run(hidden_states.steps(recipe.whole)[0], verifier=artifact, tokens=words)
    inputs = {"verifier": artifact, "tokens": words, "vocabulary": known, "hidden_states": states}
    trained = run(train.steps(recipe.whole)[0], **inputs)
    losses = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert losses
    saved = run(checkpoint_step.steps(recipe.whole)[0], verifier=artifact, train=trained)

    network = load_draft(saved)
    verifier = VerifierModel.load(checkpoint, "float32", aux_layers=network.config.aux_layers)
    prompt = ChatTokenizer.load(checkpoint).render([{"role": "user", "content": "Why?"}], add_generation_prompt=True)
    texts = []
    for draft in (None, Eagle3Proposal(network.float())):
        decoder = Decoder(verifier, draft, slots=1, capacity=80, speculative_tokens=0 if draft is None else 3)
        decoder.admit(Request(prompt, 8))
        text: list[int] = []
        while not decoder.is_idle:
            text += [token for commit in decoder.step() for token in commit.tokens]
        texts.append(text)
    assert len(texts[0]) == 8
    assert texts[0] == texts[1], "with a draft the verifier says the same"
    assert torch.isfinite(network.lm_head.weight).all()
