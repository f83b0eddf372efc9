"""From a directory to something that can be served: a checkpoint with its verifier, or a verifier alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speculators.algorithms.round_limit import round_limit
from speculators.checkpoints.load import Checkpoint, draft_shape, load_draft, proposal_of, read_checkpoint
from speculators.decoding.loop import Decoder
from speculators.decoding.models import Proposal
from speculators.engines.scheduler import Scheduler
from speculators.engines.server import Served
from speculators.engines.transformers import VerifierModel
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class ServeOptions:
    """How to serve; None takes what the checkpoint says.

    `verifier` overrides the directory written in the checkpoint. `slots` requests are decoded at once, each of at most
    `capacity` tokens, prompt and answer together. `least_confidence` above 0 ends proposals early (`Decoder`).
    """

    model_name: str | None = None
    verifier: Path | None = None
    with_draft: bool = True
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    speculative_tokens: int | None = None
    least_confidence: float = 0.0
    slots: int = 8
    capacity: int = 2048
    trust_remote_code: bool = False


def open_served(directory: Path, options: ServeOptions) -> Served:
    """Load everything and start the scheduler's thread.

    Raises UsageError when the directory is neither a checkpoint nor a verifier, or the draft does not fit the verifier.
    """
    checkpoint = read_checkpoint(directory) if is_checkpoint(directory) else None
    verifier_path = options.verifier or (_verifier_of(checkpoint) if checkpoint else directory)
    if not (verifier_path / "config.json").is_file():
        raise UsageError(f"there is no verifier in {verifier_path}: it has no config.json. Give its folder: --verifier")
    tokenizer = ChatTokenizer.load(verifier_path, trust_remote_code=options.trust_remote_code)
    facts = VerifierFacts.from_directory(verifier_path)
    uses_draft = checkpoint is not None and options.with_draft
    layers = draft_shape(checkpoint.config, verifier_path).aux_layers if checkpoint and uses_draft else ()
    verifier = VerifierModel.load(
        verifier_path,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        aux_layers=layers,
        trust_remote_code=options.trust_remote_code,
    )
    proposal, k = None, 0
    if checkpoint is not None and uses_draft:
        proposal = open_proposal(checkpoint, verifier, verifier_path, facts)
        k = options.speculative_tokens or checkpoint.speculative_tokens
        _check_length(checkpoint, k)
    capacity = min(options.capacity, facts.max_position_embeddings or options.capacity)
    if options.least_confidence and not getattr(proposal, "foretells_acceptance", False):
        raise UsageError(f"no draft of {directory} foretells acceptance, so none can end early: no --least-confidence")
    decoder = Decoder(
        verifier,
        proposal,
        slots=options.slots,
        capacity=capacity,
        speculative_tokens=k,
        least_confidence=options.least_confidence,
    )
    return Served(
        scheduler=Scheduler(decoder, speculative_tokens=k),
        model_name=options.model_name or directory.resolve().name,
        capacity=capacity,
        stop_ids=frozenset(tokenizer.stop_ids),
        vocab_size=facts.vocab_size,
        encode=_encoder(tokenizer),
        render=lambda messages: tokenizer.render(messages, add_generation_prompt=True),
        decode=tokenizer.decode,
    )


def open_proposal(checkpoint: Checkpoint, verifier: VerifierModel, directory: Path, facts: VerifierFacts) -> Proposal:
    """The draft of a checkpoint for a verifier that was loaded from `directory`, on its device and in its type."""
    network = load_draft(checkpoint, dtype=verifier.dtype, verifier=directory).to(verifier.device)
    if network.config.vocab_size != facts.vocab_size:
        raise UsageError(
            f"{checkpoint.directory} was trained for a vocabulary of {network.config.vocab_size}; "
            f"the verifier's has {facts.vocab_size}"
        )
    # On a CPU the draft's products are the cheaper the smaller their type; proposals may change a little, text cannot.
    proposal: Proposal = proposal_of(network, torch.float32 if verifier.device.type == "cpu" else None)
    return proposal


def _check_length(checkpoint: Checkpoint, speculative_tokens: int) -> None:
    limit = round_limit(checkpoint.config)
    if limit is not None and speculative_tokens > limit.tokens:
        raise UsageError(
            f"{checkpoint.directory} proposes at most {limit.tokens} tokens in a round ({limit.why}); "
            f"{speculative_tokens} are asked for"
        )


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory holds a draft in the speculators format (and not a verifier)."""
    if not directory.is_dir():
        raise UsageError(f"there is no folder {directory}")
    config = directory / "config.json"
    return config.is_file() and '"speculators_model_type"' in config.read_text(encoding="utf-8")


def _verifier_of(checkpoint: Checkpoint) -> Path:
    name = checkpoint.verifier
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*"]))
    except Exception as error:
        raise UsageError(
            f"the verifier {name} of {checkpoint.directory} is neither a folder here nor to be had from the hub "
            f"({type(error).__name__}). Give its folder: --verifier"
        ) from error


def _encoder(tokenizer: ChatTokenizer) -> Any:
    def encode(text: str) -> list[int]:
        return list(tokenizer.tokenizer.encode(text))

    return encode
