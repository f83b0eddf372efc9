"""DFlash, its second version and DSpark as their authors release them: in, the same proposals, and back bit for bit."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from speculators.algorithms import load
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.convert import convert
from speculators.checkpoints.describe import describe
from speculators.checkpoints.exporters import exported, write_export
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers import candidates
from speculators.checkpoints.load import load_draft, proposal_of, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.errors import UsageError
from speculators.recipe.load import load_recipe

H, INNER, HEADS, GROUPS, D, V, MASK, TOKENS = 32, 48, 4, 2, 16, 300, 299, 11
TAPS, GROUP, RANK, TOP = 2, 8, 6, 5
MARKOV = 6
FORMAT = {"dflash": "dflash", "dflash2": "dflash", "dspark": "dspark"}


def source_config(kind: str, **changes: Any) -> dict[str, Any]:
    """As the authors' releases have it, in small; keys that are None are left out."""
    found: dict[str, Any] = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "float32",
        "head_dim": D,
        "hidden_act": "silu",
        "hidden_size": H,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "layer_types": ["full_attention"] * 2,
        "max_position_embeddings": 64,
        "max_window_layers": 5,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": 2,
        "num_key_value_heads": GROUPS,
        "num_target_layers": 9,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": V,
    }
    layers = {"mask_token_id": MASK, "target_layer_ids": [1, 3, 6]}
    if kind == "dspark":
        found |= {"architectures": ["Qwen3DSparkModel"], "block_size": 4, "num_anchors": 512, **layers}
        found |= {"markov_rank": MARKOV, "markov_head_type": "vanilla"}
        found |= {"enable_confidence_head": True, "confidence_head_with_markov": True}
    elif kind == "dflash2":
        second = {"conv_kernel_size": TAPS, "conv_group_size": GROUP, "selector_rank": RANK, "selector_top_k": TOP}
        found |= {"architectures": ["DFlash2DraftModel"], "dflash_config": {"block_size": 5, **second, **layers}}
    else:
        found |= {"architectures": ["DFlashDraftModel"], "block_size": 5, "dflash_config": layers}
        found |= {"auto_map": {"AutoModel": "dflash.DFlashDraftModel"}}
    return {key: value for key, value in {**found, **changes}.items() if value != "absent"}


def source_tensors(kind: str, *, fused: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (H, 3 * H)}
    for number in range(2):
        name = f"layers.{number}."
        shapes |= {f"{name}self_attn.{one}_proj.weight": (GROUPS * D, H) for one in "kv"}
        shapes |= {f"{name}self_attn.q_proj.weight": (HEADS * D, H), f"{name}self_attn.o_proj.weight": (H, HEADS * D)}
        shapes |= {f"{name}mlp.{one}_proj.weight": (INNER, H) for one in ("gate", "up")}
        shapes[f"{name}mlp.down_proj.weight"] = (H, INNER)
        if kind == "dflash2":
            for place in ("attention_conv", "mlp_conv"):
                shapes[f"{name}{place}.base_kernel"] = (2, TAPS, H)
                shapes[f"{name}{place}.kernel_projection.weight"] = (2 * TAPS * H // GROUP, H)
    if kind == "dflash2":
        shapes |= {f"candidate_selector.{one}_codebook": (V, RANK) for one in ("predecessor", "successor")}
        shapes["candidate_selector.hidden_projection.weight"] = (RANK, H)
    if kind == "dspark":
        shapes |= {"markov_head.markov_w1.weight": (V, MARKOV), "markov_head.markov_w2.weight": (V, MARKOV)}
        shapes |= {"confidence_head.proj.weight": (1, H + MARKOV), "confidence_head.proj.bias": (1,)}
    found = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    norms = {"hidden_norm": H, "norm": H}
    for number in range(2):
        norms |= {f"layers.{number}.{one}_layernorm": H for one in ("input", "post_attention")}
        norms |= {f"layers.{number}.self_attn.{one}_norm": D for one in "qk"}
    found |= {f"{name}.weight": 1 + 0.3 * torch.randn(size) for name, size in norms.items()}
    for number in range(2 if fused else 0):
        attention = f"layers.{number}.self_attn."
        found[f"{attention}qkv_proj.weight"] = torch.cat([found.pop(f"{attention}{one}_proj.weight") for one in "qkv"])
    return found


@pytest.fixture
def make(make_draft, lender):
    """A source in memory; DSpark's repeats the verifier's embedding and head, as its authors' do."""

    def build(kind: str, *, fused: bool = False, **changes: Any) -> Any:
        tensors = source_tensors(kind, fused=fused)
        if kind == "dspark":
            tensors |= {"embed_tokens.weight": lender.lend("embedding"), "lm_head.weight": lender.lend("head")}
        return type(make_draft("eagle3"))(source_config(kind, **changes), tensors)

    return build


def ours(folder: Path, converted: Any, lender: Any) -> Path:
    name = VerifierName(lender.name, lender.facts.architectures)
    tokens = converted.found.translation.speculative_tokens
    write_checkpoint(folder, speculators_config(converted.draft, name, tokens, converted.dtype), converted.tensors)
    assert check_checkpoint(folder) == []
    return folder


# The sources' forward passes, from their own names.


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def turned(x: torch.Tensor, first: int) -> torch.Tensor:
    """x [n, heads, d] at positions from `first`, channel i paired with i + d / 2."""
    out, half = x.clone(), D // 2
    for row in range(len(x)):
        for pair in range(half):
            angle = (first + row) * 1000000 ** (-2 * pair / D)
            one, two = x[row, :, pair], x[row, :, pair + half]
            out[row, :, pair] = one * math.cos(angle) - two * math.sin(angle)
            out[row, :, pair + half] = two * math.cos(angle) + one * math.sin(angle)
    return out


class Source:
    def __init__(self, draft: Any, embeddings: torch.Tensor, head: torch.Tensor) -> None:
        self.config, self.tensors, self.embeddings, self.head = draft.config, dict(draft.tensors), embeddings, head
        for name in [name for name in self.tensors if "qkv_proj" in name]:
            parts = self.tensors.pop(name).split([HEADS * D, GROUPS * D, GROUPS * D])
            self.tensors |= {name.replace("qkv", one): part for one, part in zip("qkv", parts, strict=True)}

    def convolved(self, name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What a sublayer reads, and the kernel for what it gives; None: there is no convolution."""
        if f"{name}.base_kernel" not in self.tensors:
            return None
        dynamic = (x @ self.tensors[f"{name}.kernel_projection.weight"].T).view(len(x), 2, TAPS, H // GROUP)
        return self.applied(name, 0, x, dynamic[:, 0]), dynamic[:, 1]

    def applied(self, name: str, which: int, x: torch.Tensor, dynamic: torch.Tensor) -> torch.Tensor:
        base, out = self.tensors[f"{name}.base_kernel"][which], torch.zeros_like(x)
        for row in range(len(x)):
            for tap in range(min(TAPS, row + 1)):
                out[row] += (base[tap] + dynamic[row, tap].repeat_interleave(GROUP)) * x[row - tap]
        return out

    def seen(self, number: int, row: int, keys: int, context: int) -> torch.Tensor:
        """Which of the keys slot `row` of a block attends to."""
        position, others = context + row, torch.arange(keys)
        if self.config["layer_types"][number] == "full_attention":
            return others >= 0
        near = position - others < self.config["sliding_window"]
        return near if self.config.get("is_causal") is False else near & (others <= position)

    def attended(self, name: str, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        w = {one: self.tensors[f"{name}{one}_proj.weight"] for one in "qkvo"}
        every = torch.cat([context, x])
        q = turned(rms((x @ w["q"].T).view(-1, HEADS, D), self.tensors[f"{name}q_norm.weight"]), len(context))
        k = turned(rms((every @ w["k"].T).view(-1, GROUPS, D), self.tensors[f"{name}k_norm.weight"]), 0)
        v = (every @ w["v"].T).view(-1, GROUPS, D)
        rows = []
        for slot in range(len(x)):
            parts = []
            seen = self.seen(int(name.split(".")[1]), slot, len(every), len(context))
            for head in range(HEADS):
                group = head * GROUPS // HEADS
                scores = (k[:, group] @ q[slot, head] / math.sqrt(D)).masked_fill(~seen, -math.inf)
                parts.append(torch.softmax(scores, -1) @ v[:, group])
            rows.append(torch.cat(parts))
        return torch.stack(rows) @ w["o"].T

    def hidden(self, aux: torch.Tensor, anchor: int, size: int) -> torch.Tensor:
        """Normed states of a block after `aux` [T, 3h]."""
        context = rms(aux @ self.tensors["fc.weight"].T, self.tensors["hidden_norm.weight"])
        state = self.embeddings[torch.tensor([anchor, *[MASK] * (size - 1)])]
        for number in range(2):
            name = f"layers.{number}."
            x = rms(state, self.tensors[f"{name}input_layernorm.weight"])
            mixed = self.convolved(f"{name}attention_conv", x)
            y = self.attended(f"{name}self_attn.", x if mixed is None else mixed[0], context)
            state = state + (y if mixed is None else self.applied(f"{name}attention_conv", 1, y, mixed[1]))
            x = rms(state, self.tensors[f"{name}post_attention_layernorm.weight"])
            mixed = self.convolved(f"{name}mlp_conv", x)
            x = x if mixed is None else mixed[0]
            gate, up, down = (self.tensors[f"{name}mlp.{one}_proj.weight"] for one in ("gate", "up", "down"))
            y = (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
            state = state + (y if mixed is None else self.applied(f"{name}mlp_conv", 1, y, mixed[1]))
        return rms(state, self.tensors["norm.weight"])

    def dflash(self, aux: torch.Tensor, anchor: int) -> list[int]:
        return (self.hidden(aux, anchor, 5)[1:] @ self.head.T).argmax(-1).tolist()

    def dflash2(self, aux: torch.Tensor, anchor: int) -> list[int]:
        t, path, before = self.tensors, [], anchor
        for state in self.hidden(aux, anchor, 5)[1:]:
            scores, ids = torch.topk(self.head @ state, TOP)
            mixed = t["candidate_selector.predecessor_codebook"][before] * (
                t["candidate_selector.hidden_projection.weight"] @ state
            )
            before = int(ids[(scores + t["candidate_selector.successor_codebook"][ids] @ mixed).argmax()])
            path.append(before)
        return path

    def dspark(self, aux: torch.Tensor, anchor: int) -> list[int]:
        t, path, before = self.tensors, [], anchor
        for state in self.hidden(aux, anchor, 4):
            bias = t["markov_head.markov_w2.weight"] @ t["markov_head.markov_w1.weight"][before]
            before = int((self.head @ state + bias).argmax())
            path.append(before)
        return path


SLIDING = {"sliding_window": 6, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("dflash", {}),
    ("dflash", {"fused": True}),
    ("dflash", SLIDING),
    ("dflash", {**SLIDING, "is_causal": False}),
    ("dflash2", {}),
    ("dspark", {}),
]


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_a_converted_draft_proposes_what_its_source_proposes(kind, changes, make, lender, opened, tmp_path):
    draft = make(kind, **changes)
    converted = convert(opened(draft), lender)
    assert converted.draft["speculators_model_type"] == kind
    folder = ours(tmp_path / "ours", converted, lender)
    source = Source(draft, lender.lend("embedding").float(), lender.lend("head").float())
    proposal, several = proposal_of(load_draft(folder)), set()
    for anchor in range(0, V, 60):
        aux = torch.randn(TOKENS, 3 * H, generator=torch.Generator().manual_seed(anchor))
        theirs = getattr(source, kind)(aux, anchor)
        next_ids = torch.randint(0, V, (1, TOKENS))
        next_ids[0, -1] = anchor
        cache, rows = proposal.new_cache(1, 32), torch.tensor([0])
        found = proposal.propose(cache, rows, next_ids, aux[None], [0], [TOKENS], len(theirs), None)
        assert found[0].tolist() == theirs
        several |= set(theirs)
    assert len(several) > 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_a_draft_comes_back_as_it_was(kind, changes, dtype, make, lender, opened, tmp_path):
    draft = make(kind, **changes, dtype=str(dtype).removeprefix("torch."))
    draft.tensors.update({name: value.to(dtype) for name, value in draft.tensors.items()})
    folder = ours(tmp_path / "ours", convert(opened(draft), lender), lender)
    written = write_export(read_checkpoint(folder), FORMAT[kind], tmp_path / "back")
    back = Foreign.open(tmp_path / "back")
    assert (written.tensors, written.left_out) == (len(draft.tensors), ())
    assert back.config == draft.config
    assert set(back.headers) == set(draft.tensors)
    for name, value in draft.tensors.items():
        assert back.read(name).dtype == value.dtype
        assert torch.equal(back.read(name), value), name


@pytest.mark.parametrize("kind", list(FORMAT))
def test_a_draft_of_ours_goes_out_is_told_and_comes_back(kind, lender, tmp_path):
    torch.manual_seed(0)
    options = load_recipe("tiny", sets=[f"algorithm={{type: {kind}, aux_layers: [1, 2, 3]}}"]).recipe.algorithm
    module = load(kind, "config")
    shape = module.Config.for_verifier(lender.facts, options, draft_vocab_size=V, aux_layers=(2, 5, 7))
    network = load(kind, "network").Network(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    name = VerifierName(lender.name, lender.facts.architectures)
    config = speculators_config(shape.to_config_json(), name, shape.proposed, "float32")
    write_checkpoint(tmp_path / "ours", config, network.state_dict())
    before = read_checkpoint(tmp_path / "ours")
    write_export(before, FORMAT[kind], tmp_path / "theirs")
    theirs = Foreign.open(tmp_path / "theirs")
    assert describe(theirs).format == FORMAT[kind]
    section = theirs.config if kind == "dspark" else theirs.config["dflash_config"]
    assert section["target_layer_ids"] == [1, 4, 6]
    converted = convert(theirs, lender)
    assert {key: value for key, value in converted.draft.items() if key != "converted_from"} == shape.to_config_json()
    assert converted.found.translation.speculative_tokens == shape.proposed
    assert converted.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(value, before.tensors[name]) for name, value in converted.tensors.items())


def test_copies_of_the_verifier_s_are_named_and_left_out_where_it_is_not_here(make, lender, opened, tmp_path):
    converted = convert(opened(make("dspark")), lender)
    assert "embed_tokens.weight is dropped: it is the verifier's own embedding" in converted.summary
    assert "lm_head.weight" not in converted.tensors
    config = speculators_config(converted.draft, VerifierName("org/elsewhere", ()), 4, converted.dtype)
    write_checkpoint(tmp_path / "ours", config, converted.tensors)
    written = write_export(read_checkpoint(tmp_path / "ours"), "dspark", tmp_path / "back")
    assert written.left_out == ("embed_tokens.weight", "lm_head.weight")


def test_layers_are_those_that_streams_enter_and_the_block_says_how_many_are_drafted(make, lender, opened):
    dflash = convert(opened(make("dflash")), lender)
    assert dflash.draft["aux_hidden_state_layer_ids"] == [2, 4, 7]
    assert (dflash.draft["block_size"], dflash.found.translation.speculative_tokens) == (5, 4)
    assert dflash.draft["transformer_layer_config"]["rope_parameters"]["rope_theta"] == 1000000.0
    dspark = convert(opened(make("dspark")), lender)
    assert (dspark.draft["block_size"], dspark.found.translation.speculative_tokens) == (4, 4)


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("dflash", "dflash: its layers share one norm of .* its config has a dflash_config"),
        ("dflash2", "dflash: .*, it has the second version's convolutions and candidate selector"),
        ("dspark", "dspark: .*, it has a Markov head"),
    ],
)
def test_a_source_is_told_with_its_reasons(kind, reasons, make, opened):
    (found,) = candidates(opened(make(kind)))
    assert re.match(reasons, found.line)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("dflash", {"hidden_size": 48}, "a verifier with a hidden size of 48, and this one's is 32"),
        ("dflash", {"vocab_size": 299}, "a vocabulary size of 299, and this one's is 300"),
        ("dflash", {"num_target_layers": 36}, "a number of layers of 36, and this one's is 9"),
        ("dflash", {"dflash_config": {"mask_token_id": MASK}}, r"which layers are read \(target_layer_ids\)"),
        ("dflash", {"dflash_config": {"target_layer_ids": [1, 3, 6]}}, r"which token is masked \(mask_token_id\)"),
        ("dflash", {"dflash_config": {"mask_token_id": 1, "target_layer_ids": [3, 1, 6]}}, "in the verifier's order"),
        ("dflash", {"dflash_config": {"mask_token_id": 1, "target_layer_ids": [1, 3, 9]}}, "layer 10; the verifier"),
        ("dflash", {"dflash_config": {"mask_token_id": 1, "target_layer_ids": [1, 3, 8]}}, "verifier's last layer"),
        (
            "dflash",
            {"dflash_config": {"mask_token_id": 1, "target_layer_ids": [1], "new": 1}},
            "says new, which is not",
        ),
        ("dflash", {"final_logit_softcapping": 20.0}, "has final_logit_softcapping: 20.0"),
        ("dflash", {"is_causal": True}, "is causal within a block"),
        ("dflash", {"hidden_act": "gelu"}, "activation is silu"),
        ("dflash", {"intermediate_size": 64}, r"gate_proj.weight has the shape \[48, 32\]; .* \[64, 32\]"),
        ("dflash", {"num_hidden_layers": 1}, "source holds layers.1.input_layernorm"),
        ("dflash", {"num_hidden_layers": 3}, "source lacks layers.2.self_attn"),
        ("dflash2", {"dflash_config": {"mask_token_id": 1, "target_layer_ids": [1, 3, 6]}}, "conv_kernel_size"),
        ("dspark", {"markov_head_type": "gated"}, "lacks markov_head.gate_proj.weight"),
        ("dspark", {"markov_head_type": "new"}, "'new'"),
        ("dspark", {"markov_rank": 0}, "block_size and a markov_rank"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind, changes, message, make, lender, opened):
    with pytest.raises(UsageError, match=message):
        convert(opened(make(kind, **changes)), lender)


def test_a_head_that_was_trained_is_refused(make, lender, opened):
    draft = make("dspark")
    draft.tensors["lm_head.weight"] = draft.tensors["lm_head.weight"] + 1
    with pytest.raises(UsageError, match=r"lm_head\.weight is not the head of .*trained with one of its own"):
        convert(opened(draft), lender)


def test_an_unknown_tensor_and_one_that_is_there_twice_are_refused(make, lender, opened):
    draft = make("dflash")
    draft.tensors["layers.0.self_attn.sinks"] = torch.zeros(HEADS)
    with pytest.raises(UsageError, match=r"holds layers\.0\.self_attn\.sinks, which a dflash draft"):
        convert(opened(draft), lender)
    draft = make("dflash", fused=True)
    draft.tensors["layers.1.self_attn.q_proj.weight"] = torch.zeros(HEADS * D, H)
    with pytest.raises(UsageError, match=r"q_proj\.weight and, with others in one, .*qkv_proj"):
        convert(opened(draft), lender)


def test_a_block_size_that_is_not_said_is_the_authors_and_told(make, lender, opened):
    converted = convert(opened(make("dflash", block_size="absent")), lender)
    assert converted.draft["block_size"] == 16
    assert "config.json does not say block_size; taken: 16, as its authors do" in converted.summary


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("dflash", {"sample_from_anchor": True}, "would leave its token out"),
        ("dflash", {"aux_hidden_state_layer_ids": [0, 4, 7]}, "layer id 0"),
        ("dflash", {"draft_vocab_size": 40}, "has 40 of the verifier's 300 tokens"),
        ("dspark", {"sample_from_anchor": False}, "would take its token"),
    ],
)
def test_what_a_format_cannot_say_is_refused(kind, change, message, make, lender, opened, tmp_path):
    converted = convert(opened(make(kind)), lender)
    config = speculators_config({**converted.draft, **change}, VerifierName(lender.name, ()), 3, "float32")
    write_checkpoint(tmp_path / "ours", config, converted.tensors)
    with pytest.raises(UsageError, match=message):
        exported(read_checkpoint(tmp_path / "ours"), FORMAT[kind])


@pytest.mark.parametrize(("head", "is_served"), [("vanilla", True), ("gated", False), ("rnn", False)])
def test_a_markov_head_that_vllm_does_not_have_is_said(head, is_served, make, opened):
    problems = describe(opened(make("dspark", markov_head_type=head))).problems
    assert any('"method": "dspark"' in problem for problem in problems) is is_served
    assert (f"vLLM does not load dspark with a Markov head of the type {head}" in problems) is not is_served
