"""What steps ask of a cluster, as it is written on the command line."""

import pytest

from speculators.errors import UsageError
from speculators.pipeline.executors.requests import Requests, Resources


def test_what_is_asked_for_all_steps_holds_unless_a_step_is_named():
    asked = Requests.parse(
        {"gpus": ["1", "train=8"], "cpus": [], "memory": ["64GB", "tokens=1.5 TB"], "time": ["90m", "train=1d12h"]}
    )
    assert asked.of("train", uses_gpu=True) == Resources(8, None, 64 * 10**9, 36 * 60)
    assert asked.of("tokens", uses_gpu=True) == Resources(1, None, 1500 * 10**9, 90)


def test_a_step_without_use_for_gpus_gets_them_only_by_its_name():
    asked = Requests.parse({"gpus": ["2", "vocabulary=1"]})
    assert asked.of("tokens", uses_gpu=False).gpus is None
    assert asked.of("vocabulary", uses_gpu=False).gpus == 1
    assert Requests().of("tokens", uses_gpu=True) == Resources()


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("gpus", "two", "--gpus two: a whole number is expected, or STEP=NUMBER"),
        ("gpus", "train=-1", "--gpus -1: a whole number is expected"),
        ("gpus", "=1", "--gpus =1: the step is missing before `=`"),
        ("memory", "64", "--memory 64: a size such as 64GB is expected"),
        ("memory", "train=64GiB", "a size such as 64GB is expected"),
        ("time", "4:00:00", "--time 4:00:00: a time such as 90m, 4h or 1d12h is expected"),
        ("time", "4", "a time such as 90m"),
        ("partition", "train=", "--partition is empty"),
    ],
)
def test_nonsense_is_refused_with_what_is_expected(kind, text, words):
    with pytest.raises(UsageError) as caught:
        Requests.parse({kind: [text]})
    assert words in str(caught.value)


def test_a_step_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"--gpus trian=8: the recipe has no step `trian`; did you mean `train`\?"):
        Requests.parse({"gpus": ["1", "trian=8"]}).check(["tokens", "train"])
