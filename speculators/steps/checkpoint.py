"""The trained draft as a checkpoint in the speculators format, checked against the rules of vLLM's loader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speculators.pipeline.step import Context, Estimate, Scope, Step, View

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def run(context: Context) -> None:
    """Write config.json, the weights and a model card."""
    from safetensors.torch import load_file

    from speculators.checkpoints.check import check_checkpoint
    from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
    from speculators.errors import StepError
    from speculators.verifiers.facts import VerifierFacts
    from speculators.verifiers.source import verifier_directory

    trained, directory = context.inputs["train"], verifier_directory(context.inputs["verifier"])
    verifier = VerifierName(
        served_name(context.inputs["verifier"], directory), VerifierFacts.from_directory(directory).architectures
    )
    draft = json.loads((trained / "draft.json").read_text(encoding="utf-8"))
    config = speculators_config(draft, verifier, _speculative_tokens(context.config), context.config.convert.dtype)
    write_checkpoint(context.output, config, load_file(trained / "model.safetensors"))
    result = json.loads((trained / "result.json").read_text(encoding="utf-8"))
    (context.output / "README.md").write_text(card(context.config.name, config, result), encoding="utf-8")
    problems = check_checkpoint(context.output)
    if problems:
        raise StepError("\n".join(["the checkpoint would not be served as it was trained:", *problems]))


def _speculative_tokens(config: View) -> int:
    """As many as acceptance is measured with; where it is not measured, as many as training unrolled."""
    acceptance = getattr(config.eval, "acceptance", None)
    return int(acceptance.speculative_tokens if acceptance else config.algorithm.training_time_test.steps)


def served_name(artifact: Path, directory: Path) -> str:
    """How a checkpoint names its verifier: a hub model by its id, so that it can be shared, any other by its place."""
    record = json.loads((artifact / "verifier.json").read_text(encoding="utf-8"))
    return str(record["location"].get("hub") or directory.resolve())


def card(name: str, config: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The model card, README.md."""
    from speculators.reporting.card import model_card

    return model_card(name=name, description=None, config=config, training=training, recipe="")


def estimate(scope: Scope) -> Estimate:
    """From the verifier's sizes: embeddings, a head, and one decoder layer."""
    facts, size = scope.facts, _BYTES[scope.config.convert.dtype]
    if "vocab_size" not in facts or "hidden_size" not in facts:
        return Estimate(seconds=5.0)
    hidden, inner = facts["hidden_size"], facts.get("intermediate_size", 0)
    draft = facts["vocab_size"] * 2 * hidden + (3 * hidden + 8 * hidden + 3 * inner) * hidden
    return Estimate(disk=int(draft * size), memory=int(draft * 8), seconds=5.0)


STEP = Step(
    "checkpoint",
    version=1,
    reads=("convert", "algorithm", "eval.acceptance.speculative_tokens", "name"),
    inputs=("verifier", "train"),
    run=run,
    estimate=estimate,
)
