"""Foreign drafts: which source one is from, and why. Each source is one file here, and one word of `convert.format`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Importer, Translation
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

FORMATS = {
    "eagle3": "speculators.checkpoints.importers.eagle3",
    "eagle3.1": "speculators.checkpoints.importers.eagle31",
    "modelopt": "speculators.checkpoints.importers.modelopt",
    "specforge": "speculators.checkpoints.importers.specforge",
    "eagle": "speculators.checkpoints.importers.eagle",
    "medusa": "speculators.checkpoints.importers.medusa",
    "hydra": "speculators.checkpoints.importers.hydra",
    "mlp_speculator": "speculators.checkpoints.importers.mlp_speculator",
    "draft_model": "speculators.checkpoints.importers.draft_model",
    "peagle": "speculators.checkpoints.importers.peagle",
    "dflash": "speculators.checkpoints.importers.dflash",
    "dspark": "speculators.checkpoints.importers.dspark",
    "mtp": "speculators.checkpoints.importers.mtp",
    "speculators": "speculators.checkpoints.importers.speculators",
}
"""Every source, by the name that `--format` gives it; of two that read a draft alike, the first is taken."""


@dataclass(frozen=True)
class Candidate:
    """A source that a checkpoint may be from, with the reasons."""

    importer: Importer
    reasons: tuple[str, ...]

    @property
    def line(self) -> str:
        """`eagle3: its layer is named midlayer, both vocabulary maps are there`."""
        return f"{self.importer.NAME}: {', '.join(self.reasons)}"


@dataclass(frozen=True)
class Found:
    """The source that was told, why, and the draft in our words."""

    candidate: Candidate
    translation: Translation


def importer(name: str) -> Importer:
    """The importer of a format."""
    return cast("Importer", import_module(FORMATS[name]))


def candidates(foreign: Foreign) -> list[Candidate]:
    """Every source that a checkpoint may be from; one that names this project's format is from no other."""
    every = (importer(name) for name in (("speculators",) if "speculators_model_type" in foreign.config else FORMATS))
    return [Candidate(one, tuple(reasons)) for one in every if (reasons := one.recognise(foreign))]


def find(
    foreign: Foreign, facts: VerifierFacts, wanted: str = "auto", aux_layers: Sequence[int] | None = None
) -> Found:
    """Tell the source of a checkpoint and translate it; `wanted` is the user's word on the format.

    Raises UsageError when it is none of the formats, or when two of them would make different drafts of it.
    """
    if wanted != "auto":
        chosen = Candidate(importer(wanted), ("the format was given",))
        return Found(chosen, chosen.importer.translate(foreign, facts, aux_layers))
    possible = candidates(foreign)
    if not possible:
        raise UsageError(unrecognised(foreign))
    if len(possible) == 1:
        return Found(possible[0], possible[0].importer.translate(foreign, facts, aux_layers))
    tried = [_tried(one, foreign, facts, aux_layers) for one in possible]
    read = [one for one in tried if isinstance(one, Found)]
    refused = [one for one in tried if isinstance(one, UsageError)]
    if not read:
        raise refused[0]
    if refused or any(one.translation.draft != read[0].translation.draft for one in read):
        lines = [f"{foreign.name} can be read in several ways that make different drafts; say which with --format:"]
        raise UsageError("\n".join([*lines, *(f"  {one.line}" for one in possible)]))
    return read[0]


def _tried(
    candidate: Candidate, foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None
) -> Found | UsageError:
    try:
        return Found(candidate, candidate.importer.translate(foreign, facts, aux_layers))
    except UsageError as error:
        return error


def unrecognised(foreign: Foreign) -> str:
    """What to say of a checkpoint that is from no source that is converted."""
    from speculators.checkpoints.importers.unconverted import known_as

    known = known_as(foreign)
    some = ", ".join(sorted(foreign.headers)[:5])
    converted = "; ".join(f"{name} ({importer(name).TITLE})" for name in FORMATS)
    what = f"is {known}, which is not converted" if known else f"is none of the drafts that are known (it holds {some})"
    return f"{foreign.name} {what}. Converted are: {converted}"
