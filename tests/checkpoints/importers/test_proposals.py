"""A converted draft proposes what the source's own forward pass proposes, written out here from the source's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.algorithms.eagle3.proposal import Eagle3Proposal
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.convert import convert
from speculators.checkpoints.load import load_draft
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.verifiers.lender import Lender

TOKENS, STEPS = 11, 4


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def angles(config: dict[str, Any], size: int) -> list[float]:
    """The turn per position of each pair of channels."""
    base, scaling = config.get("rope_theta", 10000.0), config.get("rope_scaling") or {}
    found = []
    for pair in range(size // 2):
        turn = base ** (-2 * pair / size)
        if scaling:  # Llama 3's
            length, factor = 2 * math.pi / turn, scaling["factor"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            whole = scaling["original_max_position_embeddings"]
            if length > whole / low:
                turn /= factor
            elif length > whole / high:
                smooth = (whole / length - low) / (high - low)
                turn = (1 - smooth) * turn / factor + smooth * turn
        found.append(turn)
    return found


def turned(x: torch.Tensor, turns: list[float]) -> torch.Tensor:
    """x [n, heads, size], position after position, channel i paired with i + size / 2."""
    half = len(turns)
    out = torch.empty_like(x)
    for position in range(len(x)):
        for pair, turn in enumerate(turns):
            cos, sin = math.cos(position * turn), math.sin(position * turn)
            first, second = x[position, :, pair], x[position, :, pair + half]
            out[position, :, pair] = first * cos - second * sin
            out[position, :, pair + half] = second * cos + first * sin
    return out


class Source:
    """EAGLE-3 as its sources compute it, everything again for each token."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor], embeddings: torch.Tensor) -> None:
        self.config, self.tensors, self.embeddings = config, tensors, embeddings
        self.prefix = "midlayer." if "midlayer.hidden_norm.weight" in tensors else "layers.0."

    def weight(self, name: str) -> torch.Tensor:
        return self.tensors[f"{self.prefix}{name}.weight"]

    def layer(self, ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        normed = rms(states, self.weight("hidden_norm"))
        x = torch.cat([rms(self.embeddings[ids], self.weight("input_layernorm")), normed], -1)
        q, k, v = (x @ self.weight(f"self_attn.{name}_proj").T for name in "qkv")
        size = q.shape[-1] // heads
        turns = angles(self.config, size)
        q, k = turned(q.view(len(x), heads, size), turns), turned(k.view(len(x), groups, size), turns)
        v = v.view(len(x), groups, size)
        rows = []
        for position in range(len(x)):
            parts = []
            for head in range(heads):
                group = head * groups // heads
                scores = k[: position + 1, group] @ q[position, head] / math.sqrt(size)
                parts.append(torch.softmax(scores, -1) @ v[: position + 1, group])
            rows.append(torch.cat(parts))
        residual = normed if self.config.get("norm_before_residual") else states
        hidden = residual + torch.stack(rows) @ self.weight("self_attn.o_proj").T
        x = rms(hidden, self.weight("post_attention_layernorm"))
        gate = x @ self.weight("mlp.gate_proj").T
        return (
            hidden + (gate * torch.sigmoid(gate) * (x @ self.weight("mlp.up_proj").T)) @ self.weight("mlp.down_proj").T
        )

    def chain(self, ids: torch.Tensor, aux: torch.Tensor, *, feeds_normed: bool) -> tuple[list[int], torch.Tensor]:
        if "fc_norm.0.weight" in self.tensors:
            parts = aux.chunk(3, -1)
            aux = torch.cat([rms(part, self.tensors[f"fc_norm.{i}.weight"]) for i, part in enumerate(parts)], -1)
        states = aux @ self.tensors["fc.weight"].T
        found, logits = [], []
        for _ in range(STEPS):
            out = self.layer(ids, states)[-1]
            normed = rms(out, self.tensors["norm.weight"])
            logits.append(normed @ self.tensors["lm_head.weight"].T)
            token = int(logits[-1].argmax())
            if "d2t" in self.tensors:
                token += int(self.tensors["d2t"][token])
            found.append(token)
            ids = torch.cat([ids, torch.tensor([token])])
            states = torch.cat([states, (normed if feeds_normed else out)[None]])
        return found, torch.stack(logits)


CASES: list[tuple[str, dict[str, Any], str, bool]] = [
    ("eagle3", {}, "auto", False),
    ("eagle3", {"reduced": None}, "auto", False),
    ("eagle3", {"width": 24, "own_embeddings": True, "target_hidden_size": 32}, "auto", False),
    ("modelopt", {}, "auto", False),
    ("modelopt", {"reduced": None, "head_dim": 4}, "auto", False),
    ("specforge", {}, "auto", False),
    ("specforge", {"reduced": None}, "auto", False),
    ("specforge", {"norm_output": True}, "specforge", False),
    ("eagle3.1", {}, "eagle3.1", True),
]


def proposed(folder: Path, ids: torch.Tensor, aux: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """The chain of the converted draft, as it is served."""
    logits: list[torch.Tensor] = []

    def choose(found: torch.Tensor) -> torch.Tensor:
        logits.append(found[0])
        return found.argmax(-1)

    proposal, rows = Eagle3Proposal(load_draft(folder)), torch.tensor([0])
    cache = proposal.new_cache(1, 32)
    chain = proposal.propose(cache, rows, ids[None], aux[None], [0], [len(ids)], STEPS, choose)
    return chain[0].tolist(), torch.stack(logits)


def written(folder: Path, draft: Any, lender: Lender, opened: Callable[..., Any], **options: Any) -> Any:
    converted = convert(opened(draft), lender, **options)
    name = VerifierName(lender.name, lender.facts.architectures)
    write_checkpoint(folder, speculators_config(converted.draft, name, STEPS, converted.dtype), converted.tensors)
    assert check_checkpoint(folder) == []
    return converted


@pytest.mark.parametrize(("layout", "options", "format_", "feeds_normed"), CASES)
def test_a_converted_draft_proposes_what_its_source_proposes(
    layout, options, format_, feeds_normed, make_draft, lender, opened, tmp_path
):
    draft = make_draft(layout, **options)
    converted = written(tmp_path / "ours", draft, lender, opened, format=format_)
    assert layout == converted.found.candidate.importer.NAME
    embeddings = draft.tensors.get("embed_tokens.weight", lender.lend("embedding").float())
    ids, aux = torch.randint(0, 300, (TOKENS,)), torch.randn(TOKENS, 96)
    chain, logits = Source(draft.config, draft.tensors, embeddings).chain(ids, aux, feeds_normed=feeds_normed)
    ours, our_logits = proposed(tmp_path / "ours", ids, aux)
    torch.testing.assert_close(our_logits, logits, atol=2e-4, rtol=1e-3)
    assert ours == chain
    assert len(set(chain)) > 1


def test_an_old_checkpoint_of_ours_proposes_as_vllm_reads_its_config(old_draft, lender, opened, tmp_path):
    converted = written(tmp_path / "ours", old_draft, lender, opened)
    layer = old_draft.config["transformer_layer_config"]
    flat = {**layer, "norm_before_residual": True}
    ids, aux = torch.randint(0, 300, (TOKENS,)), torch.randn(TOKENS, 96)
    source = Source(flat, old_draft.tensors, lender.lend("embedding").float())
    chain, logits = source.chain(ids, aux, feeds_normed=False)
    ours, our_logits = proposed(tmp_path / "ours", ids, aux)
    torch.testing.assert_close(our_logits, logits, atol=2e-4, rtol=1e-3)
    assert ours == chain
    assert "config.json did not say norm_output; taken: false, as vLLM does" in converted.summary
    assert "auto_map is left out of config.json: nothing reads it" in converted.summary
