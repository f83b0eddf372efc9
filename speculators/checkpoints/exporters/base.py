"""What an exporter is: the inverse of an importer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Export:
    """A draft as another project has it: its `config.json`, each of its tensors with our name for it, and its file.

    `made` are tensors that are none of ours as it is.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, str]
    file: str = "model.safetensors"
    made: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Exporter(Protocol):
    """A module of this folder, one for each target."""

    NAME: str
    TITLE: str
    KINDS: tuple[str, ...]
    """The types of ours that can be said so."""

    def export(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Export:
        """Say a draft, given by our `config.json` and its tensors, in the target's words.

        Raises UsageError for a draft that the target's readers would take for another.
        """
