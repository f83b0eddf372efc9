"""What an importer is: a source's own words (config keys, tensor names) said in ours, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from speculators.checkpoints.foreign import Foreign
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.lender import Part


@dataclass(frozen=True)
class Translation:
    """A foreign draft as this project's format has it.

    `draft` is the draft's own part of our `config.json`, `shapes` are those of every tensor of ours that it implies.
    `tensors` names, for each of them that the source has, the source's name.
    `rows` are, for those that are only a part of the source's tensor, its rows from a first one to before a last one;
    `given` are the shapes of the source's tensors that are not those of ours.
    `dropped` names every other tensor of the source with the reason; `borrowed` those that must be the verifier's own,
    bit for bit, and are then dropped too. `attached` are tensors that the source leaves to the verifier, `made` those
    that follow from another one (`t2d` from `d2t`). `speculative_tokens` is how many tokens a round of the draft is
    made for, where it says; `reads_text` is of one that reads tokens by itself, for which its tokenizer must be the
    verifier's; `notices` are for the user.
    """

    draft: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, str]
    dropped: Mapping[str, str] = field(default_factory=dict)
    attached: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    borrowed: Mapping[str, Part] = field(default_factory=dict)
    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    given: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    speculative_tokens: int | None = None
    reads_text: bool = False


class Importer(Protocol):
    """A module of this folder, one for each source."""

    NAME: str
    """What `--format` calls it."""
    TITLE: str
    """What it is, for people."""

    def recognise(self, foreign: Foreign) -> Sequence[str]:
        """Reasons to take it for this source, each a clause such as "its layer is named midlayer"; none: it is not."""

    def translate(self, foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
        """Say it in our words; `aux_layers` are the user's, if they named any.

        Raises UsageError for what this project's drafts cannot be.
        """
