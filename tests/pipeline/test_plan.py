"""Plans: what enters a key, what must run and why, backwards from the targets."""

import subprocess
import sys
from dataclasses import replace

import pytest

from speculators.errors import MachineError, UsageError
from speculators.pipeline.plan import check_machine, ordered
from speculators.pipeline.reasons import Reason
from speculators.pipeline.step import Step


def states(plan):
    return {planned.name: planned.state for planned in plan.steps}


def whys(plan):
    return {planned.name: planned.why.text for planned in plan.steps if planned.why and planned.step.cached}


def test_before_the_first_run_all_steps_are_new(toy):
    assert set(whys(toy.plan()).values()) == {"new"}


def test_a_change_runs_the_step_that_reads_it_and_what_is_made_from_that(toy):
    toy.run()
    plan = toy.plan({"shards": {"factor": 5}})
    assert whys(plan) == {
        "shards": "shards.factor: default -> 5",
        "total": "input shards changed",
    }
    assert plan["shards"].why.reason is Reason.CONFIG_CHANGED
    toy.run({"shards": {"factor": 5}})
    assert whys(toy.plan({"shards": {"factor": 6}}))["shards"] == "shards.factor: 5 -> 6"


def test_defaults_and_operational_values_do_not_enter_keys(toy):
    keys = {planned.name: planned.key for planned in toy.plan().steps}
    same = toy.plan({"numbers": {"count": 3}, "threads": 8, "disk": 1})
    assert {planned.name: planned.key for planned in same.steps} == keys


def test_every_declared_value_enters_the_key(toy):
    key = toy.plan()["numbers"].key
    others = [toy.plan({"numbers": change})["numbers"].key for change in ({"count": 4}, {"start": 1})]
    assert len({key, *others}) == 3


def test_what_a_step_does_not_declare_cannot_reach_it(toy, toy_graph):
    """The whole undeclared half of the recipe is poison; every step must do without it."""

    class Poison:
        def __getattr__(self, name):
            pytest.fail(f"{name} was read")

    for step in toy_graph.STEPS:
        data = toy_graph.filled({})
        view = toy_graph.View(
            {name: data[name] if any(r.startswith(name) for r in step.reads) else Poison() for name in data}, step.reads
        )
        step.external(view)
        step.estimate(type("Scope", (), {"config": view, "facts": {}})())
        undeclared = next(name for name in data if not any(read.startswith(name) for read in step.reads))
        with pytest.raises(AttributeError, match="declared"):
            getattr(view, undeclared)


def test_plans_go_backwards_an_input_that_nobody_needs_may_be_gone(toy):
    run = toy.run()
    for step in ("numbers", "shards", "words"):
        toy.store.discard(run.artifact(step).name)
    plan = toy.plan()
    assert states(plan) == {
        "numbers": "skipped", "shards": "skipped", "words": "skipped", "total": "cached", "report": "run",
    }  # fmt: skip
    assert plan.to_run == ()
    again = toy.run()
    assert again.outcome.exit_code == 0
    assert again.did == {"total": "step_cached", "report": "step_finished"}


def test_an_input_that_is_needed_again_is_made_again(toy):
    run = toy.run()
    toy.store.discard(run.artifact("shards").name)
    plan = toy.plan({"total": {"noise": True}})
    assert states(plan)["shards"] == "run"
    assert states(plan)["numbers"] == "cached"


def test_a_new_version_of_a_step_says_so(toy, toy_graph, monkeypatch):
    toy.run()
    newer = tuple(replace(step, version=2) if step.name == "words" else step for step in toy_graph.STEPS)
    monkeypatch.setattr(toy_graph, "STEPS", newer)
    assert whys(toy.plan()) == {"words": "step version: 1 -> 2", "total": "input words changed"}


def test_a_changed_external_file_says_so(toy, tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("old")
    toy.run({"words": {"file": str(file)}})
    file.write_text("newer")
    assert whys(toy.plan({"words": {"file": str(file)}}))["words"].startswith("external file: ")


def test_a_step_bound_to_its_machine_is_measured_again_on_another(toy, toy_graph, monkeypatch):
    bound = tuple(replace(step, machine_bound=step.name == "total") for step in toy_graph.STEPS)
    monkeypatch.setattr(toy_graph, "STEPS", bound)
    toy.run()
    monkeypatch.setattr("speculators.pipeline.machine.machine_class", lambda: "8x NVIDIA H200")
    plan = toy.plan()
    assert [planned.name for planned in plan.to_run] == ["total"]
    assert plan["total"].why.reason is Reason.MACHINE_CHANGED


def test_forced_steps_take_what_is_made_from_them_along(toy):
    toy.run()
    assert whys(toy.plan(force=("numbers",))) == {
        "numbers": "forced", "shards": "numbers is made again", "total": "numbers is made again",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("selection", "run"),
    [
        ({"until": ("shards",)}, {"numbers", "shards"}),
        ({"until": ("words", "numbers")}, {"numbers", "words"}),
        ({"only": ("words",)}, {"words"}),
        ({"start": ("shards",)}, {"numbers", "shards", "words", "total", "report"}),
        ({"start": ("shards",), "until": ("shards",)}, {"numbers", "shards"}),
    ],
)
def test_selections_run_what_they_say(toy, selection, run):
    assert {name for name, state in states(toy.plan(**selection)).items() if state == "run"} == run


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"only": ("shards",)}, "`--only shards` needs numbers"),
        ({"until": ("shard",)}, "did you mean `shards`"),
        ({"only": ("words",), "until": ("words",)}, "cannot be combined"),
        ({"start": ("words",), "until": ("shards",)}, "no step lies between"),
        ({"until": ("numbers",), "force": ("total",)}, "--force total is outside"),
    ],
)
def test_selections_without_sense_are_refused(toy, selection, words):
    with pytest.raises(UsageError, match=words):
        toy.plan(**selection)


def test_a_machine_that_is_too_small_is_told_before_anything_runs(toy):
    check_machine(toy.plan())
    with pytest.raises(MachineError, match=r"1\.0e?\+?\d* ?.*shards|shards"):
        check_machine(toy.plan({"disk": 10**18}))


def test_what_is_not_installed_is_told_before_anything_runs_unless_its_step_is_cached(toy):
    def lacking(config):
        raise MachineError(f"no library for {config.words}")

    def plan():
        made = toy.plan()
        steps = (
            replace(one, step=replace(one.step, needs=lacking)) if one.name == "words" else one for one in made.steps
        )
        return replace(made, steps=tuple(steps))

    with pytest.raises(MachineError, match="no library for"):
        check_machine(plan())
    toy.run()
    check_machine(plan())


def test_the_largest_step_says_how_to_do_with_less_disk(toy):
    with pytest.raises(MachineError, match=r"or run anyway with --yes; `--set shards.factor=1` makes fewer$"):
        check_machine(toy.plan({"disk": 10**18}))


def test_estimates_follow_what_earlier_runs_took(toy):
    toy.run()
    took = toy.store.history("shards")[0].manifest.seconds
    assert toy.plan({"shards": {"factor": 3}})["shards"].estimate.seconds == pytest.approx(took)


def test_another_recipe_s_work_serves_as_it_is_and_explains_only_small_differences(toy, monkeypatch):
    toy.run()
    assert not toy.plan({"name": "other"}).to_run
    small = toy.plan({"name": "other", "numbers": {"count": 5}})
    assert whys(small)["numbers"] == "numbers.count: default -> 5"
    monkeypatch.setattr("speculators.pipeline.plan._TELLING_SECONDS", 0.0)
    told = toy.plan({"name": "other", "numbers": {"count": 5}})
    assert told["numbers"].estimate.seconds == toy.store.history("numbers")[0].manifest.seconds


def test_times_of_another_machine_or_of_a_run_that_mostly_started_say_nothing(toy, monkeypatch):
    toy.run()
    other = {"name": "other", "shards": {"factor": 3}}
    modelled = 1.0  # as the step itself says
    assert toy.plan(other)["shards"].estimate.seconds == modelled  # a second of another recipe
    assert toy.plan({"shards": {"factor": 3}})["shards"].estimate.seconds != modelled
    monkeypatch.setattr("speculators.pipeline.plan.machine_class", lambda: "8x NVIDIA H100")
    assert toy.plan({"shards": {"factor": 3}})["shards"].estimate.seconds == modelled


def test_a_graph_with_mistakes_is_refused():
    def nothing(context):
        pass

    a, b = Step("a", 1, (), nothing, ("b",)), Step("b", 1, (), nothing, ("a",))
    with pytest.raises(ValueError, match="circle"):
        ordered((a, b))
    with pytest.raises(ValueError, match="no steps"):
        ordered((a,))
    with pytest.raises(ValueError, match="same name"):
        ordered((a, a))
    with pytest.raises(UsageError):
        ordered((Step("../x", 1, (), nothing),))


def test_planning_imports_nothing_heavy():
    modules = [f"speculators.cli.{name}" for name in ("plan", "run", "cache", "status", "doctor", "live")]
    modules += ["speculators.steps", "speculators.pipeline.run", "speculators.pipeline.work"]
    code = (
        f"import sys, {', '.join(modules)}\n"
        "heavy = {'torch', 'transformers', 'datasets', 'guidellm', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
