"""Run by vLLM's Python: it imports vLLM once, and then forks itself for every job that it reads from its input.

A job is a line of JSON: `arguments` are those of `vllm serve`, `prompts` lists of token ids, `tokens` how many are
asked for, greedily, and `result` the file that is written: the `tokens` of every answer, `drafts` (rounds), `accepted`
proposals by position, the files with `states` where the arguments have them written; or `error`, a line. A fork is
ready in a second or two, where a server takes twenty; its engine is the server's own, in one process.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # vLLM prints its log
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, ModelRegistry, SamplingParams  # noqa: E402  its log goes elsewhere
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402


def engine_options(arguments: list[str]) -> dict[str, Any]:
    """What the command line says, as the engine has it."""
    _, model, *others = arguments
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args([*others, "--model", model])
    options = EngineArgs.from_cli_args(parsed)
    return {field.name: getattr(options, field.name) for field in fields(options)}


def know(model: str) -> None:
    """Have the model's class here, so that no other process is started to look at it."""
    for name in json.loads((Path(model) / "config.json").read_text())["architectures"]:
        known = ModelRegistry.models.get(name)
        if known is not None and hasattr(known, "load_model_cls"):
            ModelRegistry.register_model(name, known.load_model_cls())


def done(job: dict[str, Any]) -> dict[str, Any]:
    """The job's answers and counts."""
    options = engine_options(job["arguments"]) | {"disable_log_stats": False}
    know(options["model"])
    llm = LLM(**options)
    asked = SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True)
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    made = llm.generate(prompts, asked, use_tqdm=False)
    counted = {one.name: getattr(one, "value", getattr(one, "values", None)) for one in llm.get_metrics()}
    written = [(one.kv_transfer_params or {}).get("hidden_states_path") for one in made]
    llm.llm_engine.step()  # states of finished requests are written in the next step
    for file in filter(None, written):
        with Path(f"{file}.lock").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_SH)  # until the file is whole
    return {
        "tokens": [list(one.outputs[0].token_ids) for one in made],
        "drafts": counted.get("vllm:spec_decode_num_drafts"),
        "accepted": counted.get("vllm:spec_decode_num_accepted_tokens_per_pos"),
        "states": written,
    }


def main() -> None:
    """One job after another, until the input ends; a line is printed when one is done."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                found = done(job)
            except BaseException as error:  # noqa: BLE001  whatever it is, it is told
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"}
            Path(job["result"]).write_text(json.dumps(found))
            os._exit(0)
        os.waitpid(child, 0)
        print("done", file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
