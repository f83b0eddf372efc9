"""Rules across fields, which a schema cannot say: some need only the recipe, some the verifier's config."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

from speculators.errors import Place, Problem
from speculators.recipe.finding import Finding
from speculators.recipe.gates import parse_gate
from speculators.recipe.locate import Origins, in_order
from speculators.recipe.nodes import Path_
from speculators.recipe.phases import phase_findings
from speculators.recipe.shapes.data import Source
from speculators.recipe.shapes.eval import SUITES, Acceptance, StaticTree, Variant
from speculators.recipe.shapes.recipe import Recipe
from speculators.recipe.shapes.verifier import RandomVerifier
from speculators.recipe.tree_paths import unled

RANDOM_CONTEXT = 2048


class Facts(Protocol):
    """What must be known about a verifier: its `config.json`, no weights."""

    @property
    def layers(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...


def check(recipe: Recipe, facts: Facts, origins: Origins | None = None) -> tuple[Problem, ...]:
    """What is wrong between a recipe and the verifier it names, ordered by place.

    Without `origins` (`Loaded.origins`) problems have no place but the recipe's name.
    """
    return placed(_with_facts(recipe, facts), recipe, origins)


def placed(found: Iterable[Finding], recipe: Recipe, origins: Origins | None) -> tuple[Problem, ...]:
    """Findings as problems, ordered by place; without `origins` they have no place but the recipe's name."""
    if origins is None:
        return tuple(Problem(Place(recipe.name, 1, 1), item.what, item.hint) for item in found)
    return in_order(origins.problem(item.path, item.what, item.hint) for item in found)


def findings(recipe: Recipe, *, trust_remote_code: bool | None = None) -> list[Finding]:
    """What is wrong in a recipe by itself. A random verifier is its own config, so it is checked against that too."""
    found = [*_verifier(recipe, trust_remote_code)]
    if not recipe.converts:
        found += [*_data(recipe), *_algorithm(recipe)]
    found += [*_convert(recipe), *_evaluation(recipe)]
    random = recipe.verifier.random
    if random is not None and recipe.verifier.model is None and not found:
        found += _with_facts(recipe, _RandomFacts(random.layers, random.vocab_size))
    return found


@dataclass(frozen=True)
class _RandomFacts:
    layers: int
    vocab_size: int
    max_position_embeddings: int = RANDOM_CONTEXT


def _verifier(recipe: Recipe, trusted: bool | None) -> Iterator[Finding]:
    verifier = recipe.verifier
    model, here = verifier.model, ("verifier",)
    if model is None and verifier.random is None:
        yield Finding(here, "`verifier` names no model", "set `verifier.model` or `verifier.random`")
    elif model is not None and verifier.random is not None:
        hint = "remove one of them; a value from a base recipe is taken back with null"
        yield Finding((*here, "random"), "`verifier` has both `model` and `random`", hint)
    is_hub = model is not None and not model.endswith(".gguf") and not model.startswith(("/", "wheel://"))
    if model is not None and model.startswith("wheel://"):
        if not model.endswith(".gguf") or "==" not in model:
            hint = "write wheel://DISTRIBUTION==VERSION/PATH/INSIDE.gguf"
            yield Finding((*here, "model"), f"`verifier.model` is '{model}'", hint)
        elif verifier.sha256 is None:
            hint = "a file out of a wheel is pinned by its digest"
            yield Finding((*here, "model"), "`verifier.sha256` is missing", hint)
    elif model is not None and "://" in model:
        hint = "allowed: a hub id, a directory, a .gguf file, wheel://..."
        yield Finding((*here, "model"), f"`verifier.model` is '{model}'", hint)
    if verifier.sha256 is not None and (model is None or not model.endswith(".gguf")):
        hint = "a hub model is pinned by `verifier.revision`" if is_hub else "remove it"
        yield Finding((*here, "sha256"), "`verifier.sha256` pins a GGUF file, and there is none", hint)
    if verifier.revision is not None and not is_hub:
        what = "`verifier.revision` is for models of the hub"
        yield Finding((*here, "revision"), what, "a GGUF file is pinned by `verifier.sha256`")
    if verifier.trust_remote_code:
        if is_hub and verifier.revision is None:
            what = "`verifier.trust_remote_code` needs a pinned `verifier.revision`"
            yield Finding((*here, "trust_remote_code"), what, "name the commit whose code you have read")
        if trusted is False:
            what = "`verifier.trust_remote_code` is true, but the command line does not agree"
            yield Finding((*here, "trust_remote_code"), what, "add --trust-remote-code to run the model's own code")
    if verifier.random is not None:
        yield from _random(verifier.random)


def _random(shape: RandomVerifier) -> Iterator[Finding]:
    here = ("verifier", "random")
    if shape.hidden_size % (2 * shape.attention_heads):
        what = (
            f"`verifier.random.hidden_size` is {shape.hidden_size}, "
            f"no even multiple of the {shape.attention_heads} attention heads"
        )
        yield Finding((*here, "hidden_size"), what, f"such as {16 * shape.attention_heads}")
    if shape.attention_heads % shape.key_value_heads:
        what = (
            f"`verifier.random.key_value_heads` is {shape.key_value_heads}, "
            f"which does not divide the {shape.attention_heads} attention heads"
        )
        yield Finding((*here, "key_value_heads"), what)


def _data(recipe: Recipe) -> Iterator[Finding]:
    data = recipe.data
    for number, source in enumerate(data.sources):
        yield from _source(source, ("data", "sources", number))
    yield from _buffer(recipe)
    regenerate = data.regenerate
    if regenerate is None:
        for number, source in enumerate(data.sources):
            if source.synthesize is not None:
                what = "a synthesised prompt has no answer, and `data.regenerate` is null"
                yield Finding(("data", "sources", number), what, "let the verifier answer: remove `regenerate: null`")
        return
    here = ("data", "regenerate")
    if regenerate.max_new_tokens >= data.max_length:
        what = (
            f"`data.regenerate.max_new_tokens` is {regenerate.max_new_tokens}, "
            f"which leaves no room for prompts in `data.max_length`, {data.max_length}"
        )
        yield Finding((*here, "max_new_tokens"), what)
    if regenerate.temperature == 0 and regenerate.samples_per_prompt > 1:
        what = (
            f"`data.regenerate.samples_per_prompt` is {regenerate.samples_per_prompt}, but greedy answers are all alike"
        )
        yield Finding((*here, "samples_per_prompt"), what, "set `data.regenerate.temperature` above 0")


def _buffer(recipe: Recipe) -> Iterator[Finding]:
    states, batch = recipe.data.hidden_states, recipe.train.tokens_per_step
    largest = max(batch, recipe.data.max_length)
    if states.mode == "online" and states.buffer_tokens < largest:
        what = (
            f"`data.hidden_states.buffer_tokens` is {states.buffer_tokens}, and a batch may have {largest} tokens "
            f"(`{'train.tokens_per_step' if largest == batch else 'data.max_length'}`)"
        )
        hint = f"write {2 * largest} or more, so that one batch is made while another is trained on"
        yield Finding(("data", "hidden_states", "buffer_tokens"), what, hint)


def _source(source: Source, here: Path_) -> Iterator[Finding]:
    given = [name for name in ("file", "dataset", "synthesize") if getattr(source, name) is not None]
    name = f"`data.sources[{here[-1]}]`"
    if not given:
        yield Finding(here, f"{name} names no source", "set one of `file`, `dataset` and `synthesize`")
    elif len(given) > 1:
        yield Finding(here, f"{name} has both `{given[0]}` and `{given[1]}`", "make two sources of them")
    if source.synthesize is not None and source.samples is None:
        yield Finding(
            here, f"{name} does not say how many prompts to synthesise", "add `samples`, such as samples: 400"
        )
    if source.dataset is None:
        for option in ("subset", "split", "revision"):
            if getattr(source, option) is not None:
                what = f"`{option}` is for data sets, and {name} is none"
                yield Finding((*here, option), what, "remove it")


def _algorithm(recipe: Recipe) -> Iterator[Finding]:
    layers = getattr(recipe.algorithm, "aux_layers", ())
    if not isinstance(layers, str) and list(layers) != sorted(layers):
        hint = f"write {sorted(layers)}"
        yield Finding(("algorithm", "aux_layers"), "`algorithm.aux_layers` must ascend", hint)
    yield from recipe.algorithm.findings()
    yield from phase_findings(recipe.algorithm, recipe.train)


def _convert(recipe: Recipe) -> Iterator[Finding]:
    convert = recipe.convert
    if recipe.converts:
        return
    for option, default in (("format", "auto"), ("aux_layers", "auto")):
        if getattr(convert, option) != default:
            what = f"`convert.{option}` says how to read a source, and there is no `convert.source`"
            yield Finding(("convert", option), what, "remove it")
    if convert.dtype == "source":
        what = "`convert.dtype` is source, and nothing is converted"
        yield Finding(("convert", "dtype"), what, "allowed for a trained draft: float32, bfloat16, float16")


def _evaluation(recipe: Recipe) -> Iterator[Finding]:
    acceptance, benchmark = recipe.eval.acceptance, recipe.eval.benchmark
    if acceptance is not None:
        for number, suite in enumerate(acceptance.suites):
            if suite not in SUITES:
                near = get_close_matches(suite, SUITES, n=1)
                hint = (f"did you mean `{near[0]}`? " if near else "") + f"allowed: {', '.join(SUITES)}"
                yield Finding(("eval", "acceptance", "suites", number), f"there is no suite '{suite}'", hint)
        if not recipe.converts:  # what a converted draft can do is only known when it is read
            yield from _rounds(recipe, acceptance)
        yield from _tree(recipe, acceptance)
        yield from _confidence(recipe, acceptance)
    if benchmark is not None:
        yield from _variants(benchmark.variants)
    measured: dict[str, set[str]] = {
        "acceptance": set(acceptance.suites) if acceptance else set(),
        "benchmark": {variant.name for variant in benchmark.variants} if benchmark else set(),
    }
    for number, text in enumerate(recipe.eval.gates):
        yield from _gate(text, ("eval", "gates", number), measured)


def _rounds(recipe: Recipe, acceptance: Acceptance) -> Iterator[Finding]:
    most = recipe.algorithm.most_speculative_tokens
    name = "most_speculative_tokens" if acceptance.speculative_tokens == "auto" else "speculative_tokens"
    if most is not None and (asked := getattr(acceptance, name)) > most:
        what = f"`eval.acceptance.{name}` is {asked}, but a round of this {recipe.algorithm.name} draft proposes {most}"
        yield Finding(("eval", "acceptance", name), what, f"at most {most}")


def _tree(recipe: Recipe, acceptance: Acceptance) -> Iterator[Finding]:
    here, tree = ("eval", "acceptance", "tree"), acceptance.tree
    if tree is None:
        return
    if not recipe.converts and not recipe.algorithm.drafts_trees:
        what = f"`eval.acceptance.tree` asks for trees, and a draft of type {recipe.algorithm.name} makes none"
        yield Finding(here, what, "remove it")
    most = None if recipe.converts else recipe.algorithm.most_speculative_tokens
    if most is not None and recipe.algorithm.drafts_trees and tree.depth > most:
        what = f"`eval.acceptance.tree` has {tree.depth} levels, but a round of this draft proposes {most} tokens"
        yield Finding((*here, "paths" if isinstance(tree, StaticTree) else "depth"), what, f"at most {most}")
    if isinstance(tree, StaticTree):
        for number in unled(tree.paths):
            path = list(tree.paths[number])
            what = f"`eval.acceptance.tree` has the path {path}, and not {path[:-1]}, which leads there"
            yield Finding((*here, "paths", number), what, "name it too")
    elif tree.nodes < tree.depth:
        what = f"`eval.acceptance.tree` has {tree.depth} levels and only {tree.nodes} nodes"
        yield Finding((*here, "nodes"), what, f"write {tree.depth} or more")


def _confidence(recipe: Recipe, acceptance: Acceptance) -> Iterator[Finding]:
    here, option = ("eval", "acceptance", "least_confidence"), "`eval.acceptance.least_confidence`"
    if not acceptance.least_confidence:
        return
    if not recipe.converts and not recipe.algorithm.foretells_acceptance:
        what = f"{option} asks how sure the draft is, and this {recipe.algorithm.name} draft foretells no acceptance"
        yield Finding(here, what, "remove it; a draft of the type dspark with a confidence head does")
    if acceptance.tree is not None:
        yield Finding(here, f"{option} ends chains early, and `eval.acceptance.tree` asks for trees", "remove one")


def _variants(variants: tuple[Variant, ...]) -> Iterator[Finding]:
    for number, variant in enumerate(variants):
        here: Path_ = ("eval", "benchmark", "variants", number)
        name, verifier = f"`eval.benchmark.variants[{number}]`", variant.verifier
        if variant.name in [before.name for before in variants[:number]]:
            what = f"`eval.benchmark.variants` names '{variant.name}' twice"
            yield Finding((*here, "name"), what, "give each variant a name of its own")
        if variant.name in ("dense", "speculator"):
            for option in ("verifier", "revision"):
                if getattr(variant, option) is not None:
                    what = f"`{variant.name}` serves the recipe's own verifier, and {name} has a `{option}`"
                    yield Finding((*here, option), what, "give the variant another name, such as fp8")
            if variant.name == "speculator" and not variant.draft:
                hint = "remove it; the verifier alone is the variant `dense`"
                yield Finding((*here, "draft"), "`speculator` is the verifier with the draft", hint)
        elif verifier is None:
            hint = "allowed without one: dense, speculator"
            yield Finding((*here, "name"), f"{name} is '{variant.name}' and has no `verifier`", hint)
        elif "://" in verifier or verifier.endswith(".gguf"):
            hint = "allowed: a hub id, a directory with a Hugging Face checkpoint"
            yield Finding((*here, "verifier"), f"`verifier` of {name} is '{verifier}'", hint)
        elif variant.revision is not None and verifier.startswith("/"):
            what = f"`revision` of {name} is for models of the hub, and its verifier is a directory"
            yield Finding((*here, "revision"), what, "remove it")


def _gate(text: str, here: Path_, measured: dict[str, set[str]]) -> Iterator[Finding]:
    try:
        gate = parse_gate(text)
    except ValueError as error:
        hint = "such as acceptance.holdout.acceptance_length >= 1.35"
        yield Finding(here, f"no gate: {error}", hint)
        return
    for name in gate.names:
        section, _, rest = name.partition(".")
        which = rest.partition(".")[0]
        if section in measured and which not in measured[section]:
            has = ", ".join(sorted(measured[section])) or "nothing"
            yield Finding(
                here, f"the gate asks for {name}, which this recipe does not measure", f"{section} has: {has}"
            )


def _with_facts(recipe: Recipe, facts: Facts) -> Iterator[Finding]:
    if not recipe.converts:
        yield from _training_with_facts(recipe, facts)
    yield from _evaluation_with_facts(recipe, facts)


def _training_with_facts(recipe: Recipe, facts: Facts) -> Iterator[Finding]:
    algorithm, verifier = recipe.algorithm, recipe.verifier.model or "the random verifier"
    layers = getattr(algorithm, "aux_layers", ())
    if layers == "auto":
        if facts.layers < algorithm.fewest_layers:
            what = f"`algorithm.aux_layers` is auto, but {verifier} has only {facts.layers} layers"
            yield Finding(("algorithm", "aux_layers"), what, f"name them, 0 to {facts.layers}")
    else:
        for number, layer in enumerate(layers):
            if layer > facts.layers:
                what = (
                    f"`algorithm.aux_layers[{number}]` is {layer}, "
                    f"but {verifier} has {facts.layers} layers (0..{facts.layers})"
                )
                yield Finding(("algorithm", "aux_layers", number), what)
    size = getattr(algorithm, "draft_vocab_size", None)
    if size is not None and size > facts.vocab_size:
        what = f"`algorithm.draft_vocab_size` is {size}, but {verifier} has {facts.vocab_size} tokens"
        yield Finding(("algorithm", "draft_vocab_size"), what, "null takes the verifier's whole vocabulary")
    mask = getattr(algorithm, "mask_token_id", None)
    if mask is not None and mask >= facts.vocab_size:
        what = f"`algorithm.mask_token_id` is {mask}, but {verifier} has {facts.vocab_size} tokens"
        yield Finding(("algorithm", "mask_token_id"), what, "null takes the last one")
    longest = facts.max_position_embeddings
    if recipe.data.max_length > longest:
        what = f"`data.max_length` is {recipe.data.max_length}, but {verifier} reads at most {longest} tokens"
        yield Finding(("data", "max_length"), what)


def _evaluation_with_facts(recipe: Recipe, facts: Facts) -> Iterator[Finding]:
    verifier, longest = recipe.verifier.model or "the random verifier", facts.max_position_embeddings
    acceptance, benchmark = recipe.eval.acceptance, recipe.eval.benchmark
    if acceptance is not None and acceptance.max_new_tokens >= longest:
        what = (
            f"`eval.acceptance.max_new_tokens` is {acceptance.max_new_tokens}, but {verifier} reads at most {longest}"
        )
        yield Finding(("eval", "acceptance", "max_new_tokens"), what)
    if acceptance is not None and acceptance.speculative_tokens == "auto" and benchmark is None:
        what = "`eval.acceptance.speculative_tokens` is auto, which is measured under the load of `eval.benchmark`"
        yield Finding(("eval", "acceptance", "speculative_tokens"), what, "add `eval.benchmark`, or write a number")
    if benchmark is not None and benchmark.max_tokens >= longest:
        what = f"`eval.benchmark.max_tokens` is {benchmark.max_tokens}, but {verifier} reads at most {longest}"
        yield Finding(("eval", "benchmark", "max_tokens"), what)
