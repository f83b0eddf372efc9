"""Loss, gradients and acceptance are those of transformers' own forward pass over each document, family by family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from speculators.algorithms.base import Batch
from speculators.algorithms.draft_model.network import DraftModelNetwork
from speculators.algorithms.draft_model.objective import DraftModelObjective
from speculators.layers.causal_attention import causal_attention
from speculators.layers.products import mix_precision
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.load import load_recipe

STEPS = 3


def section(**said: Any) -> Any:
    written = ", ".join(f"{name}: {value}" for name, value in {"steps": STEPS, **said}.items())
    return load_recipe("tiny", sets=[f"algorithm={{type: draft_model, random: {{}}, {written}}}"]).recipe.algorithm


def documents(batch: Batch) -> list[slice]:
    ends = torch.tensor(batch.lengths).cumsum(0).tolist()
    return [slice(end - length, end) for end, length in zip(ends, batch.lengths, strict=True)]


def dense(
    model: Any, head: VerifierHead, plain: SimpleNamespace, batch: Batch, reduction: str, steps: int = STEPS
) -> tuple[torch.Tensor, torch.Tensor, list[list[bool]]]:
    """The loss KL + TV / 2, how many proposals of each chain stand, and the hits of each step."""
    sums, counts, lengths, hits = [], [], [], [[] for _ in range(steps)]
    for rows in documents(batch):
        ids, mask = batch.input_ids[rows], batch.loss_mask[rows].tolist()
        logits = model(ids[None]).logits[0]
        p = (plain.rms(batch.last[rows], head.norm) @ head.weight.T).softmax(-1)
        q = logits.softmax(-1)
        right = (logits.argmax(-1) == batch.argmax[rows]).tolist()
        drafts = [t > 0 and t + 1 < len(ids) and mask[t] and mask[t + 1] for t in range(len(ids))]
        own = []
        for t in (t for t, one in enumerate(drafts) if one):
            own.append((p[t] * (p[t] / q[t]).log()).sum() + 0.5 * 0.5 * (p[t] - q[t]).abs().sum())
            alive = 0
            while alive < steps and t + alive < len(ids) and drafts[t + alive]:
                hits[alive].append(right[t + alive])
                alive += 1
            stands = [right[t + step] for step in range(alive)]
            lengths.append([*stands, False].index(False))
        sums.append(torch.stack(own).sum() if own else logits.sum() * 0)
        counts.append(len(own))
    if reduction == "sequence_mean":
        found = [one / count for one, count in zip(sums, counts, strict=True) if count]
        return torch.stack(found).mean(), torch.tensor(lengths), hits
    whole = sum(counts) if reduction == "token_mean" else batch.tokens
    return torch.stack(sums).sum() / whole, torch.tensor(lengths), hits


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "padded_mean"])
def test_loss_gradients_and_acceptance_are_the_model_s_own(
    model_folder: Path,
    begun: Callable[[Path], DraftModelNetwork],
    batch: Batch,
    head: VerifierHead,
    plain: SimpleNamespace,
    reduction: str,
) -> None:
    """In float64; transformers takes norms in float32, which is all the difference that is left."""
    network, model = begun(model_folder).double(), AutoModelForCausalLM.from_pretrained(model_folder).double()
    options = section(loss="{kl: 1.0, tv: 0.5}", reduction=reduction)
    found = DraftModelObjective(network, options, head).evaluate(batch)
    found.loss.backward()
    loss, lengths, hits = dense(model, head, plain, batch, reduction)
    loss.backward()
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=1e-6)
    assert found.accepted.lengths.tolist() == lengths.tolist()
    for step, one in enumerate(hits, 1):
        assert found.measured.get(f"accuracy_{step}", (0.0, 0.0)) == (float(sum(one)), float(len(one)))
    theirs = {name.removeprefix("model."): one.grad for name, one in model.named_parameters()}
    ours = {name: one.grad for name, one in network.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=2e-5, atol=2e-6)


def test_the_number_of_steps_changes_nothing_that_is_learnt(
    write_model: Callable[..., Path],
    begun: Callable[[Path], DraftModelNetwork],
    make_batch: Any,
    head: VerifierHead,
    tmp_path: Path,
) -> None:
    network = begun(write_model(tmp_path / "model", model_type="llama")).double()
    batch = make_batch(["00111111", "0111"])
    found = [DraftModelObjective(network, section(steps=steps), head).evaluate(batch) for steps in (1, 6)]
    assert found[0].loss == found[1].loss
    assert set(found[1].measured) - set(found[0].measured) == {f"accuracy_{step}" for step in range(2, 7)}
    assert found[0].accepted.lengths.tolist() == found[1].accepted.lengths.clamp(max=1).tolist()


def test_products_are_rounded_where_training_is_in_bfloat16(
    model_folder: Path, begun: Callable[[Path], DraftModelNetwork], make_batch: Any, head: VerifierHead
) -> None:
    batch = make_batch(["0001111111", "001111"])
    exact = DraftModelObjective(begun(model_folder), section(), single(head)).evaluate(floats(batch))
    network = begun(model_folder)
    mix_precision(network, torch.bfloat16)
    rounded = DraftModelObjective(network, section(), single(head), compute_dtype=torch.bfloat16)
    found = rounded.evaluate(floats(batch))
    found.loss.backward()
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)
    assert found.loss != exact.loss
    assert all(one.grad is not None and one.grad.dtype == torch.float32 for one in network.parameters())


def single(head: VerifierHead) -> VerifierHead:
    return VerifierHead(head.weight.float(), head.norm.float(), head.eps)


def floats(batch: Batch) -> Batch:
    return replace(batch, last=batch.last.float())


def test_documents_see_themselves_alone(plain: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, heads, 4, generator=generator, dtype=torch.float64) for heads in (6, 2, 2))
    number = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2])
    seen = (number[:, None] == number) & torch.ones(9, 9, dtype=torch.bool).tril()
    found = causal_attention(q, k, v, [slice(0, 4), slice(4, 5), slice(5, 9)])
    torch.testing.assert_close(found.flatten(1), plain.attend(q, k, v, seen))
