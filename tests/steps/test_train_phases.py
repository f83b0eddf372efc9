"""`train.second_phase`: one step trains as two would one after another, and a stop loses nothing of either phase."""

from __future__ import annotations

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from speculators.data.tokens import Document, TokenOrigin, save_tokens
from speculators.errors import MachineError
from speculators.pipeline.step import Context, Scope
from speculators.recipe.load import load_recipe
from speculators.recipe.phases import phases
from speculators.recipe.semantic import semantic
from speculators.steps import assemble, checkpoint, hidden_states, train, vocabulary
from speculators.training.loop import Silent
from speculators.verifiers.source import verifier_directory
from speculators.verifiers.tokenizer import ChatTokenizer

FIRST = [
    "algorithm={type: hass, judged_steps: 2, loss: {top_k: 0}}",
    "data.max_length=64",
    "data.regenerate.max_new_tokens=32",
    "data.hidden_states.dtype=float32",
    "data.hidden_states.compute_dtype=verifier",
    "train.tokens_per_step=64",
    "train.epochs=5",
    "train.precision=float32",
    "train.checkpoint.every=4",
    "convert.dtype=float32",
]
OPTIMIZER = "{type: adamw, learning_rate: 1e-3, weight_decay: 0.1}"
BOTH = [
    *FIRST,
    f"train.second_phase={{epochs: 6, optimizer: {OPTIMIZER}, schedule: {{type: linear}}, loss: {{top_k: 1.0}}}}",
]
SECOND = [
    *FIRST,
    "algorithm.loss.top_k=1.0",
    "train.epochs=6",
    f"train.optimizer={OPTIMIZER}",
    "train.schedule.type=linear",
]
"""The same phase as a training of its own."""
MACHINE = {"tokens_per_second", "data_wait", "memory"}


def recipe(sets):
    return load_recipe("tiny", sets=sets).recipe


def plain(one):
    return {name: getattr(one, name) for name in type(one).__struct_fields__}


@pytest.fixture
def artifacts(tmp_path, verifier, run_step):
    """Tokens, vocabulary and states of eight documents that count upwards."""
    tokenizer = ChatTokenizer.load(verifier_directory(verifier))
    tokens = tmp_path / "made-tokens"
    tokens.mkdir()
    documents = [
        Document(str(n), [(n * 7 + i) % 60 for i in range(12 + n)], [0] * 3 + [1] * (9 + n), is_holdout=n % 4 == 3)
        for n in range(8)
    ]
    save_tokens(
        tokens, documents, TokenOrigin(300, (258,), tokenizer.tokenizer_sha256, tokenizer.chat_template_sha256, 64)
    )
    one = recipe(FIRST)
    words, _ = run_step(vocabulary.STEP, plain(one), tokens=tokens)
    states, _ = run_step(hidden_states.steps(one)[0], plain(one), verifier=verifier, tokens=tokens)
    return {"verifier": verifier, "tokens": tokens, "vocabulary": words, "hidden_states": states}


@pytest.fixture
def run(tmp_path, artifacts):
    """Train by these settings into a folder of this name; gives the folder."""

    def trained(sets, name, report=None, processes=1):
        one, output = recipe(sets), tmp_path / name
        output.mkdir(exist_ok=True)
        (step,) = train.steps(one)
        inputs = {source: artifacts[source] for source in step.inputs}
        config = SimpleNamespace(**plain(one))
        step.run(
            Context(
                config=config,
                inputs=inputs,
                output=output,
                report=report or Silent(),
                processes=processes,
                run_folder=tmp_path,
            )
        )
        return output

    return trained


def figures(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MACHINE} for line in lines]


def result(folder):
    found = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in found.items() if name not in MACHINE | {"seconds"}}


class Ending(Silent):
    """Does something at the first progress beyond a share of all tokens; remembers what it heard."""

    def __init__(self, beyond, do):
        self._beyond, self._do = beyond, do
        self.heard, self.messages = [], []

    def progress(self, done, total, unit):
        if unit != "tokens":
            return
        self.heard.append((done, total))
        if self._do is not None and done > self._beyond * total:
            do, self._do = self._do, None
            do()

    def message(self, text):
        self.messages.append(text)


class Killed(BaseException):
    pass


def die():
    raise Killed


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def test_one_training_in_two_phases_is_two_trainings_to_the_bit(run, run_step, verifier):
    told = Ending(1, None)
    both, first = run(BOTH, "both", told), run(FIRST, "first")
    one = recipe(FIRST)
    made, _ = run_step(checkpoint.steps(one)[0], plain(one), verifier=verifier, train=first)
    second = run([*SECOND, f"train.initialize_from={made}"], "second")
    assert sorted(file.name for file in both.iterdir()) == [
        "draft.json",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    ]
    assert (both / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    before, after = result(first), result(second)
    steps = before["steps"]
    assert figures(both) == figures(first) + [line | {"at": steps + line["at"]} for line in figures(second)]
    assert result(both)["steps"] == steps + after["steps"]
    assert result(both)["tokens"] == before["tokens"] + after["tokens"]
    assert result(both)["best"] == after["best"] | {"at": steps + after["best"]["at"]}
    assert {total for _, total in told.heard} == {told.heard[-1][0]}
    assert [done for done, _ in told.heard] == sorted({done for done, _ in told.heard})


@pytest.mark.parametrize(("do", "how"), [(stop, KeyboardInterrupt), (die, Killed)])
def test_what_was_done_of_either_phase_is_taken_up_again(run, do, how):
    whole = run(BOTH, "whole")
    with pytest.raises(how):
        run(BOTH, "parts", Ending(0.3, do))
    (partial,) = (one for one in whole.parent.joinpath("parts").iterdir() if one.name.endswith(".partial"))
    assert list((partial / "checkpoints").iterdir())
    with pytest.raises(how):
        run(BOTH, "parts", Ending(0.8, do))
    assert (whole.parent / "parts/first-phase/result.json").is_file()
    assert list((whole.parent / "parts/checkpoints").iterdir())
    last = Ending(1, None)
    parts = run(BOTH, "parts", last)
    assert last.heard[0][0] > 0.6 * last.heard[0][1], "nothing of the first phase was done again"
    assert any(message.startswith("going on after step") for message in last.messages)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert figures(parts) == figures(whole)
    assert result(parts) == result(whole)
    assert sorted(file.name for file in parts.iterdir()) == sorted(file.name for file in whole.iterdir())


@pytest.mark.parametrize("folder", ["parts", "parts/.first-phase.partial"])
def test_a_kill_when_a_phase_is_done_loses_nothing_of_it(run, monkeypatch, folder):
    from speculators.training import loop

    tidied = loop._tidied

    def die_there(output):
        if output == whole.parent / folder:
            raise Killed
        return tidied(output)

    whole = run(BOTH, "whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_tidied", die_there)
        with pytest.raises(Killed):
            run(BOTH, "parts")
    heard = Ending(1, None)
    parts = run(BOTH, "parts", heard)
    assert not heard.heard or heard.heard[0][0] > 0.4 * heard.heard[0][1], "nothing of the first phase was done again"
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert figures(parts) == figures(whole)
    assert sorted(file.name for file in parts.iterdir()) == sorted(file.name for file in whole.iterdir())


def test_a_stop_between_the_phases_is_heard(run, monkeypatch):
    from speculators.training import inputs

    whole = run(BOTH, "whole")
    take = inputs.take_draft
    monkeypatch.setattr(inputs, "take_draft", lambda *given: (stop(), take(*given)))
    with pytest.raises(KeyboardInterrupt):
        run(BOTH, "parts")
    monkeypatch.setattr(inputs, "take_draft", take)
    assert (run(BOTH, "parts") / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_processes_train_both_phases_together_and_go_on(run):
    def interrupt():
        raise KeyboardInterrupt

    alone = run(BOTH, "alone")
    long = alone.parent / "together"
    with pytest.raises(KeyboardInterrupt):
        run(BOTH, "together", Ending(0, interrupt), processes=2)
    assert list(long.glob(".first-phase.partial/checkpoints/step-*"))
    with pytest.raises(KeyboardInterrupt):
        run(BOTH, "together", Ending(0.5, interrupt), processes=2)
    assert list(long.glob("checkpoints/step-*"))
    together = run(BOTH, "together", processes=2)
    expected = load_file(alone / "model.safetensors")
    for name, one in load_file(together / "model.safetensors").items():
        torch.testing.assert_close(one, expected[name], rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(figures(together), figures(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_states_that_are_made_meanwhile_serve_both_phases(run):
    online = ["data.hidden_states.mode=online", "data.hidden_states.buffer_tokens=256"]
    stored = load_file(run(BOTH, "stored") / "model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run([*BOTH, *online], "online", Ending(0.7, stop))
    for name, one in load_file(run([*BOTH, *online], "online") / "model.safetensors").items():
        torch.testing.assert_close(one, stored[name], rtol=1e-3, atol=1e-5)


def test_the_second_phase_has_the_first_s_options_where_it_names_none():
    one = recipe([*FIRST, "train.second_phase={}", "train.initialize_from=."])
    first, second = phases(one.algorithm, one.train)
    assert (first.algorithm, first.options.epochs) == (second.algorithm, 5)
    assert (second.options.epochs, second.options.initialize_from) == (1, None)
    assert (second.options.optimizer, second.options.schedule) == (first.options.optimizer, first.options.schedule)
    assert first.options.second_phase is None


def test_everything_about_the_second_phase_is_in_the_key_and_its_absence_is_not():
    (step,) = train.steps(recipe(FIRST))
    keys = [
        semantic(recipe(sets), step.reads)
        for sets in (
            FIRST,
            BOTH,
            [*BOTH, "train.second_phase.epochs=7"],
            [*BOTH, "train.second_phase.optimizer.learning_rate=0.5"],
            [*BOTH, "train.second_phase.schedule.warmup=0.5"],
            [*BOTH, "train.second_phase.loss.top_k=0.5"],
        )
    ]
    assert "second_phase" not in keys[0]["train"]
    assert all(one not in keys[:place] for place, one in enumerate(keys))


def test_the_estimate_counts_both_phases():
    facts = {
        "layers": 7.0, "hidden_size": 64.0, "intermediate_size": 160.0, "attention_heads": 4.0, "key_value_heads": 2.0,
        "head_dim": 16.0, "vocab_size": 512.0, "weight_bytes": 1e6, "tokens": 1e9, "documents": 1e6,
        "holdout_documents": 1e4, "training_tokens_per_second": 1e6,
    }  # fmt: skip

    def estimate(*sets):
        made = load_recipe("tiny", sets=[*sets])
        assembly = assemble(made.recipe, made.data)
        (step,) = (one for one in assembly.steps if one.name == "train")
        return step.estimate(Scope(assembly.view(step.reads), facts))

    one, two = estimate(*FIRST), estimate(*BOTH)
    assert two.seconds == pytest.approx(one.seconds * 11 / 5)
    assert two.disk > one.disk
    online = "data.hidden_states.mode=online"
    assert estimate(*BOTH, online).seconds == pytest.approx(estimate(*FIRST, online).seconds * 11 / 5)


def test_a_second_optimizer_that_needs_torchao_says_so_before_anything_runs(monkeypatch):
    one = recipe([*FIRST, "train.second_phase.optimizer.type=adamw8bit"])
    (step,) = train.steps(one)
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"`train\.second_phase\.optimizer\.type` is adamw8bit"):
        step.needs(one)
