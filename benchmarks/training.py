"""One step of EAGLE-3 training: ours, along chains only, against the same loss computed densely.

The dense peer is the algorithm as it is usually written: every step over every position of the batch, attention with a
mask over all pairs, logits of all positions at once, the teacher's probabilities kept for all of them. Both take the
same weights, batch and precision; their losses are compared before anything is timed. Each variant runs in a process
of its own, so that its peak memory is its own.

    python benchmarks/training.py                       # hidden size 576, draft vocabulary 4096, 2,048 tokens
    python benchmarks/training.py --share 0.25 --tokens 4096 --json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from speculators.algorithms.base import Batch
from speculators.algorithms.chains import find_chains
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.objective import Eagle3Objective
from speculators.layers.products import mix_precision
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.eagle3 import Eagle3, LossWeights, Normalization, TrainingTimeTest

VOCABULARY = 49_152


def algorithm(arguments: argparse.Namespace) -> Eagle3:
    """KL over the draft's vocabulary, all steps of equal weight."""
    losses = dict.fromkeys(LossWeights.__struct_fields__, 0.0) | {"kl": 1.0}
    return Eagle3(
        layers=1,
        draft_vocab_size=arguments.draft_vocabulary,
        aux_layers=(2, 15, 27),
        training_time_test=TrainingTimeTest(steps=arguments.steps, decay=1.0),
        normalization=Normalization(before_residual=True, before_fc=True, per_aux_layer=False, output=False),
        loss=LossWeights(**losses),
        reduction="token_mean",
        teacher="renormalized",
        out_of_vocabulary="keep",
        feature_noise=0.0,
        train_embeddings=False,
        train_head=True,
    )


def network(arguments: argparse.Namespace) -> Eagle3Network:
    """A draft of the shape of SmolLM2-135M's, with random weights."""
    config = Eagle3Config(
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.hidden_size * 8 // 3,
        attention_heads=arguments.hidden_size // 64,
        key_value_heads=arguments.hidden_size // 192,
        head_dim=64,
        vocab_size=VOCABULARY,
        draft_vocab_size=arguments.draft_vocabulary,
        aux_layers=(2, 15, 27),
        rope={"rope_type": "default", "rope_theta": 100_000.0},
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        norm_before_residual=True,
        norm_before_fc=True,
    )
    generator = torch.Generator().manual_seed(0)
    found = Eagle3Network(config)
    kept = torch.randperm(VOCABULARY, generator=generator)[: arguments.draft_vocabulary].sort().values
    found.start_from(
        embedding=torch.randn(VOCABULARY, arguments.hidden_size, generator=generator) * 0.1,
        head=torch.randn(VOCABULARY, arguments.hidden_size, generator=generator) * 0.1,
        norm=torch.ones(arguments.hidden_size),
        generator=generator,
        d2t=kept - torch.arange(len(kept)),
        t2d=torch.zeros(VOCABULARY, dtype=torch.bool).index_fill_(0, kept, value=True),
    )
    return found


def batch(arguments: argparse.Namespace) -> Batch:
    """Documents of 256 tokens whose last `share` is the assistant's."""
    generator, length = torch.Generator().manual_seed(1), 256
    count = arguments.tokens // length
    mask = (torch.arange(length) >= length * (1 - arguments.share)).repeat(count)
    tokens = length * count
    return Batch(
        lengths=(length,) * count,
        input_ids=torch.randint(0, VOCABULARY, (tokens,), generator=generator),
        loss_mask=mask,
        aux=torch.randn(tokens, 3 * arguments.hidden_size, generator=generator),
        last=torch.randn(tokens, arguments.hidden_size, generator=generator),
        argmax=torch.randint(0, VOCABULARY, (tokens,), generator=generator),
    )


def verifier_head(arguments: argparse.Namespace) -> VerifierHead:
    """A random head for the teacher."""
    weight = torch.randn(VOCABULARY, arguments.hidden_size, generator=torch.Generator().manual_seed(2)) * 0.1
    return VerifierHead(weight, torch.ones(arguments.hidden_size), 1e-5)


def chains(arguments: argparse.Namespace, data: Batch) -> Callable[[], torch.Tensor]:
    """Our objective."""
    dtype: torch.dtype = getattr(torch, arguments.precision)
    draft = network(arguments)
    if dtype != torch.float32:
        mix_precision(draft, dtype)
    objective = Eagle3Objective(draft, algorithm(arguments), verifier_head(arguments), compute_dtype=dtype)

    def step() -> torch.Tensor:
        draft.zero_grad()
        loss = objective.evaluate(data).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return step


def dense(arguments: argparse.Namespace, data: Batch) -> Callable[[], torch.Tensor]:
    """The peer: all positions, all pairs, all logits."""
    dtype: torch.dtype = getattr(torch, arguments.precision)
    draft, head, tokens = network(arguments), verifier_head(arguments), data.tokens
    draft.embed_tokens.weight.requires_grad_(requires_grad=False)
    rows = draft.target_ids
    lengths = torch.tensor(data.lengths)
    document = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    positions = torch.arange(tokens) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    seen = (document[:, None] == document) & (positions[:, None] >= positions)
    chosen = find_chains(data.loss_mask, data.lengths, arguments.steps)  # only which rows count in the mean
    counted = [torch.zeros(tokens).index_fill_(0, chosen.roots[alive], 1.0) for alive in chosen.alive]

    def step() -> torch.Tensor:
        draft.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            teacher = functional.linear(head.normed(data.last), head.weight[rows]).float().softmax(-1)
            state, loss = draft.fuse(data.aux).float(), torch.zeros(())
            keys: list[torch.Tensor] = []
            values: list[torch.Tensor] = []
            for number in range(arguments.steps):
                ids = data.input_ids[(torch.arange(tokens) + 1 + number).clamp(max=tokens - 1)]
                tables = draft.tables(positions + number, max(data.lengths) + arguments.steps)
                query, key, value, residual = draft.qkv(0, draft.embed(ids), state, tables)
                groups = query.shape[1] // key.shape[1]
                keys.append(key.repeat_interleave(groups, 1))
                values.append(value.repeat_interleave(groups, 1))
                scores = torch.einsum("qhd,khd->hqk", query, keys[0]).float()
                scores = scores.masked_fill(~seen, float("-inf"))
                own = [torch.einsum("qhd,qhd->hq", query, one)[..., None].float() for one in keys[1:]]
                weights = (torch.cat([scores, *own], -1) / 8).softmax(-1)
                attended = torch.einsum("hqk,khd->qhd", weights[..., :tokens], values[0].float())
                for place, one in enumerate(values[1:]):
                    attended = attended + weights[..., tokens + place].T[..., None] * one
                out = draft.finish_layer(0, attended.to(value.dtype), residual).float()
                log_q = draft.logits(out).float().log_softmax(-1)
                target = teacher[(torch.arange(tokens) + 1 + number).clamp(max=tokens - 1)]
                divergence = (target * (target.clamp_min(1e-30).log() - log_q)).sum(-1)
                loss = loss + (divergence * counted[number]).sum() / counted[number].sum()
                state = draft.next_state(out)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return step


VARIANTS = {"chains": chains, "dense": dense}


def measure(name: str, arguments: argparse.Namespace, answer: Any) -> None:
    """Time one variant in a process of its own: the best of `repeats` steps, and the memory they added."""
    data = batch(arguments)
    step = VARIANTS[name](arguments, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss, times = float(step()), []
    for _ in range(arguments.repeats):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.put({"loss": loss, "tokens_per_second": data.tokens / min(times), "added_megabytes": peak / 1024})


def main() -> None:
    """Measure both variants and print them beside each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=576)
    parser.add_argument("--draft-vocabulary", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3, help="steps of training-time test")
    parser.add_argument("--share", type=float, default=0.7, help="of the tokens that are the assistant's")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in VARIANTS:
        answer = context.Queue()
        process = context.Process(target=measure, args=(name, arguments, answer))
        process.start()
        found[name] = answer.get()
        process.join()
    ours, peer = found["chains"], found["dense"]
    found["ratio"] = {key: ours[key] / peer[key] for key in ("tokens_per_second", "added_megabytes", "loss")}
    if abs(found["ratio"]["loss"] - 1) > (1e-4 if arguments.precision == "float32" else 0.02):
        raise SystemExit(f"the losses differ: {ours['loss']} and {peer['loss']}")
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(f"{name:8}", *(f"{key} {value:,.4g}" for key, value in figures.items()), sep="  ")


if __name__ == "__main__":
    main()
