"""Which models may draft: told from their config while planning, read whole where training begins, refused with why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from speculators.algorithms.draft_model.config import DraftModelConfig, external, trained_parameters
from speculators.algorithms.draft_model.network import DraftModelNetwork
from speculators.algorithms.draft_model.proposal import DraftModelProposal
from speculators.algorithms.draft_model.source import check_tokens
from speculators.errors import UsageError
from speculators.recipe.load import load_recipe
from speculators.recipe.shapes.draft_model import DraftModel

V = 50


def section(**said: Any) -> DraftModel:
    written = ", ".join(f"{name}: {value}" for name, value in said.items())
    found = load_recipe("tiny", sets=[f"algorithm={{type: draft_model, {written}}}"]).recipe.algorithm
    assert isinstance(found, DraftModel)
    return found


def test_a_round_proposes_what_the_model_itself_would_write(
    model_folder: Path, begun: Callable[[Path], DraftModelNetwork]
) -> None:
    """Sequences of several lengths in one round, then another round after some proposals fell."""
    network, model = begun(model_folder).eval(), AutoModelForCausalLM.from_pretrained(model_folder)
    texts = [[4, 9, 30], [8, 2, 2, 17, 40, 11], [21, 1]]
    proposal = DraftModelProposal(network)
    cache, rows = proposal.new_cache(3, 32), torch.arange(3)

    def ask(held: list[int], k: int) -> list[list[int]]:
        unread = [text[start:-1] for text, start in zip(texts, held, strict=True)]
        width = max(map(len, unread))
        aux = torch.tensor([one + [0] * (width - len(one)) for one in unread])[..., None]
        following = [text[start + 1 :] for text, start in zip(texts, held, strict=True)]
        next_ids = torch.tensor([one + [0] * (width - len(one)) for one in following])
        return proposal.propose(cache, rows, next_ids, aux, held, list(map(len, unread)), k, None).tolist()

    def written(k: int) -> list[list[int]]:
        greedy = {"max_new_tokens": k, "do_sample": False, "eos_token_id": None}
        return [model.generate(torch.tensor([text]), **greedy)[0, -k:].tolist() for text in texts]

    assert ask([0, 0, 0], 4) == written(4)
    held = [len(text) - 1 for text in texts]
    assert cache.lengths.tolist() == held
    for text, more in zip(texts, ([33], [5, 6, 7], [12, 13]), strict=True):
        text += more
    assert ask(held, 3) == written(3)


def test_planning_counts_its_parameters_and_pins_its_content(
    model_folder: Path, begun: Callable[[Path], DraftModelNetwork]
) -> None:
    options = section(model=model_folder)
    matrices = sum(one.numel() for one in begun(model_folder).parameters() if one.dim() == 2)
    assert trained_parameters(options, {}) == matrices
    before = external(options)
    (model_folder / "tokenizer.json").write_text("{}")
    assert external(options) == before
    tensors = load_file(model_folder / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, model_folder / "model.safetensors", metadata={"format": "pt"})
    assert external(options) != before
    assert external(section(random="{}")) == {}


def test_a_random_one_has_the_verifier_s_vocabulary() -> None:
    facts: Any = SimpleNamespace(
        hidden_size=96, intermediate_size=1, attention_heads=1, key_value_heads=1, head_dim=96, vocab_size=V,
        rope={"rope_type": "default", "rope_theta": 7.0, "mrope_section": [1]}, rms_norm_eps=1e-3,
        max_position_embeddings=77, bos_token_id=1, eos_token_ids=(2,),
    )  # fmt: skip
    options = section(random="{layers: 3, hidden_size: 16, attention_heads: 2, key_value_heads: 1}")
    config = DraftModelConfig.for_verifier(facts, options, draft_vocab_size=V, aux_layers=())
    assert (config.layers, config.head_dim, config.vocab_size, config.max_position_embeddings) == (3, 8, V, 77)
    assert config.rope == {"rope_type": "default", "rope_theta": 7.0}
    matrices = sum(one.numel() for one in DraftModelNetwork(config).parameters() if one.dim() == 2)
    assert trained_parameters(options, {"vocab_size": V}) == matrices
    assert DraftModelConfig.from_config_json(config.to_config_json()) == config


def test_a_tied_head_that_is_saved_once_more_is_passed_over(
    write_model: Callable[..., Path], begun: Callable[[Path], DraftModelNetwork], tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", model_type="qwen2", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file({**tensors, **copy}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" not in begun(folder).state_dict()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"model_type": "gemma2"}, "it is of the type gemma2; allowed: llama, mistral, qwen2, qwen3"),
        ({"vocab_size": 60}, "its vocabulary has 60 tokens, the verifier's 50"),
        ({"hidden_act": "gelu"}, "its MLP has gelu; only silu"),
        ({"model_type": "mistral", "sliding_window": 16}, "its layers see a window of 16 tokens"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16}, "its layers see a window of 16"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "its rotary positions are of the type dynamic"),
        ({"quantization_config": {"quant_method": "fp8"}}, "its weights are quantized"),
    ],
)
def test_a_model_that_cannot_draft_is_refused_with_why(
    write_model: Callable[..., Path], begun: Callable[[Path], Any], tmp_path: Path, said: Any, problem: str
) -> None:
    folder = write_model(tmp_path / "model", model_type="llama")
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **said}
    if "rope_scaling" in said:
        del config["rope_parameters"]
    file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=problem) as refusal:
        begun(folder)
    assert str(refusal.value).startswith(f"{folder} cannot be an independent draft:")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"a": 0, "c": 2, "b": 1}, None),
        ({"a": 0, "b": 2}, "its token 'b' is 2, the verifier's 1; both must have the same tokenizer"),
        ([["a", 0.0], ["c", -1.0], ["b", -2.0]], "its token 'c' is 1, the verifier's 2"),
        ({"x": 0, "y": 1, "a": 2}, "its token 'a' is 2, the verifier's 0"),
        ({"x": 0, "y": 1}, "most of its tokens are unknown to the verifier"),
    ],
)
def test_another_tokenizer_is_refused_by_a_token(tmp_path: Path, words: Any, problem: str | None) -> None:
    for name, vocabulary in (("draft", words), ("verifier", {"a": 0, "b": 1, "c": 2})):
        (tmp_path / name).mkdir()
        check_tokens(tmp_path / name, tmp_path / "verifier")
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    if problem is None:
        check_tokens(tmp_path / "draft", tmp_path / "verifier")
        return
    with pytest.raises(UsageError, match=problem):
        check_tokens(tmp_path / "draft", tmp_path / "verifier")


def test_a_folder_that_is_not_whole_is_refused_by_the_tensor(
    write_model: Callable[..., Path], begun: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", model_type="llama")
    tensors = load_file(folder / "model.safetensors")
    missing = {name: one for name, one in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"}
    save_file(missing, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"is not whole: it has no model\.layers\.1\.mlp\.up_proj\.weight"):
        begun(folder)
    save_file({**tensors, "model.norm.weight": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"model\.norm\.weight has the shape \[3\], but config\.json makes it \[24\]"):
        begun(folder)
    with pytest.raises(UsageError, match=r"`algorithm\.model`: there is no directory"):
        begun(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="there is no model with safetensors weights"):
        external(section(model=tmp_path))
