"""Hydra as its authors release it: `hydra_lm_head.pt`, with `hydra_mlp.0.0.linear.weight` and the like in it.

Head i is `hydra_mlp.i`, of which block 0 also has `res_connection`, and `hydra_lm_head.i`, which has a bias. Blocks
after the first are one module in the source, and so are there several times with equal values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from speculators.algorithms.hydra.config import HydraConfig
from speculators.algorithms.hydra.layout import tensors
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.assignment import assigned
from speculators.checkpoints.importers.base import Translation
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "hydra"
TITLE = "Hydra"

EMBEDDING = "input_embed_fn.weight"
"""The verifier's embedding, which the source's module of heads holds, and so its file too."""

_BLOCK = re.compile(r"hydra_mlp\.(\d+)\.(\d+)\.linear\.(weight|bias)")
_RESIDUAL = re.compile(r"hydra_mlp\.(\d+)\.0\.res_connection\.(weight|bias)")
_OUTPUT = re.compile(r"hydra_lm_head\.(\d+)\.(weight|bias)")
_OURS = {_BLOCK: r"blocks.\1.layers.\2.\3", _RESIDUAL: r"blocks.\1.residual.\2", _OUTPUT: r"lm_heads.\1.\2"}


def recognise(foreign: Foreign) -> Sequence[str]:
    """Its blocks, one of which takes several vectors to one."""
    if not any(_BLOCK.fullmatch(name) for name in foreign.headers):
        return ()
    grounded = any(_RESIDUAL.fullmatch(name) for name in foreign.headers)
    told = "whose first takes a state and embeddings to one state" if grounded else "of one state"
    return (f"its tensors are named hydra_mlp, blocks {told}",)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """Say it in our words; raises UsageError where it does not fit, or is another of the authors' kinds of heads."""
    if aux_layers is not None:
        raise UsageError(f"{foreign.name} reads the verifier's last state alone; there are no layers to choose")
    _check_kind(foreign)
    ours = {_our_name(name): name for name in foreign.headers}
    places = [tuple(map(int, re.findall(r"\d+", name)[:2])) for name in foreign.headers if _BLOCK.fullmatch(name)]
    shape = HydraConfig(
        hidden_size=facts.hidden_size,
        vocab_size=facts.vocab_size,
        draft_vocab_size=facts.vocab_size,
        verifier_layers=facts.layers,
        heads=1 + max((head for head, _ in places), default=0),
        layers=1 + max((block for _, block in places), default=0),
    )
    shape = replace(shape, head_bias="lm_heads.0.bias" in ours)
    for key, found in (("hydra_num_heads", shape.heads), ("hydra_num_layers", shape.layers)):
        if foreign.config.get(key, found) != found:
            raise UsageError(f"{foreign.name} says {key} {foreign.config[key]}, and its tensors are those of {found}")
    draft = shape.to_config_json()
    expected = tensors(draft)
    borrowed = [EMBEDDING] if EMBEDDING in foreign.headers else []
    return Translation(
        draft,
        expected,
        assigned(foreign, expected, ours, borrowed, "a Hydra draft"),
        borrowed=dict.fromkeys(borrowed, "embedding"),
        speculative_tokens=shape.heads,
    )


def _check_kind(foreign: Foreign) -> None:
    config = foreign.config
    kind = config.get("hydra_head_arch", "mlp")
    if kind != "mlp":
        raise UsageError(f"{foreign.name} has heads of the kind {kind!r}; of Hydra's, `mlp` is what is converted")
    if not config.get("grounded_heads", True) or not any(_RESIDUAL.fullmatch(name) for name in foreign.headers):
        raise UsageError(f"{foreign.name} has heads that read no tokens (grounded_heads: false), as Medusa's do")
    if config.get("hidden_state_offset"):
        raise UsageError(
            f"{foreign.name} reads the verifier's states {config['hidden_state_offset']} layers before the last "
            "(hidden_state_offset); a draft of this project reads the last"
        )


def _our_name(name: str) -> str:
    for pattern, ours in _OURS.items():
        if match := pattern.fullmatch(name):
            return match.expand(ours)
    return name
