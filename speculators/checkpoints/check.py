"""Would vLLM serve a checkpoint as it was trained? Its config by the loader's rules, its tensors by their shapes."""

from __future__ import annotations

from pathlib import Path

from speculators.algorithms import names
from speculators.checkpoints.layout import layout_of, tensor_problems
from speculators.checkpoints.load import read_checkpoint
from speculators.checkpoints.rules import config_problems
from speculators.errors import UsageError


def check_checkpoint(directory: Path) -> list[str]:
    """Everything wrong with a checkpoint directory, most important first; empty when there is nothing.

    Raises UsageError only for a directory that cannot be read at all.
    """
    checkpoint = read_checkpoint(directory)
    problems = config_problems(checkpoint.config)
    if checkpoint.config.get("speculators_model_type") in names():
        layout = layout_of(checkpoint.config)
        try:
            whole = layout.completed(checkpoint.config)
            layout.tensors(whole)
        except (UsageError, KeyError) as error:
            return problems or [f"transformer_layer_config is incomplete: {error}"]
        problems += tensor_problems(checkpoint.tensors, whole)
    return problems
