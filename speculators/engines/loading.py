"""A verifier's checkpoint as a transformers model: the class that fits its config, with every weight it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from speculators.errors import MachineError, UsageError

REPLACED_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose attention is ours to compute; others have states of their own, or see text in chunks."""


def load_model(
    directory: Path | str,
    dtype: torch.dtype | None,
    attention: str,
    *,
    trust_remote_code: bool,
    reads_images: bool = False,
) -> Any:
    """The language model in `directory`, with its images' part where that is asked for or its class has no other form.

    Raises MachineError when this transformers has no class for it, UsageError when the checkpoint lacks weights: they
    would be filled with random numbers.
    """
    try:
        config = AutoConfig.from_pretrained(str(directory), trust_remote_code=trust_remote_code, local_files_only=True)
        kind = AutoModelForImageTextToText if reads_images else _class_for(config, trust_remote_code)
        found, loading = kind.from_pretrained(
            str(directory),
            dtype=dtype or "auto",
            trust_remote_code=trust_remote_code,
            attn_implementation=attention,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, ImportError) as error:
        raise MachineError(f"the transformers engine cannot open {directory}: {error}") from error
    if lacking := sorted(loading["missing_keys"]):
        raise UsageError(
            f"{directory} lacks {len(lacking)} weights of {type(found).__name__}, such as {lacking[0]}; is it whole?"
        )
    return found


def decoder_of(model: Any) -> Any:
    """The module with the layers and the final norm."""
    decoder = model.get_decoder()
    while not hasattr(decoder, "layers") and hasattr(decoder, "model"):
        decoder = decoder.model
    return decoder


def takes_our_attention(model: Any) -> bool:
    """Whether the model says that its attention can be replaced, in every layer."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    return bool(model._supports_attention_backend) and kinds <= REPLACED_LAYERS


def own_attention(model: Any) -> str:
    """The name of the attention that the model itself brings."""
    return "sdpa" if model._supports_sdpa else "eager"


def _class_for(config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    causal = type(config) in AutoModelForCausalLM._model_mapping
    remote = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not causal and not remote and type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM
