"""What every peer trains on, as files: a random verifier, a draft that starts from it, one batch, and the sizes.

workload.json                the options, as `Workload` has them
verifier/                    config.json and model.safetensors, as transformers write them
draft.safetensors            the draft's weights by their names in a checkpoint
batch.safetensors            the packed documents, and `targets_<j>`: the positions that step j is judged at
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from speculators.algorithms.base import Batch
from speculators.algorithms.chains import find_chains
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.vocabulary import VerifierHead
from speculators.verifiers.weights import VerifierWeights

AUX_LAYERS = (2, 15, 27)
EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """The sizes of a verifier's layers, which are its draft's too."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    rope_theta: float


SHAPES = {
    "135m": Shape(576, 1536, 9, 3, 64, 49_152, 100_000.0),  # SmolLM2-135M
    "8b": Shape(4096, 14_336, 32, 8, 128, 128_256, 500_000.0),  # Llama 3 8B
}


@dataclass(frozen=True)
class Workload:
    """One measurement's options; `fraction` of every document's tokens, its last ones, are the assistant's."""

    shape: str
    draft_vocabulary: int
    tokens: int
    document: int
    steps: int
    fraction: float
    precision: str
    train_head: bool
    repeats: int
    threads: int
    recompute: bool = False
    compile: bool = False
    """`train.execution` of ours; the peers have none."""
    curve: int = 0
    """Steps that all train on the batch, from the same weights, so that their losses can be overlaid."""

    @property
    def sizes(self) -> Shape:
        return SHAPES[self.shape]

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.document,) * (self.tokens // self.document)

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.precision)
        return found

    def described(self) -> dict[str, Any]:
        """The options that are the same for a whole table."""
        return {name: value for name, value in asdict(self).items() if name not in ("fraction", "repeats")}


def write(workload: Workload, folder: Path) -> None:
    """Make everything, from fixed seeds."""
    sizes, generator = workload.sizes, torch.Generator().manual_seed(0)
    (folder / "workload.json").write_text(json.dumps(asdict(workload)))
    verifier = {
        "model.embed_tokens.weight": torch.randn(sizes.vocabulary, sizes.hidden, generator=generator).mul_(0.1),
        "lm_head.weight": torch.randn(sizes.vocabulary, sizes.hidden, generator=generator).mul_(0.1),
        "model.norm.weight": torch.ones(sizes.hidden),
    }
    (folder / "verifier").mkdir()
    (folder / "verifier" / "config.json").write_text(json.dumps(_verifier_config(sizes)))
    save_file(verifier, folder / "verifier" / "model.safetensors")
    draft = _draft(workload)
    kept = torch.randperm(sizes.vocabulary, generator=generator)[: workload.draft_vocabulary].sort().values
    weights = VerifierWeights(
        embedding=verifier["model.embed_tokens.weight"],
        head=verifier["lm_head.weight"],
        norm=verifier["model.norm.weight"],
        eps=EPS,
    )
    d2t, t2d = kept - torch.arange(len(kept)), torch.zeros(sizes.vocabulary, dtype=torch.bool)
    whole = DraftVocabulary.whole(sizes.vocabulary)
    words = replace(whole, draft_vocab_size=len(kept), d2t=d2t, t2d=t2d.index_fill_(0, kept, value=True))
    draft.start_from(weights, words, generator)
    save_file(draft.state_dict(), folder / "draft.safetensors")
    save_file(_tensors(workload, generator), folder / "batch.safetensors")


def read(folder: Path) -> tuple[Workload, Eagle3Network, VerifierHead, Batch]:
    """What `write` made, for our own code."""
    workload = Workload(**json.loads((folder / "workload.json").read_text()))
    draft = _draft(workload)
    draft.load_state_dict(load_file(folder / "draft.safetensors"))
    verifier = load_file(folder / "verifier" / "model.safetensors")
    head = VerifierHead(verifier["lm_head.weight"], verifier["model.norm.weight"], EPS)
    tensors = load_file(folder / "batch.safetensors")
    names = ("input_ids", "loss_mask", "aux", "last", "argmax")
    return workload, draft, head, Batch(lengths=workload.lengths, **{name: tensors[name] for name in names})


def _draft(workload: Workload) -> Eagle3Network:
    sizes = workload.sizes
    return Eagle3Network(
        Eagle3Config(
            hidden_size=sizes.hidden,
            intermediate_size=sizes.intermediate,
            attention_heads=sizes.heads,
            key_value_heads=sizes.key_value_heads,
            head_dim=sizes.head_dim,
            vocab_size=sizes.vocabulary,
            draft_vocab_size=workload.draft_vocabulary,
            aux_layers=AUX_LAYERS,
            rope={"rope_type": "default", "rope_theta": sizes.rope_theta},
            rms_norm_eps=EPS,
            max_position_embeddings=131_072,
            norm_before_residual=True,
            norm_before_fc=True,
        )
    )


def _verifier_config(sizes: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "head_dim": sizes.head_dim,
        "num_hidden_layers": 30,
        "vocab_size": sizes.vocabulary,
        "rope_theta": sizes.rope_theta,
        "rms_norm_eps": EPS,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    }


def _tensors(workload: Workload, generator: torch.Generator) -> dict[str, torch.Tensor]:
    sizes, lengths = workload.sizes, workload.lengths
    tokens = sum(lengths)
    mask = (torch.arange(workload.document) >= round(workload.document * (1 - workload.fraction))).repeat(len(lengths))
    chains = find_chains(mask, lengths, workload.steps)
    judged = {f"targets_{step}": chains.roots[alive] + 1 + step for step, alive in enumerate(chains.alive)}
    return judged | {
        "input_ids": torch.randint(0, sizes.vocabulary, (tokens,), generator=generator),
        "loss_mask": mask,
        "aux": torch.randn(tokens, len(AUX_LAYERS) * sizes.hidden, generator=generator),
        "last": torch.randn(tokens, sizes.hidden, generator=generator),
        "argmax": torch.randint(0, sizes.vocabulary, (tokens,), generator=generator),
    }
