"""What slow references of several drafts share: their layers as plain matrices and masks, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from speculators.algorithms.base import Batch
from speculators.algorithms.building import build_objective
from speculators.algorithms.mtp import network as mtp
from speculators.data.hidden_states import NOT_TAKEN
from speculators.data.vocabulary import Coverage, DraftVocabulary, membership, offsets
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.load import load_recipe
from speculators.verifiers.weights import VerifierWeights

EPS, V, H = 1e-5, 50, 24


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight


def turned(x: torch.Tensor, positions: torch.Tensor, theta: float = 100.0) -> torch.Tensor:
    """x [n, heads, d] at `positions` [n], pairs (i, i + d/2), the tables rounded to float32 as everywhere."""
    d = x.shape[-1]
    angles = positions[:, None].float() * (1.0 / theta ** (torch.arange(0, d, 2).float() / d))
    cos, sin = angles.cos().double()[:, None], angles.sin().double()[:, None]
    first, second = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """q [n, heads, d] over k and v [m, kv, d] where `seen` [n, m]: [n, heads * d]."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, v).flatten(1)


def mlp(w: dict[str, torch.Tensor], prefix: str, x: torch.Tensor) -> torch.Tensor:
    gate, up, down = (w[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


@pytest.fixture
def plain() -> SimpleNamespace:
    return SimpleNamespace(rms=rms, turned=turned, attend=attend, mlp=mlp)


MASKS = {
    "one document": ["000011111111"],
    "several documents": ["0001111", "00000111111", "011", "0000000", "0111111111111", "1", "01"],
    "gaps": ["0001110000111101", "1111100001", "0011011101111"],
    "short answers": ["00110011000110", "0001", "00111", "0011"],
}


def batch_for(masks: list[str], seed: int = 0, streams: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([flag == "1" for flag in "".join(masks)])
    n = len(mask)
    answered = torch.tensor([flag == "1" for one in masks for flag in f"{one[1:]}0"])
    return Batch(
        lengths=tuple(len(one) for one in masks),
        input_ids=torch.randint(0, V, (n,), generator=generator),
        loss_mask=mask,
        aux=torch.randn(n, streams * H, generator=generator, dtype=torch.float64),
        last=torch.randn(n, H, generator=generator, dtype=torch.float64),
        argmax=torch.where(answered, torch.randint(0, V, (n,), generator=generator), NOT_TAKEN),
    )


@pytest.fixture(params=list(MASKS))
def batch(request: pytest.FixtureRequest) -> Batch:
    """Packed documents, one character of the mask a token."""
    return batch_for(MASKS[request.param])


@pytest.fixture
def make_batch():
    return batch_for


@pytest.fixture
def head() -> VerifierHead:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64) * 0.5
    return VerifierHead(weight, 1 + 0.2 * torch.randn(H, generator=generator, dtype=torch.float64), EPS)


@pytest.fixture
def divergence(head: VerifierHead):
    """KL(p‖q) at a row: the verifier's stream `last` [h] and the draft's logits [Vd] over the ids `kept`."""

    def kl(last: torch.Tensor, logits: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        p = (head.weight[kept] @ rms(last, head.norm)).softmax(0)
        return (p * (p.log() - logits.log_softmax(0))).sum()

    return kl


@pytest.fixture
def randomly_filled():
    """Random weights everywhere, norms included, and some verifier ids as the draft's vocabulary, if it has one."""

    def fill(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(1 + noise if parameter.dim() == 1 else noise)
        if hasattr(network, "t2d"):
            size = len(network.d2t)
            kept = torch.randperm(len(network.t2d), generator=generator)[:size].sort().values
            network.t2d[kept] = True
            network.d2t.copy_(kept - torch.arange(size))
        return network

    return fill


@pytest.fixture
def shape() -> dict:
    """The sizes of the references' drafts."""
    return {
        "hidden_size": H,
        "intermediate_size": 40,
        "attention_heads": 6,
        "key_value_heads": 2,
        "head_dim": 4,
        "vocab_size": V,
        "draft_vocab_size": 32,
        "aux_layers": (1, 2, 4),
        "rope": {"rope_type": "default", "rope_theta": 100.0},
        "rms_norm_eps": EPS,
        "max_position_embeddings": 256,
    }


LAST = ("eagle", "hass", "medusa", "hydra", "mlp_speculator", "mtp", "draft_model")
"""Those that read the verifier's last state alone."""
WHOLE = ("eagle", "hass", "dflash2", "mlp_speculator", "mtp", "draft_model")
"""Those that have the verifier's whole vocabulary."""


@pytest.fixture
def objective_of(head: VerifierHead, monkeypatch: pytest.MonkeyPatch):
    """The training of any algorithm, from what a recipe says of it; over 30 tokens, where it may have fewer than all.

    The verifier's head can be another than the fixture `head`.
    """

    def written_head(config, weights):
        torch.manual_seed(0)
        return config, mtp.MtpNetwork(config).state_dict()

    monkeypatch.setattr(mtp, "read_head", written_head)
    facts = SimpleNamespace(
        layers=6, hidden_size=H, intermediate_size=40, attention_heads=6, key_value_heads=2, head_dim=4, vocab_size=V,
        rope={"rope_type": "default", "rope_theta": 100.0}, rms_norm_eps=EPS, max_position_embeddings=256,
        model_type="mimo", mtp_layers=1, mixture=None, latent=None, bos_token_id=None, eos_token_ids=(),
    )  # fmt: skip

    def build(said: str, weight: torch.Tensor | None = None):
        name = said.partition(",")[0].removeprefix("type: ")
        layers = "" if name in LAST else ", aux_layers: [1, 2, 4]"
        reduced = [] if name in WHOLE else ["algorithm.draft_vocab_size=30"]
        options = load_recipe("tiny", sets=[f"algorithm={{{said}{layers}}}", *reduced]).recipe.algorithm
        embedding = torch.randn(V, H, generator=torch.Generator().manual_seed(0))
        shown = (head.weight if weight is None else weight).float()
        size = V if name in WHOLE else 30
        kept = torch.arange(size)
        maps = (None, None) if size == V else (offsets(kept), membership(kept, V))
        return build_objective(
            options,
            facts,
            VerifierWeights(embedding, shown, head.norm.float(), head.eps),
            DraftVocabulary(size, V, *maps, Coverage(1.0, 1.0)),
            aux_layers=(1, 2, 4),
            precision="float32",
            seed=0,
        )

    return build
