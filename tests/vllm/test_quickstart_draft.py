"""The quickstart's draft in an unmodified vLLM: not a token changes, and acceptance is what we measure ourselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speculators.algorithms.eagle3.proposal import Eagle3Proposal
from speculators.checkpoints.load import load_draft
from speculators.decoding.request import Request
from speculators.engines.process import read
from speculators.engines.prometheus import by_position, parse
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.answers import answers
from speculators.engines.vllm.overridden import overridden
from speculators.engines.vllm.server import MODEL, ServerOptions, serve_arguments, vllm_servers
from speculators.evaluation.acceptance import Settings, decode, round_figures

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

OPTIONS = ServerOptions(max_length=1024, cpu_cache=1, eager=True, start_seconds=900, most_requests=16)
PROMPTS, TOKENS, PROPOSED = 32, 64, 3


@pytest.mark.slow
def test_the_quickstart_s_draft_is_lossless_in_vllm_and_accepted_as_often(speculators, quickstart_store, tmp_path):
    until = ("--until", "checkpoint")
    run = speculators("run", "quickstart", *until, folder=tmp_path, store=quickstart_store, timeout=3500)
    assert run.returncode == 0, run.stdout
    steps = tmp_path / "runs/quickstart/latest/steps"
    verifier, checkpoint = (steps / "verifier/model").resolve(), (steps / "checkpoint").resolve()
    requests = held_out(steps / "answers")
    dense, _ = served(verifier, requests, tmp_path / "dense")
    drafted, metrics = served(overridden(checkpoint, tmp_path / "both", verifier), requests, tmp_path / "drafted")
    assert drafted == dense
    rounds = sum(parse(metrics)["spec_decode_num_drafts_total"])
    accepted = by_position(metrics, "spec_decode_num_accepted_tokens_per_pos_total")
    assert len(accepted) == PROPOSED

    network = load_draft(checkpoint)
    model = VerifierModel.load(verifier, "float32", aux_layers=network.config.aux_layers)
    settings = Settings(0.0, PROPOSED, TOKENS, 16, stop_ids=requests[0].stop_ids)
    own = decode(
        model, Eagle3Proposal(network.to("cpu", torch.float32)), [one.prompt_ids for one in requests], settings
    )
    assert {number: list(one.tokens) for number, one in enumerate(own)} == dense
    figures = round_figures(own, PROPOSED)
    # vLLM also counts proposals that it accepted beyond the end of an answer.
    assert 1 + sum(accepted) / rounds == pytest.approx(figures["acceptance_length"], rel=0.03)


def held_out(answered: Path) -> list[Request]:
    """The first held-out prompts."""
    rows = [json.loads(line) for file in sorted(answered.glob("*.jsonl")) for line in file.read_text().splitlines()]
    ids = [row["prompt_token_ids"] for row in rows if row["split"] == "holdout"][:PROMPTS]
    assert len(ids) == PROMPTS
    return [Request(one, TOKENS, stop_ids=frozenset([2])) for one in ids]


def served(model: Path, requests: list[Request], folder: Path) -> tuple[dict[int, list[int]], str]:
    """Greedy answers in float32, by number, and the server's metrics after them."""
    folder.mkdir()
    arguments = serve_arguments(model, "float32", OPTIONS, trust_remote_code=False)
    with vllm_servers(arguments, OPTIONS, folder) as (url,):
        found = {one.number: one.token_ids for one in answers([url], MODEL, requests, at_once=16)}
        return found, read(f"{url}/metrics")
