"""The training step of the PyPI package `speculators`, run inside its own environment: `upstream_step.py FOLDER`.

The package's own parts, in its trainer's order: batches as its collation packs them, its draft model made from its
training arguments, forward under autocast, backward, the norm of the gradients clipped to 1, its AdamW. Prints JSON.

What a CPU forces, and nothing else is changed: its trainer class, which moves the model to an accelerator, is replaced
by the loop below; attention is `sdpa`, because FlexAttention has no backward on a CPU; losses are `eager`, because the
others are Triton's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measuring import curve, measure
from safetensors.torch import load_file
from speculators.models.eagle3.core import Eagle3DraftModel
from speculators.models.eagle3.data import shift_batch
from speculators.train.cli import create_transformer_layer_config
from speculators.train.data import CollateFn
from speculators.train.optimizers import build_optimizers


def main() -> None:
    """Measure, then judge the losses of the initial weights."""
    folder = Path(sys.argv[1])
    workload = json.loads((folder / "workload.json").read_text())
    torch.set_num_threads(workload["threads"])
    tensors = load_file(folder / "batch.safetensors")
    model, options = draft(folder, workload)
    pack = partial(packed, tensors, workload["document"], getattr(torch, workload["precision"]))
    batch = pack(tensors["loss_mask"])
    counted = [int(batch["loss_mask"][:, number:].sum()) for number in range(workload["steps"])]
    step = training_step(model, options, batch, getattr(torch, workload["precision"]))
    measured = measure(step, workload["repeats"])
    # Only now: memory that an earlier pass left to the allocator would be missing from what the steps add.
    load(model, folder)
    losses = judged_alike(model, options, tensors, pack)
    learnt: list[tuple[int, float]] = []
    if workload["curve"]:
        again = training_step(model, options, batch, getattr(torch, workload["precision"]))
        learnt = curve(again, lambda: sum(judged_alike(model, options, tensors, pack)), workload["curve"])
    print(json.dumps({"losses": losses, "counted": counted, "curve": learnt, **measured}))


def draft(folder: Path, workload: dict[str, Any]) -> tuple[Eagle3DraftModel, dict[str, Any]]:
    """The draft with our initial weights, and what its trainer passes to every forward."""
    tensors = load_file(folder / "draft.safetensors")
    arguments: dict[str, Any] = {
        "verifier_name_or_path": str(folder / "verifier"),
        "target_layer_ids": [2, 15, 27],
        "draft_vocab_size": workload["draft_vocabulary"],
        "norm_before_residual": True,
        "norm_before_fc": True,
        "draft_attn_impl": "sdpa",
        "ttt_steps": workload["steps"],
        "ttt_step_loss_decay": 1.0,
        "loss_fn": "kl_div",
        "loss_implementation": "eager",
    }
    layers = create_transformer_layer_config(arguments["verifier_name_or_path"], 1, "llama", None, 0, [0])
    model = Eagle3DraftModel.from_training_args(layers, t2d=tensors["t2d"], d2t=tensors["d2t"], **arguments)
    load(model, folder)
    model.lm_head.weight.requires_grad_(workload["train_head"])
    return model, Eagle3DraftModel.get_trainer_kwargs(**arguments)[0]


def load(model: Eagle3DraftModel, folder: Path) -> None:
    """Give the draft our initial weights."""
    answer = model.load_state_dict(load_file(folder / "draft.safetensors"), strict=False)
    if answer.unexpected_keys or any(not name.startswith("verifier_") for name in answer.missing_keys):
        raise SystemExit(f"the draft is not the same: {answer}")


def packed(
    tensors: dict[str, torch.Tensor], length: int, dtype: torch.dtype, loss_mask: torch.Tensor
) -> dict[str, Any]:
    """The documents through its collation, padded to the token budget."""
    names = {"input_ids": "input_ids", "hidden_states": "aux", "verifier_last_hidden_states": "last"}
    tokens = len(loss_mask)
    documents = [
        {name: tensors[ours][start : start + length] for name, ours in names.items()}
        | {"loss_mask": loss_mask[start : start + length]}
        | {"lengths": torch.tensor([length]), "position_ids": torch.arange(length)}
        for start in range(0, tokens, length)
    ]
    hidden = tensors["last"].shape[-1]
    return dict(CollateFn(tokens, hidden, dtype=dtype, preprocess=shift_batch)(documents))


def judged_alike(
    model: Eagle3DraftModel,
    options: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    pack: Callable[[torch.Tensor], dict[str, Any]],
) -> list[float]:
    """Its loss of every step, judged at our positions instead of its own: these must be ours.

    Its mask is by the target's position and the same for all steps; so every step is given a mask of its own.
    """
    found = []
    for step in range(options["ttt_steps"]):
        only = torch.zeros_like(tensors["loss_mask"])
        only[tensors[f"targets_{step}"]] = True
        with torch.no_grad():
            _, _, metrics = model(**pack(only), **options)
        found.append(float(metrics[f"loss_{step}_sum"] / metrics[f"loss_{step}_total"]))
    return found


def training_step(
    model: Eagle3DraftModel, options: dict[str, Any], batch: dict[str, Any], dtype: torch.dtype
) -> Callable[[], object]:
    """One step of its trainer."""
    optimizers = build_optimizers(model, SimpleNamespace(optimizer="adamw", lr=1e-4, weight_decay=0.01))
    model.train()

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype):
            _, loss, _ = model(**batch, **options)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()

    return step


if __name__ == "__main__":
    main()
