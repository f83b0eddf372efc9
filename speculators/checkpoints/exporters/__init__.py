"""Our checkpoints in the formats of other projects. Each target is one file here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from speculators.checkpoints.convert import RECORD, layout_digest
from speculators.checkpoints.exporters.base import Export, Exporter
from speculators.errors import UsageError

if TYPE_CHECKING:
    import torch

    from speculators.checkpoints.load import Checkpoint
    from speculators.verifiers.lender import Part

TARGETS = {
    "eagle3": "speculators.checkpoints.exporters.eagle3",
    "eagle3.1": "speculators.checkpoints.exporters.eagle31",
    "modelopt": "speculators.checkpoints.exporters.modelopt",
    "specforge": "speculators.checkpoints.exporters.specforge",
    "eagle": "speculators.checkpoints.exporters.eagle",
    "medusa": "speculators.checkpoints.exporters.medusa",
    "hydra": "speculators.checkpoints.exporters.hydra",
    "mlp_speculator": "speculators.checkpoints.exporters.mlp_speculator",
    "draft_model": "speculators.checkpoints.exporters.draft_model",
    "peagle": "speculators.checkpoints.exporters.peagle",
    "dflash": "speculators.checkpoints.exporters.dflash",
    "dspark": "speculators.checkpoints.exporters.dspark",
}
"""Every target, by the name that `--to` gives it."""

ENGINES = {
    "vllm-native": ("eagle3.1", "eagle", "medusa", "draft_model", "peagle", "dflash", "dspark"),
    "sglang": ("specforge", "eagle"),
}
"""By an engine's name the formats that it reads beside ours: that for the draft's type is meant."""


def exporter(target: str) -> Exporter:
    """The exporter of a target."""
    return cast("Exporter", import_module(TARGETS[target]))


def target_for(checkpoint: Checkpoint, name: str) -> str:
    """The target that `name`, itself one or an engine, means for a checkpoint; UsageError where it means none."""
    if name not in ENGINES:
        return name
    kind = str(checkpoint.config.get("speculators_model_type"))
    found = next((target for target in ENGINES[name] if kind in exporter(target).KINDS), None)
    if found is None:
        problem = f"{checkpoint.directory} is of the type {kind}, which {name} does not read"
        raise UsageError(f"{problem}; {_other_targets(kind, name)}")
    return found


def exported(checkpoint: Checkpoint, target: str) -> Export:
    """A checkpoint in a target's words.

    One that was converted from that very format, in its own type, gets its config back word for word, if its tensors
    have the names and shapes that this config was written for. Raises UsageError for a draft that the target's readers
    would take for another.
    """
    from speculators.checkpoints.layout import completed

    kind = checkpoint.config.get("speculators_model_type")
    config = {**completed(checkpoint.config), "dtype": checkpoint.config.get("dtype", "bfloat16")}
    chosen = exporter(target)
    if kind not in chosen.KINDS:
        allowed = " and ".join(chosen.KINDS)
        problem = f"{checkpoint.directory} is of the type {kind}, and {target} is for {allowed}"
        raise UsageError(f"{problem}; {_other_targets(str(kind), target)}")
    try:
        export = chosen.export(config, checkpoint.tensors)
    except UsageError as error:
        raise UsageError(f"{error}; {_other_targets(str(kind), target)}") from error
    record = checkpoint.config.get(RECORD) or {}
    if record.get("format") != target:
        return export
    named = {name: checkpoint.tensors[ours] for name, ours in export.tensors.items()} | dict(export.made)
    made = _as_they_came(named, record, checkpoint)
    export = replace(export, tensors={}, made=made)
    own = {name: value.shape for name, value in made.items() if name not in record.get("borrowed", {})}
    is_the_source = record["dtype"] == config["dtype"] and record.get("layout") == layout_digest(own)
    return replace(export, config=record["config"]) if is_the_source and not record["layers_given"] else export


def _other_targets(kind: str, target: str) -> str:
    """Where else a type of ours may go, for a message that refuses one target."""
    if kind == "mtp":
        return "mtp goes to none: `speculators stitch` writes it back into its verifier"
    others = [name for name in TARGETS if name != target and kind in exporter(name).KINDS]
    return f"other targets for {kind}: {', '.join(others) or 'none'}"


@dataclass(frozen=True)
class Written:
    """How many tensors were written, and which that the source had are the verifier's and could not be."""

    tensors: int
    left_out: tuple[str, ...] = ()


def write_export(checkpoint: Checkpoint, target: str, output: Path) -> Written:
    """Write a checkpoint for a target into a new folder: all of it or nothing."""
    import torch
    from safetensors.torch import save_file

    export = exported(checkpoint, target)
    beside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tensors = {name: checkpoint.tensors[ours] for name, ours in export.tensors.items()} | dict(export.made)
    tensors = {name: value.contiguous().clone() for name, value in tensors.items()}  # some are one tensor twice
    if export.file.endswith(".pt"):
        torch.save(tensors, beside / export.file)
    else:
        save_file(tensors, beside / export.file, metadata={"format": "pt"})
    _write_json(beside / "config.json", export.config)
    if output.is_dir():
        output.rmdir()
    beside.replace(output)
    record = checkpoint.config.get(RECORD) or {}
    came_with = record.get("borrowed", {}) if record.get("format") == target else {}
    return Written(len(tensors), tuple(name for name in came_with if name not in tensors))


def _as_they_came(
    tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any], checkpoint: Checkpoint
) -> dict[str, torch.Tensor]:
    """What the conversion split, reshaped or left to the verifier, as it was in the source."""
    import torch

    found = dict(tensors)
    for whole, parts in record.get("fused", {}).items():
        found[whole] = torch.cat([found.pop(name) for name in parts])
    for name, shape in record.get("shapes", {}).items():
        found[name] = found[name].reshape(shape)
    found |= _identity_maps(record["maps"], checkpoint.config["transformer_layer_config"]["vocab_size"])
    return found | _lent(record.get("borrowed", {}), checkpoint)


def _lent(borrowed: Mapping[str, Part], checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The verifier's tensors that the source repeated, where the verifier is on this machine."""
    import torch

    from speculators.verifiers.lender import Lender

    directory = Path(checkpoint.verifier)
    if not borrowed or not (directory / "config.json").is_file():
        return {}
    lender, dtype = Lender.of_directory(directory, checkpoint.verifier), getattr(torch, checkpoint.config["dtype"])
    return {name: lender.lend(part).to(dtype) for name, part in borrowed.items()}


def _identity_maps(names: list[str], size: int) -> dict[str, torch.Tensor]:
    """The maps of a draft with the whole vocabulary, which our format leaves out."""
    import torch

    every = {"d2t": torch.zeros(size, dtype=torch.int64), "t2d": torch.ones(size, dtype=torch.bool)}
    return {name: every[name] for name in names}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
