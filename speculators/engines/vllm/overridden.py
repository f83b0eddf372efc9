"""A checkpoint with another verifier, without rewriting it: a changed config beside links to everything else."""

from __future__ import annotations

import json
from pathlib import Path


def with_verifier(checkpoint: Path, verifier: Path | str, folder: Path) -> Path:
    """Make `folder` a checkpoint whose draft is `checkpoint`'s and whose verifier is `verifier`; gives the folder.

    The verifier may be another copy, or the same model quantised: what a server loads is what the config names.
    """
    folder.mkdir(parents=True)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config["speculators_config"]["verifier"]["name_or_path"] = str(verifier)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in checkpoint.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    return folder
