"""Converted drafts in an unmodified vLLM: one of another width than its verifier, and one of EAGLE-3.1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.proposal import Eagle3Proposal
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.convert import convert
from speculators.checkpoints.exporters import write_export
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.load import load_draft, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.server import ServerOptions, serve_arguments
from speculators.evaluation.acceptance import Settings, decode, round_figures
from speculators.verifiers.lender import Lender

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

OPTIONS = ServerOptions(max_length=512, cpu_cache=1, eager=True, most_requests=8)
PROPOSED, TOKENS = 3, 100
NARROW = {"hidden_size": 64, "target_hidden_size": 128}
NORMED = {"hidden_size": 128, "fc_norm": True, "norm_output": True}


@pytest.mark.parametrize(("target", "shape"), [("eagle3", NARROW), ("eagle3.1", NORMED)])
def test_a_converted_draft_is_lossless_and_accepted_as_often_as_we_measure(
    target: str, shape: dict[str, Any], verifier: Path, inside: Callable[..., Any], tmp_path: Path
) -> None:
    ids = [[9, 4 * number, 7] for number in range(8)]
    model = VerifierModel.load(verifier, "float32", aux_layers=(2, 3, 4))
    settings = Settings(0.0, PROPOSED, TOKENS, 8, stop_ids=frozenset())
    dense = [list(one.tokens) for one in decode(model, None, ids, settings)]
    # A vocabulary of few words that the verifier often says: so some guesses of an untrained draft are right.
    kept = [token for token, _ in Counter(token for answer in dense for token in answer).most_common(2)]
    lender = Lender.of_directory(verifier, str(verifier))
    checkpoint = converted(target, shape, sorted(kept), lender, tmp_path)
    own = decode(model, Eagle3Proposal(load_draft(checkpoint).to("cpu", torch.float32)), ids, settings)
    figures = round_figures(own, PROPOSED)
    assert [list(one.tokens) for one in own] == dense
    assert figures["acceptance_length"] > 1.05

    arguments = serve_arguments(checkpoint, "float32", OPTIONS, trust_remote_code=False)
    found = inside(arguments, ids, TOKENS)
    assert found["tokens"] == dense
    assert sum(found["accepted"]) / found["drafts"] == pytest.approx(figures["acceptance_length"] - 1, rel=0.1)


def converted(target: str, shape: dict[str, Any], kept: list[int], lender: Lender, folder: Path) -> Path:
    """A random draft, written in another project's format and converted back."""
    config = Eagle3Config(
        intermediate_size=96,
        attention_heads=4,
        key_value_heads=2,
        head_dim=32,
        vocab_size=lender.facts.vocab_size,
        draft_vocab_size=len(kept),
        aux_layers=(2, 3, 4),
        rope={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        max_position_embeddings=lender.facts.max_position_embeddings,
        **shape,
    )
    torch.manual_seed(0)
    network = Eagle3Network(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 1.0, 0.3)
    network.d2t.copy_(torch.tensor(kept) - torch.arange(len(kept)))
    network.t2d[torch.tensor(kept)] = True
    name = VerifierName(lender.name, lender.facts.architectures)
    ours = speculators_config(config.to_config_json(), name, PROPOSED, "float32")
    write_checkpoint(folder / "ours", ours, network.state_dict())
    write_export(read_checkpoint(folder / "ours"), target, folder / "theirs")
    found = convert(Foreign.open(folder / "theirs"), lender, format=target)
    again = speculators_config(found.draft, name, PROPOSED, found.dtype)
    write_checkpoint(folder / "again", again, found.tensors)
    assert check_checkpoint(folder / "again") == []
    return folder / "again"
