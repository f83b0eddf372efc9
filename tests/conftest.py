"""Every test starts from the same seed and never reaches the network; and the command line as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

THREADS = max(1, min(2, os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
"""Of torch, here and in what tests start: workers that share cores would wait for each other at every product."""

os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # read when torch is loaded
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine is not a fault
hypothesis.settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests with a real vLLM come first: one worker has them all, and would have them alone at the end."""
    items.sort(key=lambda item: item.path.parent.name != "vllm")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`lacking("s3", "s3fs")`: as if the package for such URLs were not installed."""
    from fsspec.registry import _registry

    def lack(scheme: str, package: str) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(_registry, scheme, raising=False)

    return lack


@pytest.fixture
def start() -> Any:
    """Starts `speculators ARGUMENTS` in `folder` and gives the process; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, folder: Path, store: Path | None = None) -> subprocess.Popen[str]:
        environment = {**os.environ, "NO_COLOR": "1", "SPECULATORS_STORE": str(store or folder / "store")}
        process = subprocess.Popen(
            [sys.executable, "-m", "speculators", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def speculators(start: Any) -> Command:
    """Runs `speculators ARGUMENTS` in `folder` to its end; `stdout` has all that it printed."""

    def run(
        *arguments: str, folder: Path, store: Path | None = None, timeout: int = 300
    ) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, folder=folder, store=store)
        printed, _ = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, printed, "")

    return run


@pytest.fixture(scope="session")
def quickstart_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the quickstart was run before, if `SPECULATORS_STORE` says so; else one place for all tests and workers."""
    given = os.environ.get("SPECULATORS_STORE")
    if given is not None:
        return Path(given)
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "quickstart-store"


@pytest.fixture
def results() -> Callable[[Path, str], dict[str, Any]]:
    """The latest run's results.json."""

    def read(folder: Path, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "runs" / name / "latest" / "results.json").read_text())
        return found

    return read


@pytest.fixture
def steps() -> tuple[str, ...]:
    """Every step of a whole recipe that leaves an artifact, in order."""
    return (
        *("verifier", "prompts", "answers", "tokens", "vocabulary", "hidden_states", "train"),
        *("checkpoint", "acceptance", "benchmark-dense", "benchmark-speculator"),
    )


@pytest.fixture(scope="session")
def short_training():
    """Train a draft of the section `said` of a recipe for a few steps on documents (prompt, answer) of a verifier.

    Gives its objective, the batch, and the losses. Heavy libraries are imported here: other tests' command lines must
    not wait for them.
    """
    import torch

    from speculators.algorithms import load
    from speculators.algorithms.base import Batch
    from speculators.algorithms.building import build_objective
    from speculators.data.vocabulary import Coverage, DraftVocabulary, membership, offsets
    from speculators.recipe.load import load_recipe
    from speculators.verifiers.facts import VerifierFacts
    from speculators.verifiers.weights import VerifierWeights

    def vocabulary(size, whole):
        if size is None:
            return DraftVocabulary(whole, whole, None, None, Coverage(1.0, 1.0))
        kept = torch.randperm(whole, generator=torch.Generator().manual_seed(3))[:size].sort().values
        return DraftVocabulary(size, whole, offsets(kept), membership(kept, whole), Coverage(1.0, 1.0))

    def teacher_forced(verifier, documents):
        ids = [torch.tensor(prompt + answer) for prompt, answer in documents]
        passes = [verifier.forward(one[None], verifier.new_cache(1, len(one)), torch.tensor([0]), "all") for one in ids]
        return Batch(
            lengths=tuple(map(len, ids)),
            input_ids=torch.cat(ids),
            loss_mask=torch.cat([torch.arange(len(p) + len(a)) >= len(p) for p, a in documents]),
            aux=torch.cat([one.aux[0] for one in passes]),
            last=torch.cat([one.last[0] for one in passes]),
            argmax=torch.cat([one.logits[0].argmax(-1) for one in passes]),
        )

    def train(said, verifier, directory, documents, *, steps, rate=5e-3):
        sets = ["verifier.random=null", f"verifier.model={directory}", f"algorithm={{{said}}}"]
        options = load_recipe("tiny", sets=sets).recipe.algorithm
        facts = VerifierFacts.from_directory(directory)
        objective = build_objective(
            options,
            facts,
            VerifierWeights.read(directory),
            vocabulary(getattr(options, "draft_vocab_size", None), facts.vocab_size),
            aux_layers=load(options.name, "config").verifier_layers(options, facts.layers),
            precision="float32",
            seed=0,
        )
        batch, losses = teacher_forced(verifier, documents), []
        wanted = [one for one in objective.network.parameters() if one.requires_grad]
        optimizer = torch.optim.Adam(wanted, rate)
        for step in range(steps):
            optimizer.zero_grad()
            noise = [torch.Generator().manual_seed(1000 * step + number) for number in range(len(documents))]
            loss = objective.evaluate(batch, lambda number, noise=noise: noise[number].clone_state()).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        objective.network.requires_grad_(requires_grad=False).eval()
        return objective, batch, losses, options.speculative_tokens

    return train


@pytest.fixture
def flexible_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has FlexAttention's gradients on a CPU, from dense scores, but refuses to begin; here it begins."""
    import torch
    import torch.nn.attention.flex_attention as flexible

    torch._dynamo.reset()
    monkeypatch.setattr(flexible, "_validate_device", lambda *tensors: None)
