"""One step of EAGLE-3 training, forward, backward and optimizer: ours beside its peers, in one run.

    ours       along chains only, as the trainer does it
    dense      the same loss as it is usually written: all positions, all pairs of them, all logits
    upstream   the PyPI package `speculators` 0.9.0, in an environment of its own (peers/upstream_step.py)

All start from the same weights and take the same batch, steps, draft vocabulary and precision, each in a process of its
own. Their losses of every step are compared before anything is printed. Time is the median of the steps; memory is
what the steps added at most to the resident weights and batch, gradients and moments included.

    python benchmarks/training.py                               # 0.3, 0.6 and 1 of the tokens in the loss
    python benchmarks/training.py --steps 7 --draft-vocabulary 32000 --json
    python benchmarks/training.py --curve 40                    # and how all learn from the same batch
    python benchmarks/training.py --scaling                     # ours alone: longer sequences, more steps
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peers.environment import PeerUnavailable, build, run
from peers.workload import SHAPES, Workload, write

from speculators.layers.products import product_dtype

ROOT = Path(__file__).parents[1]
UPSTREAM = "0.9.0"
NO_SPECFORGE = (
    "SpecForge is not measured: 0.2.0 computes its loss in a Triton kernel alone, which a CPU cannot run, and asks for "
    "torch 2.11.0 and sglang 0.5.14 exactly"
)
SCALING_STEPS = (1, 3, 7)
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}

Measured = dict[str, dict[str, Any]]
"""What each variant printed."""


def main() -> None:
    """Measure what was asked for and print it."""
    arguments = _parser().parse_args()
    precision = arguments.precision or str(product_dtype(torch.bfloat16)).removeprefix("torch.")
    workload = Workload(
        shape=arguments.shape,
        draft_vocabulary=arguments.draft_vocabulary,
        tokens=arguments.tokens,
        document=min(256, arguments.tokens),
        steps=arguments.steps,
        fraction=0.6,
        precision=precision,
        train_head=arguments.train_head,
        repeats=1 if arguments.quick else arguments.repeats,
        threads=torch.get_num_threads(),
        recompute=arguments.recompute,
        compile=arguments.compile,
        curve=arguments.curve,
    )
    if arguments.scaling:
        _print_scaling(_scaling(workload, arguments.longest), workload, as_json=arguments.json)
        return
    notes: list[str] = [] if arguments.no_peers else [NO_SPECFORGE]
    peers = {} if arguments.no_peers else _peers(notes)
    fractions = [0.6] if arguments.quick else arguments.fractions
    found = {fraction: _measure(replace(workload, fraction=fraction), peers, notes) for fraction in fractions}
    if arguments.json:
        print(json.dumps(_as_data(found, workload, notes), indent=2))
    else:
        _print_table(found, workload, notes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="135m", help="the verifier's layers")
    parser.add_argument("--draft-vocabulary", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=1024, help="of a batch, in documents of 256")
    parser.add_argument("--steps", type=int, default=3, help="of training-time test")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.3, 0.6, 1.0], help="of tokens in the loss")
    parser.add_argument("--precision", choices=tuple(TOLERANCE), help="default: what this machine trains in")
    parser.add_argument("--train-head", action="store_true", help="in all variants; upstream itself keeps it frozen")
    parser.add_argument("--recompute", action="store_true", help="ours with train.execution.recompute")
    parser.add_argument("--compile", action="store_true", help="ours with train.execution.compile; its memory too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--curve", type=int, default=0, help="steps that all train, and their losses meanwhile")
    parser.add_argument("--quick", action="store_true", help="fraction 0.6 alone, one timed step")
    parser.add_argument("--no-peers", action="store_true", help="ours and dense only; nothing is installed")
    parser.add_argument("--scaling", action="store_true", help="ours alone, by sequence length and number of steps")
    parser.add_argument("--longest", type=int, default=8192, help="sequence of --scaling")
    parser.add_argument("--json", action="store_true")
    return parser


def _peers(notes: list[str]) -> dict[str, Path]:
    """The interpreters of the peers that can be had here; the others' reasons go into `notes`."""
    try:
        # Its text models use neither of these; transformers imports what is installed.
        return {"upstream": build("speculators", UPSTREAM, unused=("torchvision", "torchaudio"))}
    except PeerUnavailable as reason:
        notes.append(f"upstream is not measured: {reason}")
        return {}


def _measure(workload: Workload, peers: dict[str, Path], notes: list[str]) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(workload, folder)
        found = {variant: _ours(variant, folder) for variant in ("ours", "dense")}
        found |= {peer: run(python, f"{peer}_step.py", str(folder), folder=folder) for peer, python in peers.items()}
    _compare(found, workload, notes)
    return found


def _ours(variant: str, folder: Path) -> dict[str, Any]:
    return run(
        Path(sys.executable), "our_steps.py", variant, str(folder), folder=folder, path=(ROOT, ROOT / "benchmarks")
    )


def _compare(found: Measured, workload: Workload, notes: list[str]) -> None:
    """Stop where a loss at the same positions differs; note other positions than ours, and disturbed measurements."""
    ours = found["ours"]
    for name, one in found.items():
        apart = max(abs(a / b - 1) for a, b in zip(one["losses"], ours["losses"], strict=True))
        if apart > TOLERANCE[workload.precision]:
            raise SystemExit(f"the losses differ: {ours['losses']} and, {name}, {one['losses']}")
        if one["counted"] != ours["counted"]:
            notes.append(
                f"at {workload.fraction:g} {name} takes its loss at {one['counted']} positions, we at "
                f"{ours['counted']}: it also counts the token after a document's end, later steps of chains rooted "
                "before the answer, and steps across the end of a document; judged at ours, its losses are ours"
            )
        if one["seconds"] > 1.3 * one["fastest"]:
            notes.append(
                f"at {workload.fraction:g} {name} was disturbed: {one['seconds'] / one['fastest']:.1f} of its fastest"
            )


def _ratios(found: dict[float, Measured], key: str, *, inverse: bool) -> dict[str, dict[str, float]]:
    """Ours to each peer's, by peer and fraction; `inverse` for what is better when it is small."""
    ratios: dict[str, dict[str, float]] = {}
    for fraction, measured in found.items():
        for name, one in measured.items():
            if name != "ours":
                ratio = measured["ours"][key] / one[key]
                ratios.setdefault(name, {})[f"{fraction:g}"] = 1 / ratio if inverse else ratio
    return ratios


def _as_data(found: dict[float, Measured], workload: Workload, notes: list[str]) -> dict[str, Any]:
    return {
        "ratios": _ratios(found, "seconds", inverse=True),
        "memory_ratios": _ratios(found, "added_megabytes", inverse=False),
        "measured": {f"{fraction:g}": measured for fraction, measured in found.items()},
        "workload": workload.described(),
        "notes": notes,
    }


def _print_table(found: dict[float, Measured], workload: Workload, notes: list[str]) -> None:
    data = _as_data(found, workload, notes)
    names = list(dict.fromkeys(name for measured in found.values() for name in measured))
    peers = names[1:]
    print(*(f"{key} {value}" for key, value in data["workload"].items()), sep=", ")
    print("\ntokens/s, and how many times faster ours is; MB added by the steps, and ours as a part of the peer's\n")
    heads = ["loss", *names, *(f"ours/{peer}" for peer in peers), *(f"{name} MB" for name in names)]
    heads += [f"ours/{peer} MB" for peer in peers]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for fraction, measured in found.items():
        cells = [f"{fraction:.0%}"]
        cells += [
            f"{sum(workload.lengths) / measured[name]['seconds']:,.0f}" if name in measured else "" for name in names
        ]
        cells += [f"{data['ratios'].get(peer, {}).get(f'{fraction:g}', float('nan')):.2f}" for peer in peers]
        cells += [f"{measured[name]['added_megabytes']:,.0f}" if name in measured else "" for name in names]
        cells += [f"{data['memory_ratios'].get(peer, {}).get(f'{fraction:g}', float('nan')):.2f}" for peer in peers]
        print("| " + " | ".join(cells) + " |")
    for fraction, measured in found.items():
        _print_curve(fraction, measured)
    for note in notes:
        print(f"\n* {note}")


def _print_curve(fraction: float, measured: Measured) -> None:
    """The losses of all, judged at the same positions, while they train on the same batch from the same weights."""
    if not measured["ours"]["curve"]:
        return
    print(
        f"\nloss (sum over the steps of training-time test) at {fraction:.0%}, after so many steps of the optimizer\n"
    )
    print("| steps | " + " | ".join(measured) + " |")
    print("|" + "---|" * (len(measured) + 1))
    for place, (steps, _) in enumerate(measured["ours"]["curve"]):
        losses = (one["curve"][place][1] for one in measured.values())
        print(f"| {steps} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")


def _scaling(workload: Workload, longest: int) -> list[dict[str, Any]]:
    """Ours on one document of every power of two up to `longest` tokens, for every number of steps."""
    points = []
    length = 1024
    while length <= longest:
        for steps in SCALING_STEPS:
            point = replace(workload, tokens=length, document=length, steps=steps, repeats=min(2, workload.repeats))
            with tempfile.TemporaryDirectory() as name:
                write(point, Path(name))
                points.append({"tokens": length, "steps": steps, **_ours("ours", Path(name))})
        length *= 2
    return points


def _print_scaling(points: list[dict[str, Any]], workload: Workload, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"scaling": points, "workload": workload.described()}, indent=2))
        return
    print("one document; tokens/s and MB added, by its length and the steps of training-time test\n")
    print("| tokens | " + " | ".join(f"{steps} step{'s' * (steps > 1)}" for steps in SCALING_STEPS) + " |")
    print("|" + "---|" * (len(SCALING_STEPS) + 1))
    for length in dict.fromkeys(point["tokens"] for point in points):
        cells = [
            f"{length / point['seconds']:,.0f} ({point['added_megabytes']:,.0f} MB)"
            for point in points
            if point["tokens"] == length
        ]
        print(f"| {length:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
