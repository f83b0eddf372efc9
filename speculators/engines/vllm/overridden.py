"""A checkpoint with something else in its config, without rewriting it: a changed copy beside links to the rest."""

from __future__ import annotations

import json
from pathlib import Path


def overridden(checkpoint: Path, folder: Path, verifier: Path | str, speculative_tokens: int | None = None) -> Path:
    """Make `folder` a checkpoint whose draft is `checkpoint`'s and whose verifier is `verifier`; gives the folder.

    The verifier may be another copy, or the same model quantised: what vLLM loads is what the config names. So is the
    number of tokens it drafts a pass.
    """
    folder.mkdir(parents=True)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    speculation = config["speculators_config"]
    speculation["verifier"]["name_or_path"] = str(verifier)
    if speculative_tokens is not None:
        speculation["proposal_methods"][0]["speculative_tokens"] = speculative_tokens
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in checkpoint.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    return folder
