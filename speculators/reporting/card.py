"""The model card of a checkpoint: what the draft is, how to serve it, how it did in training, how to make it again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from speculators import __version__
from speculators.checkpoints.rules import served_types, unserved_form
from speculators.reporting.definitions import number

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(
    *, name: str, description: str | None, config: Mapping[str, Any], training: Mapping[str, Any], recipe: str
) -> str:
    """The text of `README.md` for a checkpoint in the speculators format.

    `config` is the checkpoint's `config.json`; `training` the train step's `result.json`, empty when the draft was not
    trained here; `recipe` the text of the resolved recipe, empty when the checkpoint's folder does not hold it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("speculators", "reporting"),
        autoescape=False,  # noqa: S701 - markdown, not HTML; free text is flattened to one line below
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    speculation = config.get("speculators_config") or {}
    method: Mapping[str, Any] = next(iter(speculation.get("proposal_methods") or []), {})
    layer = config.get("transformer_layer_config") or {}
    verifier = str((speculation.get("verifier") or {}).get("name_or_path") or "unknown")
    algorithm = str(config.get("speculators_model_type") or speculation.get("algorithm") or "unknown")
    reduced = config.get("draft_vocab_size")
    vocabulary = layer.get("vocab_size")
    recipe = recipe.rstrip()
    longest = max((len(run) for run in re.findall(r"`{3,}", recipe)), default=2)
    return environment.get_template("card.md.j2").render(
        front_matter=_front_matter(verifier, algorithm),
        name=_one_line(name),
        description=_one_line(description or ""),
        verifier=_one_line(verifier).replace("`", "'"),
        algorithm=algorithm,
        is_served=algorithm in served_types() and unserved_form(config) is None,
        layers=layer.get("num_hidden_layers", "–"),
        draft_vocabulary=number(reduced) if reduced and reduced != vocabulary else None,
        vocabulary=number(vocabulary),
        aux_layers=config.get("eagle_aux_hidden_state_layer_ids") or config.get("aux_hidden_state_layer_ids") or (),
        speculative_tokens=method.get("speculative_tokens", "–"),
        dtype=config.get("dtype") or config.get("torch_dtype") or "–",
        figures=_figures(training),
        version=__version__,
        recipe=recipe,
        fence="`" * (longest + 1),
    )


def _front_matter(verifier: str, algorithm: str) -> str:
    import yaml

    facts: dict[str, Any] = {
        "library_name": "speculators",
        "pipeline_tag": "text-generation",
        "tags": ["speculators", "speculative-decoding", "draft-model", algorithm],
    }
    if HUB_ID.fullmatch(verifier):
        facts |= {"base_model": verifier, "base_model_relation": "adapter"}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n"


def _figures(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    best = training.get("best") or {}
    figures = [
        ("Walk estimate of the acceptance length, held-out documents", walk_estimate(best), 3),
        ("Held-out loss", best.get("loss"), 3),
        ("Tokens trained on", training.get("tokens"), 0),
    ]
    rates = best.get("positions") or ()
    places = [
        (f"Walk estimate of the acceptance at position {index}", rate, 3) for index, rate in enumerate(rates, start=1)
    ]
    return [(name, number(value, digits)) for name, value, digits in [figures[0], *places, *figures[1:]] if value]


def walk_estimate(best: Mapping[str, Any]) -> float | None:
    """The walk estimate in a train step's `best`; None where training had nothing held out."""
    value = best.get("walk_estimate")
    return None if value is None else float(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
