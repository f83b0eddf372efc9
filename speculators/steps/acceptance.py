"""How many tokens a verifier pass commits with this draft: really drafting and verifying, suite by suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.errors import UsageError
from speculators.pipeline.step import Context, Estimate, Scope, Step
from speculators.steps.speed import verifier_memory

if TYPE_CHECKING:
    from speculators.checkpoints.load import Checkpoint
    from speculators.data.conversations import Conversation
    from speculators.evaluation.acceptance import Answer, Difference
    from speculators.recipe.shapes.recipe import Recipe
    from speculators.verifiers.tokenizer import ChatTokenizer

SAMPLES = 6
"""Answers kept as text for the report, from the first greedy measurement (or the first of all)."""
_PARTS = "parts"


def run(context: Context) -> None:
    """Write acceptance.json. Each suite at each temperature is kept once measured, for another attempt after a kill."""
    from speculators.evaluation.suites import suite

    asked = context.config.eval.acceptance
    parts = context.output / _PARTS
    parts.mkdir(exist_ok=True)
    todo = [(name, temperature) for name in asked.suites for temperature in asked.temperature]
    measuring = None
    for name, temperature in todo:
        part = parts / f"{name}-{temperature_key(temperature)}.json"
        if not part.is_file():
            measuring = measuring or _Measuring(context)
            measured = measuring.measure(suite(name, context.inputs["prompts"], asked.prompts), name, temperature)
            written = part.with_suffix(".writing")
            written.write_text(json.dumps(measured), encoding="utf-8")
            written.replace(part)
    _join(context.output, parts, todo)


def temperature_key(temperature: float) -> str:
    """`T0.0`, `T1.0`: how a temperature is named in acceptance.json."""
    return f"T{float(temperature)}"


class _Measuring:
    """The models, loaded once for all measurements that are still to do."""

    def __init__(self, context: Context) -> None:
        import torch

        from speculators.checkpoints.load import load_draft, proposal_of, read_checkpoint
        from speculators.data.images import FOLDER
        from speculators.engines.transformers import VerifierModel
        from speculators.layers.trees import StaticShape, TreeShape
        from speculators.recipe.shapes.eval import StaticTree
        from speculators.recipe.shapes.verifier import TransformersEngine
        from speculators.verifiers.facts import VerifierFacts
        from speculators.verifiers.images import ImageReader
        from speculators.verifiers.source import verifier_directory
        from speculators.verifiers.tokenizer import ChatTokenizer

        self.context, engine = context, context.config.verifier.engine
        directory = verifier_directory(context.inputs["verifier"])
        shown = (context.inputs["prompts"] / FOLDER).is_dir()
        self.reader = ImageReader(directory, trust_remote_code=context.trust_remote_code) if shown else None
        self.tokenizer: ChatTokenizer = ChatTokenizer.load(directory, trust_remote_code=context.trust_remote_code)
        self.longest = VerifierFacts.from_directory(directory).max_position_embeddings
        checkpoint = read_checkpoint(context.inputs["checkpoint"])
        self.speculative_tokens = checkpoint.speculative_tokens  # the recipe's number, or the best one
        tree = context.config.eval.acceptance.tree
        self.tree: StaticShape | TreeShape | None = None
        if isinstance(tree, StaticTree):
            self.tree = StaticShape(tree.paths)
        elif tree is not None:
            self.tree = TreeShape(tree.depth, tree.width, tree.nodes)
        network = load_draft(checkpoint, verifier=directory)
        self._check_round(checkpoint)
        embedded = isinstance(engine, TransformersEngine)
        self.verifier = VerifierModel.load(
            directory,
            context.config.verifier.dtype,
            engine.device if embedded else "auto",
            threads=engine.threads if embedded else None,
            aux_layers=network.config.aux_layers,
            trust_remote_code=context.trust_remote_code,
            reads_images=shown,
        )
        # The draft's products are float32 on a CPU, so that what is measured is what training foresaw.
        on_cpu = self.verifier.device.type == "cpu"
        self.proposal = proposal_of(network.to(self.verifier.device, torch.float32 if on_cpu else self.verifier.dtype))
        self._check_proposal(checkpoint)

    def _check_round(self, checkpoint: Checkpoint) -> None:
        """What planning cannot see of a converted draft: how much a round of it may propose."""
        from speculators.algorithms.round_limit import round_limit

        limit = round_limit(checkpoint.config)
        asked = self.speculative_tokens if self.tree is None else self.tree.depth
        if limit is not None and asked > limit.tokens:
            option = "speculative_tokens" if self.tree is None else "tree"
            raise UsageError(
                f"`eval.acceptance.{option}` asks for {asked} tokens in a round, and the draft proposes at most "
                f"{limit.tokens} ({limit.why})"
            )

    def _check_proposal(self, checkpoint: Checkpoint) -> None:
        """And whether it makes trees, and knows where to end early."""
        asked, kind = self.context.config.eval.acceptance, checkpoint.config["speculators_model_type"]
        if self.tree is not None and not hasattr(self.proposal, "propose_tree"):
            what = f"`eval.acceptance.tree` asks for trees, and this draft of type {kind} makes none: remove it"
            raise UsageError(what)
        if asked.least_confidence and not getattr(self.proposal, "foretells_acceptance", False):
            raise UsageError(
                f"this draft of type {kind} foretells no acceptance, so its proposals cannot end early: remove "
                "`eval.acceptance.least_confidence`"
            )

    def measure(self, prompts: list[Conversation], name: str, temperature: float) -> dict[str, Any]:
        """Figures and samples of one suite at one temperature."""
        from speculators.evaluation.acceptance import Settings, check_lossless, measure

        asked, report = self.context.config.eval.acceptance, self.context.report
        rendered = [(prompt, self._rendered(prompt)) for prompt in prompts]
        fitting = [one for one in rendered if len(one[1]) + asked.max_new_tokens <= self.longest]
        if len(fitting) < len(rendered):
            report.message(f"{name}: left out {len(rendered) - len(fitting)} prompts too long for the verifier")
        if not fitting:
            raise UsageError(
                f"no prompt of the suite `{name}` fits: the verifier reads at most {self.longest} tokens, of which "
                f"`eval.acceptance.max_new_tokens` takes {asked.max_new_tokens}, and the shortest prompt has "
                f"{min(len(prompt_ids) for _, prompt_ids in rendered)}. Ask for fewer new tokens"
            )
        ids = [prompt_ids for _, prompt_ids in fitting]
        images = [self._images(prompt) for prompt, _ in fitting]
        settings = Settings(
            temperature=temperature,
            speculative_tokens=self.speculative_tokens if self.tree is None else self.tree.depth,
            max_new_tokens=asked.max_new_tokens,
            concurrency=asked.concurrency,
            stop_ids=frozenset(self.tokenizer.stop_ids),
            seed=self.context.config.seed,
            tree=self.tree,
            least_confidence=asked.least_confidence,
        )

        def tell(finished: int) -> None:
            report.progress(finished, len(ids), "prompts")

        figures, answers = measure(self.verifier, self.proposal, ids, settings, tell, images)
        if temperature == 0:
            lossless, differences = check_lossless(self.verifier, ids, answers, settings, images=images)
            figures |= lossless | {"differences": [_told(one, fitting[one.prompt][0].id) for one in differences]}
        length = figures["acceptance_length"]
        report.message(
            f"{name} at temperature {temperature:g}: acceptance length "
            + ("unknown, no round was made" if length is None else f"{length:.3f} over {figures['rounds']} rounds")
        )
        return {"figures": figures, "samples": self._samples([prompt for prompt, _ in fitting], answers)}

    def _rendered(self, prompt: Conversation) -> list[int]:
        ids = self.tokenizer.render(prompt.to_json()["messages"], add_generation_prompt=True, tools=prompt.tools)
        if self.reader is not None and prompt.images:
            ids, _ = self.reader.expand(ids, [0] * len(ids), self._images(prompt))
        return ids

    def _images(self, prompt: Conversation) -> tuple[Path, ...]:
        from speculators.data.images import image_files

        return image_files(self.context.inputs["prompts"], prompt.images)

    def _samples(self, prompts: list[Conversation], answers: list[Answer]) -> list[dict[str, Any]]:
        from speculators.evaluation.samples import sample, spread

        chosen = spread(len(prompts), SAMPLES)
        return [
            {
                "id": prompts[i].id,
                "category": prompts[i].category,
                **sample(prompts[i].messages[-1].text, answers[i], self.tokenizer.decode),
            }
            for i in chosen
        ]


def _told(difference: Difference, prompt_id: str) -> dict[str, Any]:
    return {
        "prompt": prompt_id,
        "token": difference.token,
        "with_draft": difference.with_draft,
        "without": difference.without,
        "logit_gap": difference.gap,
    }


def _join(output: Path, parts: Path, todo: list[tuple[str, float]]) -> None:
    suites: dict[str, dict[str, Any]] = {}
    samples: list[dict[str, Any]] = []
    first = min(todo, key=lambda one: one[1] != 0, default=None)
    for name, temperature in todo:
        part = json.loads((parts / f"{name}-{temperature_key(temperature)}.json").read_text(encoding="utf-8"))
        suites.setdefault(name, {})[temperature_key(temperature)] = part["figures"]
        if (name, temperature) == first:
            samples = part["samples"]
    whole = json.dumps({"suites": suites, "samples": samples}, indent=2, ensure_ascii=False)
    (output / "acceptance.json").write_text(whole + "\n", encoding="utf-8")
    for file in parts.iterdir():
        file.unlink()
    parts.rmdir()


def estimate(scope: Scope) -> Estimate:
    """A megabyte of figures and samples; time from how fast the verifier wrote before."""
    asked, rate = scope.config.eval.acceptance, scope.facts.get("generated_tokens_per_second")
    prompts = asked.prompts or scope.facts.get("prompts")
    tokens = None if prompts is None else prompts * asked.max_new_tokens * (len(asked.temperature) + 1)
    return Estimate(
        disk=1 << 20,
        memory=verifier_memory(scope),
        seconds=tokens / rate if tokens and rate else None,
    )


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """No step when the recipe asks for no acceptance."""
    if recipe.eval.acceptance is None:
        return ()
    return (
        Step(
            "acceptance",
            version=1,
            reads=("eval.acceptance", "verifier.dtype", "verifier.engine", "seed"),
            inputs=("verifier", "prompts", "checkpoint"),
            run=run,
            estimate=estimate,
        ),
    )
