"""P-EAGLE as vLLM loads it by itself: in, the same proposals, and back bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.convert import convert
from speculators.checkpoints.describe import describe
from speculators.checkpoints.exporters import exported, write_export
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers import candidates
from speculators.checkpoints.load import load_draft, proposal_of, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.errors import UsageError

HEADS, GROUPS, D, TOKENS, MASK, K = 4, 2, 8, 9, 299, 4


@pytest.fixture
def make(make_draft):
    """Two layers, the second of them an ordinary one."""

    def build(*, prefix: str = "layers.0.", shape: tuple[int, ...] = (1, 96), **changes: Any) -> Any:
        draft = make_draft("eagle3", **{"num_hidden_layers": 2, "ptd_token_id": MASK, **changes})
        tensors = {
            name.replace("midlayer.", prefix) if name.startswith("midlayer.") else name: value
            for name, value in draft.tensors.items()
        }
        for name, value in list(tensors.items()):
            if name.startswith(prefix) and "hidden_norm" not in name:
                wide = name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
                tensors[name.replace(prefix, "layers.1.")] = torch.randn_like(value[:, :32] if wide else value) * 0.3
        tensors["mask_hidden"] = torch.randn(shape)
        return type(draft)(draft.config, tensors)

    return build


def ours(folder, converted, lender):
    name = VerifierName(lender.name, lender.facts.architectures)
    write_checkpoint(folder, speculators_config(converted.draft, name, K, converted.dtype), converted.tensors)
    assert check_checkpoint(folder) == []
    return folder


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def rotated(x: torch.Tensor) -> torch.Tensor:
    """x [n, heads, d] at positions 0, 1, ..."""
    turn = 10000.0 ** (-2 * torch.arange(D // 2, dtype=torch.float64) / D)
    angle = (torch.arange(len(x), dtype=torch.float64)[:, None] * turn)[:, None].float()
    first, second = x.chunk(2, -1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def attention(t: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (
        (x @ t[f"{name}self_attn.{one}_proj.weight"].T).view(len(x), count, D)
        for one, count in (("q", HEADS), ("k", GROUPS), ("v", GROUPS))
    )
    q, k = rotated(q), rotated(k)
    out = torch.zeros(len(x), HEADS, D)
    for row in range(len(x)):
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            weights = torch.softmax(k[: row + 1, group] @ q[row, head] / D**0.5, -1)
            out[row, head] = weights @ v[: row + 1, group]
    return out.flatten(1) @ t[f"{name}self_attn.o_proj.weight"].T


def mlp(t: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    gate, up, down = (t[f"{name}mlp.{one}_proj.weight"] for one in ("gate", "up", "down"))
    return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def proposed(t: dict[str, torch.Tensor], embeddings: torch.Tensor, ids: torch.Tensor, aux: torch.Tensor) -> list[int]:
    """All tokens known so far and K - 1 masked ones in one causal pass; the last K positions predict."""
    ids = torch.cat([ids, torch.full((K - 1,), MASK)])
    state = torch.cat([aux, t["mask_hidden"].view(1, -1).expand(K - 1, -1)]) @ t["fc.weight"].T
    first = "midlayer." if "midlayer.hidden_norm.weight" in t else "layers.0."
    read = [rms(embeddings[ids], t[f"{first}input_layernorm.weight"]), rms(state, t[f"{first}hidden_norm.weight"])]
    state = state + attention(t, first, torch.cat(read, -1))
    state = state + mlp(t, first, rms(state, t[f"{first}post_attention_layernorm.weight"]))
    state = state + attention(t, "layers.1.", rms(state, t["layers.1.input_layernorm.weight"]))
    state = state + mlp(t, "layers.1.", rms(state, t["layers.1.post_attention_layernorm.weight"]))
    chosen = (rms(state[-K:], t["norm.weight"]) @ t["lm_head.weight"].T).argmax(-1)
    return (chosen + t["d2t"][chosen]).tolist()


@pytest.mark.parametrize("prefix", ["layers.0.", "midlayer."])
def test_a_converted_draft_proposes_what_its_source_proposes(prefix, make, lender, opened, tmp_path):
    draft = make(prefix=prefix)
    folder = ours(tmp_path / "ours", convert(opened(draft), lender), lender)
    ids, aux = torch.randint(0, 300, (TOKENS,)), torch.randn(TOKENS, 96)
    proposal = proposal_of(load_draft(folder))
    found = proposal.propose(proposal.new_cache(1, 32), torch.tensor([0]), ids[None], aux[None], [0], [TOKENS], K, None)
    theirs = proposed(draft.tensors, lender.lend("embedding").float(), ids, aux)
    assert found[0].tolist() == theirs
    assert len(set(theirs)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"prefix": "midlayer."}, {"shape": (1, 1, 96)}, {"shape": (96,)}, {"own_embeddings": True}]
)
def test_a_draft_comes_back_as_it_was(options, dtype, make, lender, opened, tmp_path):
    draft = make(**options)
    draft.tensors.update({name: one.to(dtype) for name, one in draft.tensors.items() if one.is_floating_point()})
    folder = ours(tmp_path / "ours", convert(opened(draft), lender), lender)
    write_export(read_checkpoint(folder), "peagle", tmp_path / "back")
    back = Foreign.open(tmp_path / "back")
    assert back.config == draft.config
    assert set(back.headers) == set(draft.tensors)
    for name, value in draft.tensors.items():
        assert back.headers[name].shape == value.shape
        assert torch.equal(back.read(name), value), name


def test_a_draft_in_our_words_is_said_anew(make, lender, opened, tmp_path):
    converted = convert(opened(make()), lender)
    plain = {key: value for key, value in converted.draft.items() if key != "converted_from"}
    name = VerifierName(lender.name, lender.facts.architectures)
    write_checkpoint(tmp_path / "ours", speculators_config(plain, name, K, "float32"), converted.tensors)
    write_export(read_checkpoint(tmp_path / "ours"), "peagle", tmp_path / "theirs")
    theirs = Foreign.open(tmp_path / "theirs")
    assert (theirs.config["ptd_token_id"], theirs.config["num_aux_hidden_states"]) == (MASK, 3)
    told = describe(theirs)
    assert told.format == "peagle"
    assert any('"parallel_drafting": true' in problem for problem in told.problems)
    again = convert(theirs, lender)
    assert {key: value for key, value in again.draft.items() if key != "converted_from"} == plain
    assert all(torch.equal(value, converted.tensors[key]) for key, value in again.tensors.items())


def test_it_is_told_by_its_masked_state(make, opened):
    (found,) = candidates(opened(make()))
    assert found.line == (
        "peagle: it has a state for tokens that are not known yet (mask_hidden), its config says ptd_token_id"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ptd_token_id": None}, r"does not say which token is masked \(ptd_token_id, pard_token, mask_token_id\)"),
        ({"pard_token": 7}, "names several masked tokens: ptd_token_id 299, pard_token 7"),
        ({"ptd_token_id": 300}, "`mask_token_id` is 300, the verifier has 300 tokens"),
        ({"shape": (1, 64)}, r"mask_hidden has the shape \[1, 64\]; .* \[1, 1, 96\]"),
        ({"num_hidden_layers": 1}, "source holds layers.1.*, which a P-EAGLE draft"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, message, make, lender, opened):
    with pytest.raises(UsageError, match=message):
        convert(opened(make(**options)), lender)


def test_norms_that_readers_do_not_know_are_refused(make, lender, opened, tmp_path):
    converted = convert(opened(make()), lender)
    config = speculators_config({**converted.draft, "norm_output": True}, VerifierName("a/b", ()), K, "float32")
    write_checkpoint(tmp_path / "ours", config, converted.tensors)
    with pytest.raises(UsageError, match="has norm_output: the normed output is fed back"):
        exported(read_checkpoint(tmp_path / "ours"), "peagle")
