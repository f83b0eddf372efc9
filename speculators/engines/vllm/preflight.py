"""The draft that a recipe is going to train, with random weights, in a real vLLM: does it load, and does it draft?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from speculators.algorithms import load
from speculators.checkpoints.preflight import draft_config
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.decoding.request import Request
from speculators.engines.process import read
from speculators.engines.prometheus import parse
from speculators.engines.vllm.answers import answers
from speculators.engines.vllm.as_served import as_served, drafting
from speculators.engines.vllm.server import MODEL, ServerOptions, serve_arguments, vllm_servers
from speculators.errors import StepError
from speculators.recipe.shapes.recipe import Recipe
from speculators.verifiers.facts import VerifierFacts

PROPOSED = 3
TOKENS = 8


def serve_untrained(recipe: Recipe, verifier: Path, options: ServerOptions, folder: Path) -> None:
    """Write such a checkpoint into `folder`, start vLLM on it with the verifier's directory, and let it answer once.

    A verifier's own head is there already, and is taken as it is. Raises StepError with what vLLM said when it does not
    start, and when it answers without drafting.
    """
    if recipe.algorithm.name == "mtp":
        model, arguments = verifier, drafting("mtp", PROPOSED)
    else:
        facts = VerifierFacts.from_directory(verifier)
        checkpoint = folder / "checkpoint"
        write_untrained(recipe, facts, VerifierName(str(verifier.resolve()), facts.architectures), checkpoint)
        model, arguments = as_served(checkpoint, folder / "served", verifier.resolve())
    options = replace(options, extra=(*options.extra, *arguments))
    command = serve_arguments(model, recipe.verifier.dtype, options, trust_remote_code=False)
    with vllm_servers(command, options, folder) as (url,):
        list(answers([url], MODEL, [Request([1, 2, 3], TOKENS)], at_once=1))
        if not sum(parse(read(f"{url}/metrics")).get("spec_decode_num_drafts_total", [])):
            raise StepError("vLLM served the verifier, but drafted nothing")


def write_untrained(recipe: Recipe, facts: VerifierFacts, verifier: VerifierName, directory: Path) -> None:
    """A checkpoint of exactly the recipe's configuration; the draft's vocabulary is the verifier's first ids."""
    draft = draft_config(recipe, facts)
    algorithm = recipe.algorithm.name
    network = load(algorithm, "network").Network(load(algorithm, "config").Config.from_config_json(draft))
    tensors = dict(network.state_dict())
    if "t2d" in tensors:  # the first ids: every offset is zero
        tensors["d2t"] = torch.zeros_like(tensors["d2t"])
        tensors["t2d"] = torch.arange(len(tensors["t2d"])) < len(tensors["d2t"])
    write_checkpoint(directory, speculators_config(draft, verifier, PROPOSED, recipe.convert.dtype), tensors)
