"""A random head for multi-token prediction, put into a tiny verifier's checkpoint as its family would have it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from speculators.algorithms.mtp.config import MtpConfig
from speculators.algorithms.mtp.network import MtpNetwork
from speculators.algorithms.mtp.styles import HEAD, STYLES
from speculators.verifiers.facts import VerifierFacts


def add_head(directory: Path, **said: Any) -> None:
    """Add it; `said` is what the verifier's config.json says besides."""
    file = directory / "config.json"
    config = {**json.loads(file.read_text()), "num_nextn_predict_layers": 1, **said}
    file.write_text(json.dumps(config))
    facts = VerifierFacts.from_directory(directory)
    text = config.get("text_config", config)
    promised = MtpConfig.for_verifier(facts, None, draft_vocab_size=facts.vocab_size, aux_layers=())
    is_qwen = promised.style == "qwen"
    shape = replace(
        promised,
        biases=bool(text.get("attention_bias")),
        norms_heads=is_qwen or bool(text.get("use_qk_norm")),
    )
    prefix = {"mimo": "model.mtp_layers.0.", "qwen": "mtp."}.get(shape.style, f"model.layers.{facts.layers}.")
    names = STYLES[shape.style].names
    tensors = load_file(directory / "model.safetensors")
    for name, value in MtpNetwork(shape).state_dict().items():
        own = name.removeprefix(HEAD)
        inner = "layers.0." if is_qwen and own not in names else ""
        level = 1.0 if own.endswith("norm.weight") and not is_qwen else 0.0
        tensors[prefix + inner + names.get(own, own)] = level + 0.1 * torch.randn(value.shape)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
