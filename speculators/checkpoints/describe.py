"""What a draft on this machine is, told from its config and the headers of its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from speculators.algorithms import names
from speculators.checkpoints.convert import check_headers
from speculators.checkpoints.exporters import eagle, exporter
from speculators.checkpoints.foreign import Foreign, Header
from speculators.checkpoints.importers import candidates, find
from speculators.checkpoints.importers.block_drafts import setting
from speculators.checkpoints.importers.native import MASK_STATE, eagle_config
from speculators.checkpoints.importers.unconverted import known_as
from speculators.checkpoints.layout import completed, layout_of, tensor_problems, vocabulary_problems
from speculators.checkpoints.rules import config_problems, unserved_form
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int64": 8, "int32": 4, "int16": 2}
_EMBEDDINGS = "embed_tokens.weight"
_LAYER_IDS = ("eagle_aux_hidden_state_layer_ids", "aux_hidden_state_layer_ids")
_CHOOSES_LAYERS = ("eagle3", "peagle")
_METHODS = {
    "LlamaForCausalLMEagle3": "eagle3",
    "Eagle3LlamaForCausalLM": "eagle3",
    "DFlashDraftModel": "dflash",
    "DFlash2DraftModel": "dflash",
    "Qwen3DSparkModel": "dspark",
}
"""How vLLM calls what it loads by itself under such an architecture."""
_LOADED = ("eagle", "medusa", "draft_model")
"""Formats of others that vLLM loads where it does not load ours; it keeps its `mlp_speculator` switched off."""

_SOME_LAYERS = 32
"""The depth of a verifier for a draft that reads none of its layers by number."""

_BY_HAND = "no command mends it: correct its config.json and weights by hand, or make the draft again"


@dataclass(frozen=True)
class TensorLine:
    """One tensor: its name, type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """What `speculators inspect` prints.

    `format` is a word of `--format`, or empty when it is none of them or cannot be told; `kind` says in words what it
    is, `because` why. `served` is whether vLLM serves the folder by itself, `problems` why it would not, or would
    serve it otherwise than it was meant; `advice` is what to do.
    """

    path: str
    format: str
    kind: str
    because: tuple[str, ...]
    verifier: str | None
    reads: tuple[int, ...] | None
    speculative_tokens: int | None
    parameters: int
    bytes: int
    tensors: tuple[TensorLine, ...]
    served: bool
    problems: tuple[str, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def describe(foreign: Foreign) -> Description:
    """Look at a draft, ours or another project's; nothing but headers and vocabulary maps is read."""
    lines = tuple(TensorLine(name, header.dtype, header.shape) for name, header in foreign.headers.items())
    sizes: dict[str, Any] = {
        "path": foreign.name,
        "tensors": lines,
        "parameters": sum(prod(line.shape) for line in lines if line.name not in ("d2t", "t2d")),
        "bytes": sum(prod(line.shape) * _BYTES.get(line.dtype, 1) for line in lines),
    }
    told = _ours(foreign) if "speculators_model_type" in foreign.config else _foreign(foreign)
    return Description(**sizes, **told)


def _ours(foreign: Foreign) -> dict[str, Any]:
    from speculators.checkpoints.importers.speculators import proposal_length

    config = foreign.config
    problems = config_problems(config)
    broken: list[str] = []  # tensors that are not those of the config: no command reads such a draft
    reads: tuple[int, ...] | None = None
    if config.get("speculators_model_type") in names():
        try:
            whole = completed(config)
            maps = {name: foreign.read(name) for name in ("d2t", "t2d") if name in foreign.headers}
            present: dict[str, Any] = {**foreign.headers, **maps}
            expected = layout_of(whole).tensors(whole)
            if _EMBEDDINGS in expected and _EMBEDDINGS not in present:  # vLLM shares the verifier's
                present[_EMBEDDINGS] = Header("", expected[_EMBEDDINGS])
            broken = [what for what in tensor_problems(present, whole) if not what.startswith("t2d ")]
            problems += broken
            listed = next((config[key] for key in _LAYER_IDS if config.get(key)), None)
            reads = tuple(listed) if listed else None
            if listed is None and config["speculators_model_type"] in _CHOOSES_LAYERS:
                problems.append("the config does not list the layers that are read: vLLM takes its own")
        except (UsageError, KeyError) as error:
            broken.append(f"transformer_layer_config is incomplete: {error}")
            problems += broken
    record = config.get("converted_from") or {}
    because = [f"its config says speculators_model_type {config['speculators_model_type']}"]
    if record:
        because.append(f"it was converted from {record.get('source')} ({record.get('format')})")
    verifier = ((config.get("speculators_config") or {}).get("verifier") or {}).get("name_or_path")
    return {
        "format": "speculators",
        "kind": f"{config['speculators_model_type']} in the speculators format",
        "because": tuple(because),
        "verifier": verifier,
        "reads": reads,
        "speculative_tokens": proposal_length(config),
        **_service(foreign, verifier or "MODEL", problems, is_broken=bool(broken)),
    }


def _service(foreign: Foreign, verifier: str, problems: list[str], *, is_broken: bool) -> dict[str, Any]:
    """Whether vLLM serves one of ours as it is, and what to do where it does not."""
    name, config = foreign.name, foreign.config
    kind = str(config["speculators_model_type"])
    form = unserved_form(config) if kind in names() else None
    if form is None and not problems:
        return {"served": True, "problems": (), "advice": (f"vllm serve {name}",)}
    advice = [_BY_HAND]
    if form is not None:
        problems = [f"vLLM does not load drafts of the type {form} in this format", *problems]
        refusal = eagle.refusal(config) if kind in eagle.KINDS else None
        problems += [refusal] if refusal is not None else []
        if not is_broken:
            ways = () if refusal is not None else _elsewhere(name, kind)
            advice = [*ways, f"speculators serve {name}"]
    elif _is_read_anew(foreign):
        advice = [f"speculators convert {name} --verifier {verifier} writes it anew, every key said"]
    return {"served": False, "problems": tuple(problems), "advice": tuple(advice)}


def _is_read_anew(foreign: Foreign) -> bool:
    """Whether `convert` takes one of ours, for a verifier of the sizes that the draft is for."""
    try:
        whole = completed(foreign.config)
        layer = whole["transformer_layer_config"]
        listed = next((whole[key] for key in _LAYER_IDS if whole.get(key)), (_SOME_LAYERS,))
        width = whole.get("target_hidden_size") or layer["hidden_size"]
        sizes = {**layer, "num_hidden_layers": max(listed), "hidden_size": width}
        found = find(foreign, VerifierFacts.from_config(sizes, where=foreign.name))
        check_headers(foreign, found)
        maps = {name: foreign.read(name) for name in ("d2t", "t2d") if name in foreign.headers}
        return not vocabulary_problems(maps)
    except (UsageError, KeyError, TypeError):
        return False


def _elsewhere(name: str, kind: str) -> tuple[str, ...]:
    """How a draft that vLLM does not load in this format gets there in another; empty where it does not."""
    if kind == "mtp":
        return (f"speculators stitch {name} --verifier FOLDER -o OUT writes it back into its verifier",)
    target = next((target for target in _LOADED if kind in exporter(target).KINDS), None)
    return () if target is None else (f"speculators export {name} --to {target} writes what vLLM loads",)


def _foreign(foreign: Foreign) -> dict[str, Any]:
    possible = candidates(foreign)
    because: tuple[str, ...] = ()
    named, told = [one.importer.NAME for one in possible], len(possible) == 1
    problems = ["it does not name its verifier"]
    method = next((_METHODS[name] for name in foreign.config.get("architectures") or () if name in _METHODS), None)
    unserved = _unserved_head(foreign) if method == "dspark" else None
    if unserved is not None:
        problems = [f"vLLM does not load {unserved}"]
    elif method is not None:
        parallel = ', "parallel_drafting": true' if MASK_STATE in foreign.headers else ""
        given = f'{{"method": "{method}", "model": PATH, "num_speculative_tokens": 3{parallel}}}'
        problems = [f"it does not name its verifier; vllm serve MODEL --speculative-config '{given}' gives it one"]
    elif named == ["draft_model"]:
        given = '{"method": "draft_model", "model": PATH, "num_speculative_tokens": 3}'
        problems = [f"it names no verifier; vllm serve MODEL --speculative-config '{given}' gives it one"]
    if eagle_config(foreign).get("eagle_aux_hidden_state_layer_ids"):
        problems.append(
            "eagle_config names layers that streams leave, vLLM takes them for layers that streams enter: "
            "it would read each one layer too early"
        )
    if not possible:
        known = known_as(foreign)
        kind, advice = known or "no draft that is known", ("it is not converted",)
    else:
        kind = possible[0].importer.TITLE if told else " or ".join(named)
        if named == ["mtp"]:
            problems = ["it is a verifier: vLLM serves it, head and all, with --speculative-config's method mtp"]
        because = tuple(possible[0].reasons) if told else tuple(one.line for one in possible)
        chosen = "" if told else f" --format {'|'.join(named)}, if it is not told by itself"
        advice = (f"speculators convert {foreign.name} --verifier MODEL{chosen}",)
    return {
        "format": named[0] if told else "",
        "kind": kind,
        "because": because,
        "verifier": None,
        "reads": None,
        "speculative_tokens": None,
        "served": False,
        "problems": tuple(problems),
        "advice": advice,
    }


def _unserved_head(foreign: Foreign) -> str | None:
    """A DSpark draft in words, where its Markov head is none that vLLM has."""
    kind = setting(foreign, "markov_head_type") or "vanilla"
    return unserved_form({"speculators_model_type": "dspark", "markov_head_type": kind})
