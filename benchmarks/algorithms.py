"""Every algorithm on one verifier, with equal documents, steps and optimizer: what its draft costs and what it earns.

    python benchmarks/algorithms.py runs/quickstart/latest           # after `speculators run quickstart`
    python benchmarks/algorithms.py RUN --only eagle3 dflash --documents 100 --prompts 16 --json
    python benchmarks/algorithms.py RUN --vllm --picture all.svg  # also in vLLM, those that its CPU build serves; drawn

RUN is a finished run of the quickstart: its verifier, tokens, hidden states and held-out prompts are used as they are.
The drafts are as small as the quickstart's, one or two layers, so that a CPU is enough; their recipes are in `DRAFTS`.
A draft is trained on the same documents, one after another in the same order, and then answers the same held-out
prompts greedily, one at a time. Printed are, for each: trained parameters, seconds of training, acceptance length
before and after it, the share of rounds that accepted each proposal, milliseconds of drafting a proposed token, and
tokens a second beside the verifier's alone, in the embedded engine and with `--vllm` in vLLM. MTP is not among them:
this verifier has no such head.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from algorithms_shown import draw, table

from speculators.algorithms import load
from speculators.checkpoints.exporters import write_export
from speculators.checkpoints.load import load_draft, proposal_of, read_checkpoint
from speculators.checkpoints.trained import write_trained
from speculators.data.hidden_states import HiddenStates
from speculators.data.tokens import TokenDataset
from speculators.data.vocabulary import DraftVocabulary
from speculators.decoding.request import Request
from speculators.engines.process import read
from speculators.engines.prometheus import parse
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.answers import answers
from speculators.engines.vllm.server import MODEL, ServerOptions, serve_arguments, vllm_servers
from speculators.evaluation.acceptance import Answer, Settings, decode, measure
from speculators.evaluation.suites import suite
from speculators.recipe.load import load_recipe
from speculators.recipe.shapes.recipe import Recipe
from speculators.training.batches import TrainingData
from speculators.training.checkpointing import save_best
from speculators.training.inputs import Artifacts, open_inputs
from speculators.training.loop import TrainingInputs, train
from speculators.training.validation import validate
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.source import verifier_directory
from speculators.verifiers.tokenizer import ChatTokenizer

SMALL = "aux_layers: [2, 15, 27], draft_vocab_size: 4096"
BLOCKS = "layers: 2, block_size: 8, anchors: 64, aux_layers: [2, 15, 27]"
DRAFTS = {
    "eagle3": f"{SMALL}, training_time_test: {{steps: 3, decay: 1.0}}, "
    "normalization: {before_residual: true, before_fc: true}",
    "peagle": f"{SMALL}, layers: 2, depths: 4, normalization: {{before_residual: true, before_fc: true}}",
    "eagle": "loss: {smooth_l1: 1.0, soft_ce: 0.1}, feature_noise: 0.1",
    "hass": "aligned_steps: 3, feature_noise: 0.1",
    "medusa": "heads: 3, layers: 1, draft_vocab_size: 4096",
    "hydra": "heads: 3, layers: 1, draft_vocab_size: 4096",
    "mlp_speculator": "heads: 3, inner_size: 256",
    "dflash": f"{BLOCKS}, draft_vocab_size: 4096, weights: {{type: exponential, gamma: 4.0}}",
    "dspark": f"{BLOCKS}, draft_vocab_size: 4096, markov_rank: 64, teacher: unrenormalized",
    "dflash2": f"{BLOCKS}, selector: {{rank: 64}}",
    "xpress": f"{BLOCKS}, draft_vocab_size: 4096, refiner: {{rank: 64}}, teacher: unrenormalized",
    "draft_model": "random: {layers: 2, hidden_size: 192, intermediate_size: 512, attention_heads: 6}",
}
"""`algorithm.type` -> the rest of the recipe's section, in YAML."""
EXPORTED = {"eagle": "eagle", "hass": "eagle", "medusa": "medusa"}
"""Algorithms that vLLM serves when exported, and the format, which is also vLLM's name of the method."""
SERVED = ("eagle3", "peagle", "dflash", *EXPORTED)
"""Algorithms that vLLM's CPU build serves."""
FEW = 3
"""Prompts that an untrained draft answers."""
FORESEEN = 24
"""Held-out documents on which acceptance is foreseen: thousands of rounds, where a few answers are hundreds."""


class SomeDocuments(TokenDataset):
    """Tokens of which few documents are learnt from, at even distances; `most` says how many."""

    most: int

    @classmethod
    def of(cls, tokens: TokenDataset, most: int) -> SomeDocuments:
        """A selection of `tokens`, which stay where they are."""
        chosen = cls(**{field.name: getattr(tokens, field.name) for field in fields(tokens)})
        object.__setattr__(chosen, "most", most)
        return chosen

    @property
    def train_documents(self) -> list[int]:
        """Numbers of the chosen ones."""
        found = super().train_documents
        return [found[place * len(found) // self.most] for place in range(min(self.most, len(found)))]


class LastStates:
    """Stored states as a draft reads them that wants the verifier's last one alone."""

    def __init__(self, states: HiddenStates) -> None:
        self._states = states
        self.record: Mapping[str, Any] = {**states.record, "layer_ids": []}

    def document(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `HiddenStates.document`, `aux` being empty."""
        aux, last, argmax = self._states.document(number)
        return aux[:, :0], last, argmax


class Clocked:
    """A draft whose time is taken: seconds spent in proposing, and tokens proposed."""

    def __init__(self, proposal: Any) -> None:
        self._proposal, self.seconds, self.tokens = proposal, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proposal, name)

    def propose(self, *arguments: Any) -> Any:
        """The draft's own."""
        begun = time.perf_counter()
        found = self._proposal.propose(*arguments)
        self.seconds += time.perf_counter() - begun
        self.tokens += found.numel()
        return found


class Material:
    """What all drafts share: a run's artifacts, the verifier, and the prompts with its own answers to them."""

    def __init__(self, run: Path, documents: int, prompts: int, tokens: int, concurrency: int) -> None:
        """Open the run; of its held-out prompts `prompts` are answered, with `tokens` tokens at most."""
        self.steps, self.documents = run / "steps", documents
        self.directory = verifier_directory(self.steps / "verifier")
        self.layers = VerifierFacts.from_directory(self.directory).layers
        self.states = HiddenStates.open(self.steps / "hidden_states")
        tokenizer = ChatTokenizer.load(self.directory)
        asked = suite("holdout", self.steps / "prompts", prompts)
        self.prompts = [tokenizer.render(one.to_json()["messages"], add_generation_prompt=True) for one in asked]
        self.settings = Settings(0.0, 1, tokens, concurrency, stop_ids=frozenset(tokenizer.stop_ids))
        self._verifiers: dict[tuple[int, ...], VerifierModel] = {}

    def verifier(self, layers: tuple[int, ...]) -> VerifierModel:
        """The verifier as it gives the streams of some of its layers."""
        if layers not in self._verifiers:
            self._verifiers[layers] = VerifierModel.load(self.directory, "float32", aux_layers=layers)
        return self._verifiers[layers]

    @cached_property
    def plain(self) -> tuple[list[Answer], float]:
        """The verifier's answers without a draft, and tokens a second."""
        verifier = self.verifier(tuple(self.states.record["layer_ids"]))
        decode(verifier, None, self.prompts[:1], self.settings)
        begun = time.perf_counter()
        found = decode(verifier, None, self.prompts, self.settings)
        return found, sum(len(answer.tokens) for answer in found) / (time.perf_counter() - begun)

    @cached_property
    def vllm_alone(self) -> float:
        """Tokens a second of vLLM without a draft."""
        return by_vllm(self, (), self.directory)[0]


def training_of(material: Material, recipe: Recipe, folder: Path) -> TrainingInputs:
    """A training of the recipe's draft into `folder`, on the chosen documents and without held-out ones."""
    algorithm, steps = recipe.algorithm, material.steps
    reads = load(algorithm.name, "config").verifier_layers(algorithm, material.layers)
    states = material.states if reads else LastStates(material.states)
    vocabulary = steps / "vocabulary"
    if getattr(algorithm, "draft_vocab_size", None) is None:
        vocabulary = folder / "vocabulary"
        vocabulary.mkdir()
        DraftVocabulary.whole(TokenDataset.open(steps / "tokens").vocab_size).save(vocabulary)
    nothing_held_out = msgspec.structs.replace(recipe.train.validation, documents=0)
    inputs = open_inputs(
        Artifacts(steps / "verifier", steps / "tokens", vocabulary),
        states,
        algorithm,
        msgspec.structs.replace(recipe.train, validation=nothing_held_out),
        seed=recipe.seed,
        output=folder,
    )
    chosen = SomeDocuments.of(inputs.data.tokens, material.documents)
    return replace(inputs, data=TrainingData(chosen, states, inputs.data.device))


def foreseen(inputs: TrainingInputs) -> float:
    """The acceptance length of the draft as it is, foreseen on held-out documents without decoding anything."""
    judged = inputs.data.tokens.holdout_documents[:FORESEEN]
    found = validate(inputs.objective, inputs.data, judged, budget=inputs.options.tokens_per_step)
    return found.figures()["walk_estimate"]


def by_vllm(material: Material, speculative: Sequence[str], model: Path) -> tuple[float, float]:
    """Tokens a second of vLLM answering the prompts one at a time, and tokens a pass."""
    requests = [
        Request(one, material.settings.max_new_tokens, stop_ids=material.settings.stop_ids) for one in material.prompts
    ]
    options = ServerOptions(max_length=1024, cpu_cache=1, eager=True, most_requests=1, extra=tuple(speculative))
    arguments = serve_arguments(model, "float32", options, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as logs, vllm_servers(arguments, options, Path(logs)) as urls:
        list(answers(urls, MODEL, requests[:FEW], at_once=1))
        begun = time.perf_counter()
        tokens = sum(len(one.token_ids) for one in answers(urls, MODEL, requests, at_once=1))
        seconds = time.perf_counter() - begun
        counted = parse(read(f"{urls[0]}/metrics"))
    rounds, accepted = (
        sum(counted.get(f"spec_decode_num_{what}_total", [0.0])) for what in ("drafts", "accepted_tokens")
    )
    return tokens / seconds, 1 + accepted / rounds if rounds else 1.0


def served(material: Material, name: str, checkpoint: Path, k: int) -> dict[str, float]:
    """How fast vLLM is with a draft of an algorithm that it serves, beside itself without one."""
    speculative: list[str] = []
    model = checkpoint
    if name in EXPORTED:
        exported, model = checkpoint.with_name("exported"), material.directory
        write_export(read_checkpoint(checkpoint), EXPORTED[name], exported)
        method = {"method": EXPORTED[name], "model": str(exported), "num_speculative_tokens": k}
        speculative = ["--speculative-config", json.dumps(method)]
    rate, length = by_vllm(material, speculative, model)
    return {"vllm_tokens_per_second": rate, "vllm_speed_ratio": rate / material.vllm_alone, "vllm_length": length}


def drafted(material: Material, trained: Path, checkpoint: Path, k: int, prompts: int) -> dict[str, Any]:
    """Write the draft that lies in `trained` as a checkpoint, and let it draft `k` tokens a round for some prompts."""
    write_trained(trained, material.steps / "verifier", checkpoint, speculative_tokens=k, dtype="float32")
    network = load_draft(checkpoint, torch.float32, material.directory)
    clocked = Clocked(proposal_of(network))
    settings = replace(material.settings, speculative_tokens=k)
    verifier = material.verifier(tuple(network.config.aux_layers))
    figures, found = measure(verifier, clocked, material.prompts[:prompts], settings)
    equal = [mine.tokens == plain.tokens for mine, plain in zip(found, material.plain[0], strict=False)]
    return figures | {"equal_answers": sum(equal), "drafting_ms": 1000 * clocked.seconds / max(clocked.tokens, 1)}


def recipe_of(name: str, batch: int = 512) -> Recipe:
    """The quickstart's, with another algorithm, one epoch, and batches of fewer tokens for the fewer documents."""
    training = ["train.epochs=1", f"train.tokens_per_step={batch}"]
    return load_recipe("quickstart", sets=[f"algorithm={{type: {name}, {DRAFTS[name]}}}", *training]).recipe


def measured(material: Material, recipe: Recipe, *, in_vllm: bool) -> dict[str, Any]:
    """Everything about one algorithm."""
    name = recipe.algorithm.name
    k = recipe.algorithm.speculative_tokens
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "train"
        folder.mkdir()
        inputs = training_of(material, recipe, folder)
        network = inputs.objective.network
        save_best(folder / "model.safetensors", network)
        (folder / "draft.json").write_text(json.dumps(inputs.draft), encoding="utf-8")
        untrained = drafted(material, folder, Path(place) / "untrained", k, FEW)
        untrained_walk = foreseen(inputs)
        result = train(inputs)
        found = drafted(material, folder, Path(place) / "checkpoint", k, len(material.prompts))
        beside = served(material, name, Path(place) / "checkpoint", k) if in_vllm and name in SERVED else {}
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    return {
        "parameters": sum(one.numel() for one in network.parameters() if one.requires_grad),
        "training_tokens": result["tokens"],
        "training_seconds": result["seconds"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "proposed_tokens": k,
        "untrained_acceptance_length": untrained["acceptance_length"],
        "acceptance_length": found["acceptance_length"],
        "untrained_walk_estimate": untrained_walk,
        "walk_estimate": foreseen(inputs),
        "positions": found["positions"],
        "drafting_ms": found["drafting_ms"],
        "tokens_per_second": found["tokens_per_second"],
        "speed_ratio": found["tokens_per_second"] / material.plain[1],
        "equal_answers": found["equal_answers"],
        "answers": len(material.prompts),
        **beside,
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of the quickstart")
    parser.add_argument("--only", nargs="+", choices=tuple(DRAFTS), default=tuple(DRAFTS), metavar="ALGORITHM")
    parser.add_argument("--documents", type=int, default=400, help="to learn from")
    parser.add_argument("--prompts", type=int, default=24, help="to answer, at even distances among those held out")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--vllm", action="store_true", help="measure in vLLM as well")
    parser.add_argument("--concurrency", type=int, default=1, help="answers made at once")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the figures into this .svg or .png")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    recipes = [recipe_of(name) for name in arguments.only]
    material = Material(arguments.run, arguments.documents, arguments.prompts, arguments.tokens, arguments.concurrency)
    found = {}
    for recipe in recipes:
        figures = found[recipe.algorithm.name] = measured(material, recipe, in_vllm=arguments.vllm)
        print(recipe.algorithm.name, json.dumps(figures), file=sys.stderr)
    if arguments.picture is not None:
        draw(found, arguments.picture)
    if arguments.json:
        print(json.dumps({"plain_tokens_per_second": material.plain[1], "algorithms": found}, indent=2))
    else:
        print(table(found))
        print(f"\nThe verifier alone: {material.plain[1]:.1f} tokens/s.")


if __name__ == "__main__":
    main()
