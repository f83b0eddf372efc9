"""What vLLM's loader (0.32) asks of a `config.json`, each rule a sentence when broken; nothing heavy is imported.

The same rules hold for a checkpoint that is there and, before anything is trained, for the one that a recipe will make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from speculators.algorithms import names
from speculators.checkpoints.layout import layout_of


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """What vLLM would refuse in a `config.json`, or read otherwise than it was meant.

    Of an algorithm that vLLM does not serve, only what is wrong in itself.
    """
    problems = []
    kind = config.get("speculators_model_type")
    if kind not in names():
        problems.append(f"speculators_model_type is {kind!r}; vLLM serves {', '.join(served_types())}")
    speculation = config.get("speculators_config")
    if not isinstance(speculation, Mapping):
        problems.append("speculators_config is missing")
    else:
        problems += _speculation_problems(speculation, kind)
    return [*problems, *draft_problems(config)]


def draft_problems(config: Mapping[str, Any]) -> list[str]:
    """The rules about the draft's own part of a `config.json`."""
    layer, kind = config.get("transformer_layer_config"), config.get("speculators_model_type")
    layout = layout_of(config) if kind in names() else None
    if not isinstance(layer, Mapping):
        # vLLM wants one of every type it serves.
        is_wanted = layout is None or layout.IS_SERVED
        return ["transformer_layer_config must be an object: the draft's decoder config"] if is_wanted else []
    if layout is None:
        return []
    problems = layout.problems(config, layer)
    draft, whole = config.get("draft_vocab_size"), layer.get("vocab_size")
    if isinstance(draft, int) and isinstance(whole, int) and draft > whole:
        problems.append(f"draft_vocab_size is {draft}, more than the verifier's {whole}")
    return problems


def unserved_form(config: Mapping[str, Any]) -> str | None:
    """What a draft is, in words, if vLLM loads none of its type or of its form; None where it does."""
    layout, kind = layout_of(config), str(config["speculators_model_type"])
    if not layout.IS_SERVED:
        return kind
    form = _refused_form(config)
    return None if form is None else f"{kind} {form}"


def unhad_form(config: Mapping[str, Any]) -> str | None:
    """What a draft is, in words, if vLLM has it neither in our format nor in a form of its own; None where it has."""
    layout, kind = layout_of(config), str(config["speculators_model_type"])
    if not layout.IS_SERVED and vllm_method(config) is None:
        return kind
    form = _refused_form(config)
    return None if form is None else f"{kind} {form}"


def vllm_method(config: Mapping[str, Any]) -> str | None:
    """The method by which vLLM drafts with a draft that it loads in a form of its own, and not in ours; else None."""
    found: str | None = getattr(layout_of(config), "VLLM_METHOD", None)
    return found


def served_types() -> list[str]:
    """The algorithms whose checkpoints vLLM loads."""
    return [name for name in names() if layout_of({"speculators_model_type": name}).IS_SERVED]


def had_types() -> list[str]:
    """The algorithms that vLLM drafts with, in our format or in a form of its own."""
    methods = {name: vllm_method({"speculators_model_type": name}) for name in names()}
    return [name for name in names() if name in served_types() or methods[name] is not None]


def parallel_problems(layer: Mapping[str, Any], tensor_parallel: int) -> list[str]:
    """Why a decoder with this config cannot be split over so many GPUs; verifier and draft are split alike.

    What a draft without a decoder layer has is not split.
    """
    problems = []
    for key, what in (("num_attention_heads", "attention heads"), ("intermediate_size", "rows of the MLP")):
        if layer.get(key, 0) % tensor_parallel:
            problems.append(f"{layer[key]} {what} cannot be shared by {tensor_parallel} GPUs")
    groups = layer.get("num_key_value_heads", 0)
    if groups and groups % tensor_parallel and tensor_parallel % groups:
        problems.append(f"{groups} key and value heads can be neither shared by nor copied to {tensor_parallel} GPUs")
    return problems


def _refused_form(config: Mapping[str, Any]) -> str | None:
    """Of an algorithm that vLLM has: what of this draft it does not take, in words."""
    refuses: Callable[[Mapping[str, Any]], str | None] = getattr(layout_of(config), "refuses", lambda config: None)
    return refuses(config)


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
