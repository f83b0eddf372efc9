"""Would vLLM serve this checkpoint as it was trained? The rules of its loader (0.32), each a sentence when broken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speculators.checkpoints.layout import ABSENT, aux_layers, completed, eagle3_tensors, tensor_problems
from speculators.checkpoints.load import read_checkpoint
from speculators.errors import UsageError

SERVED = ("eagle3", "peagle", "dflash", "dflash2", "dspark")


def check_checkpoint(directory: Path) -> list[str]:
    """Everything wrong with a checkpoint directory, most important first; empty when there is nothing.

    Raises UsageError only for a directory that cannot be read at all.
    """
    checkpoint = read_checkpoint(directory)
    problems = config_problems(checkpoint.config)
    if checkpoint.config.get("speculators_model_type") == "eagle3":
        try:
            whole = completed(checkpoint.config)
            eagle3_tensors(whole)
        except (UsageError, KeyError) as error:
            return problems or [f"transformer_layer_config is incomplete: {error}"]
        problems += tensor_problems(checkpoint.tensors, whole)
    return problems


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """What vLLM would refuse in a `config.json`, or read otherwise than it was meant."""
    problems = []
    kind = config.get("speculators_model_type")
    if kind not in SERVED:
        problems.append(f"speculators_model_type is {kind!r}; vLLM serves {', '.join(SERVED)}")
    speculation = config.get("speculators_config")
    if not isinstance(speculation, Mapping):
        problems.append("speculators_config is missing")
    else:
        problems += _speculation_problems(speculation, kind)
    layer = config.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        return [*problems, "transformer_layer_config must be an object: the draft's decoder config"]
    if kind == "eagle3":
        problems += _eagle3_problems(config, layer)
    return problems


def _speculation_problems(speculation: Mapping[str, Any], kind: object) -> list[str]:
    problems = []
    methods = speculation.get("proposal_methods")
    first = methods[0] if isinstance(methods, list) and methods else None
    tokens = first.get("speculative_tokens") if isinstance(first, Mapping) else None
    if type(tokens) is not int or tokens < 1:
        problems.append("speculators_config.proposal_methods[0].speculative_tokens must be a whole number from 1")
    name = (speculation.get("verifier") or {}).get("name_or_path")
    if not isinstance(name, str) or not name:
        problems.append("speculators_config.verifier.name_or_path is missing: vLLM serves the verifier named there")
    elif name.startswith((".", "~")):
        problems.append(f"speculators_config.verifier.name_or_path is {name!r}; a directory must be absolute")
    default = speculation.get("default_proposal_method")
    known = [one.get("proposal_type") for one in methods or [] if isinstance(one, Mapping)]
    if default not in known:
        problems.append(f"speculators_config.default_proposal_method is {default!r}, which no proposal method is")
    if speculation.get("algorithm") != kind:
        problems.append(f"speculators_config.algorithm is {speculation.get('algorithm')!r}, the type is {kind!r}")
    return problems


def _eagle3_problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    problems = []
    if layer.get("model_type") not in ("llama", "qwen3"):
        problems.append(f"transformer_layer_config.model_type is {layer.get('model_type')!r}; vLLM has llama and qwen3")
    problems += [
        f"{key} is not written: readers disagree about its meaning, vLLM takes {str(value).lower()}"
        for key, value in ABSENT.items()
        if key not in config and isinstance(value, bool) and key.startswith(("norm", "fc"))
    ]
    streams = aux_layers(config)
    sized = layer.get("num_aux_hidden_states")
    if layer.get("model_type") == "llama" and (sized or 3) != streams:
        problems.append(
            f"transformer_layer_config.num_aux_hidden_states is {sized}, but the draft reads {streams} layers: "
            "vLLM sizes fc by that key, and by 3 without it"
        )
    if config.get("norm_before_fc") and config.get("fc_norm"):
        problems.append("norm_before_fc and fc_norm cannot both be true")
    draft, whole = config.get("draft_vocab_size"), layer.get("vocab_size")
    if isinstance(draft, int) and isinstance(whole, int) and draft > whole:
        problems.append(f"draft_vocab_size is {draft}, more than the verifier's {whole}")
    return problems
