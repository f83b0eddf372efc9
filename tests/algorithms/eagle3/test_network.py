from collections.abc import Callable

import pytest
import torch

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.data.vocabulary import Coverage, DraftVocabulary
from speculators.errors import UsageError
from speculators.verifiers.weights import VerifierWeights

Build = Callable[..., Eagle3Network]
BuildConfig = Callable[..., Eagle3Config]

H, A, KV, INTERMEDIATE, V, VD = 24, 3, 8, 40, 50, 32


def test_parameters_have_the_names_and_shapes_of_the_format(tiny_network: Build) -> None:
    network = tiny_network(norm_before_fc=True, fc_norm=True, layers=2)
    block = {
        "post_attention_layernorm.weight": (H,),
        "input_layernorm.weight": (H,),
        "self_attn.o_proj.weight": (H, H),
        "mlp.gate_proj.weight": (INTERMEDIATE, H),
        "mlp.up_proj.weight": (INTERMEDIATE, H),
        "mlp.down_proj.weight": (H, INTERMEDIATE),
    }
    expected: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (V, H),
        "fc.weight": (H, A * H),
        "input_norm.weight": (A * H,),
        **{f"fc_norm.{number}.weight": (H,) for number in range(A)},
        "layers.0.hidden_norm.weight": (H,),
        **{f"layers.{layer}.{name}": shape for layer in (0, 1) for name, shape in block.items()},
        **{
            f"layers.{layer}.self_attn.{name}_proj.weight": (width, (2 - layer) * H)
            for layer in (0, 1)
            for name, width in {"q": H, "k": KV, "v": KV}.items()
        },
        "norm.weight": (H,),
        "lm_head.weight": (VD, H),
        "d2t": (VD,),
        "t2d": (V,),
    }
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected
    assert network.d2t.dtype == torch.int64
    assert network.t2d.dtype == torch.bool


def test_a_full_vocabulary_has_no_maps_and_absent_norms_no_parameters(tiny_network: Build) -> None:
    names = set(tiny_network(draft_vocab_size=V).state_dict())
    assert not names & {"d2t", "t2d", "input_norm.weight", "fc_norm.0.weight"}
    assert tiny_network(draft_vocab_size=V).target_ids is None


def test_d2t_holds_offsets(tiny_network: Build) -> None:
    network = tiny_network()
    assert network.target_ids is not None
    assert network.target_ids.tolist() == network.t2d.nonzero()[:, 0].tolist()


def test_a_fresh_draft_starts_with_the_verifiers_embedding_head_rows_and_norm(tiny_config: BuildConfig) -> None:
    network = Eagle3Network(tiny_config())
    embedding, head, norm = torch.randn(V, H), torch.randn(V, H), torch.randn(H)
    kept = torch.arange(0, V)[-VD:]
    t2d = torch.zeros(V, dtype=torch.bool).index_fill_(0, kept, True)
    reduced = DraftVocabulary(VD, V, kept - torch.arange(VD), t2d, Coverage(1.0, 1.0))
    network.start_from(VerifierWeights(embedding, head, norm, 1e-5), reduced, torch.Generator().manual_seed(1))
    assert torch.equal(network.d2t, kept - torch.arange(VD))
    assert torch.equal(network.t2d, t2d)
    assert torch.equal(network.embed_tokens.weight, embedding)
    assert torch.equal(network.lm_head.weight, head[kept])
    assert torch.equal(network.norm.weight, norm)
    assert torch.equal(network.layer(0).input_layernorm.weight, torch.ones(H))
    assert network.fc.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_config_survives_config_json(tiny_config: BuildConfig) -> None:
    config = tiny_config(
        layers=2,
        norm_before_residual=True,
        fc_norm=True,
        norm_output=True,
        norm_before_fc=True,
        embed_requires_grad=True,
    )
    assert Eagle3Config.from_config_json(config.to_config_json()) == config


def test_absent_keys_mean_what_vllm_takes_them_to(tiny_config: BuildConfig) -> None:
    written = tiny_config().to_config_json()
    for key in ("norm_before_residual", "norm_before_fc", "norm_output", "fc_norm"):
        del written[key]
    read = Eagle3Config.from_config_json(written)
    assert read.norm_before_residual
    assert (read.norm_before_fc, read.norm_output, read.fc_norm) == (False, False, False)


def test_a_config_without_layer_ids_is_refused_by_name(tiny_config: BuildConfig) -> None:
    written = tiny_config().to_config_json()
    del written["eagle_aux_hidden_state_layer_ids"]
    with pytest.raises(UsageError, match="eagle_aux_hidden_state_layer_ids"):
        Eagle3Config.from_config_json(written)
