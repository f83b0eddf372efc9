"""A foreign draft in this project's format: told, checked against the verifier, and written like a trained one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from speculators.pipeline.step import Context, Estimate, Scope, Step, View

if TYPE_CHECKING:
    from speculators.recipe.shapes.recipe import Recipe
    from speculators.verifiers.lender import Lender


def run(context: Context) -> None:
    """Write `draft.json`, `model.safetensors` and `conversion.json`: what was found, why, and what was done."""
    from safetensors.torch import save_file

    from speculators.checkpoints.convert import convert
    from speculators.checkpoints.importers.speculators import proposal_length
    from speculators.checkpoints.source import draft_digest, open_draft, parse_draft_source

    asked = context.config.convert
    source = parse_draft_source(asked.source)
    digest = draft_digest(source)
    verifier = _lender(context)
    foreign = open_draft(source, digest, asked.format)
    converted = convert(
        foreign,
        verifier,
        format=asked.format,
        aux_layers=None if asked.aux_layers == "auto" else asked.aux_layers,
        dtype=asked.dtype,
        origin=digest.removeprefix("hub:") if source.hub else source.text,
    )
    for line in converted.summary:
        context.report.message(line)
    record = {
        "source": asked.source,
        "digest": digest,
        "format": converted.found.candidate.importer.NAME,
        "title": converted.found.candidate.importer.TITLE,
        "because": list(converted.found.candidate.reasons),
        "summary": converted.summary,
        "dtype": converted.dtype,
        "speculative_tokens": proposal_length(foreign.config) or converted.found.translation.speculative_tokens,
        "verifier": {"name_or_path": verifier.name, "architectures": list(verifier.facts.architectures)},
    }
    tensors = {name: value.contiguous().clone() for name, value in converted.tensors.items()}
    save_file(tensors, context.output / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("draft.json", dict(converted.draft)), ("conversion.json", record)):
        (context.output / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _lender(context: Context) -> Lender:
    from speculators.checkpoints.trained import served_name
    from speculators.verifiers.lender import Lender
    from speculators.verifiers.source import external_digest, verifier_directory

    if "verifier" in context.inputs:
        directory = verifier_directory(context.inputs["verifier"])
        return Lender.of_directory(directory, served_name(context.inputs["verifier"], directory))
    model = context.config.verifier.model
    return Lender.of_hub(model, str(external_digest(context.config.verifier)).rpartition("@")[2])


def external(config: View) -> Mapping[str, str]:
    """The digest of the draft, and the commit of a verifier on the hub."""
    from speculators.checkpoints.source import draft_digest, parse_draft_source

    return {"source": draft_digest(parse_draft_source(config.convert.source))}


def external_hub(config: View) -> Mapping[str, str]:
    """The same, with the commit of the verifier, of which only what is needed is fetched."""
    from speculators.verifiers.source import external_digest

    return {**external(config), "verifier": str(external_digest(config.verifier))}


def estimate(scope: Scope) -> Estimate:
    """The weights of the draft, once more; an embedding may come with them."""
    from speculators.checkpoints.foreign import weight_files
    from speculators.checkpoints.source import parse_draft_source

    source = parse_draft_source(scope.config.convert.source)
    if source.path is None:
        return Estimate(seconds=60.0)
    files = [source.path] if source.path.is_file() else weight_files(source.path)
    size = sum(file.stat().st_size for file in files)
    facts = scope.facts
    lent = int(2 * facts.get("vocab_size", 0) * facts.get("hidden_size", 0))
    return Estimate(disk=size + lent, memory=2 * (size + lent), seconds=5.0)


def lends_from_hub(recipe: Recipe) -> bool:
    """Whether the verifier is a model of the hub, of which a conversion needs only a few files."""
    from speculators.verifiers.source import parse_source

    return parse_source(recipe.verifier).kind == "hub"


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """One step in a recipe that converts; the whole verifier is its input only where no hub can be asked for parts."""
    if not recipe.converts:
        return ()
    if lends_from_hub(recipe):
        sections = ("model", "random", "sha256", "revision")
        reads = ("convert", *(f"verifier.{name}" for name in sections))
        return (Step("convert", version=1, reads=reads, run=run, external=external_hub, estimate=estimate),)
    return (
        Step(
            "convert",
            version=1,
            reads=("convert",),
            inputs=("verifier",),
            run=run,
            external=external,
            estimate=estimate,
        ),
    )
