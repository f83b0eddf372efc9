"""A whole training in memory: a small draft, documents, and states that foretell the next token."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.objective import Eagle3Objective
from speculators.data.tokens import TokenDataset, TokenOrigin
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.products import mix_precision
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.eagle3 import Eagle3, Normalization, TrainingTimeTest
from speculators.recipe.shapes.losses import LossWeights
from speculators.recipe.shapes.train import AdamW, Execution, Muon, Schedule, Train, TrainingCheckpoints, Validation
from speculators.training.batches import TrainingData
from speculators.training.loop import Silent, TrainingInputs
from speculators.training.ranks import Ranks, joined
from speculators.verifiers.weights import VerifierWeights

VOCABULARY, HIDDEN = 40, 16
MACHINE = {"tokens_per_second", "data_wait", "memory"}
"""Figures of metrics that are the machine's."""
OPTIMIZERS: dict[str, AdamW | Muon] = {
    "adamw": AdamW(learning_rate=1e-2, weight_decay=0.01, betas=(0.9, 0.95), epsilon=1e-8),
    "muon": Muon(learning_rate=1e-2, adamw_learning_rate=1e-2, weight_decay=0.0, momentum=0.95),
}


class InMemory:
    """States made from the tokens by a fixed random map, so that there is something to learn."""

    def __init__(self, tokens: TokenDataset) -> None:
        generator = torch.Generator().manual_seed(1)
        self._tokens = tokens
        self._aux = torch.randn(VOCABULARY, 3 * HIDDEN, generator=generator)
        self.head = VerifierHead(torch.randn(VOCABULARY, HIDDEN, generator=generator), torch.ones(HIDDEN), 1e-6)

    def document(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.of(self._tokens.document(number)[0])

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        following = ids.roll(-1)
        last = self.head.weight[following] * 2
        argmax = (self.head.normed(last) @ self.head.weight.T).argmax(-1).to(torch.int32)
        return self._aux[following], last, argmax


@pytest.fixture
def dataset() -> TokenDataset:
    """Thirty documents of 5 to 24 tokens, each a walk with a fixed step through the vocabulary; six are held out."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 25, (30,), generator=generator)
    starts = torch.randint(0, VOCABULARY, (30,), generator=generator)
    ids = torch.cat([(start + 3 * torch.arange(n)) % VOCABULARY for start, n in zip(starts, lengths, strict=True)])
    mask = torch.cat([torch.arange(n) >= 3 for n in lengths])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    held_out = torch.arange(30) % 5 == 4
    origin = TokenOrigin(VOCABULARY, (0,), "aa", "bb", 64)
    names = tuple(map(str, range(30)))
    return TokenDataset(ids.to(torch.int32), mask, offsets, held_out, lengths.to(torch.int32), names, origin)


@pytest.fixture
def training(dataset: TokenDataset, tmp_path: Path) -> Callable[..., TrainingInputs]:
    """Inputs of a training into a folder of tmp_path; the same arguments give the same beginning."""

    def build(folder: str = "train", optimizer: str = "muon", precision: str = "float32", **changes: Any) -> Any:
        states = InMemory(dataset)
        config = Eagle3Config(
            hidden_size=HIDDEN,
            intermediate_size=24,
            attention_heads=4,
            key_value_heads=2,
            head_dim=4,
            vocab_size=VOCABULARY,
            draft_vocab_size=VOCABULARY,
            aux_layers=(1, 2, 4),
            rope={"rope_type": "default", "rope_theta": 100.0},
            rms_norm_eps=1e-5,
            max_position_embeddings=256,
        )
        network = Eagle3Network(config)
        embedding = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(2))
        weights = VerifierWeights(embedding, states.head.weight, states.head.norm, states.head.eps)
        network.start_from(weights, DraftVocabulary.whole(VOCABULARY), torch.Generator().manual_seed(3))
        dtype: torch.dtype = getattr(torch, precision)
        if dtype == torch.float64:
            network.double()
        elif dtype != torch.float32:
            mix_precision(network, dtype)
        options = Train(
            initialize_from=None,
            second_phase=None,
            epochs=changes.pop("epochs", 3),
            tokens_per_step=changes.pop("tokens_per_step", 64),
            optimizer=OPTIMIZERS[optimizer],
            schedule=Schedule(type="cosine", warmup=0.1, final=0.1),
            gradient_clip=1.0,
            gradient_clip_value=None,
            precision="bfloat16" if precision == "bfloat16" else "float32",
            validation=Validation(every=changes.pop("validate_every", None), documents=None),
            checkpoint=TrainingCheckpoints(every=changes.pop("save_every", 1000), keep=2),
            execution=Execution(recompute=False, loss_positions=None, compile=False),
            tracking=(),
        )
        output = tmp_path / folder
        output.mkdir(exist_ok=True)
        return TrainingInputs(
            objective=Eagle3Objective(network, algorithm(**changes), states.head, compute_dtype=dtype),
            data=TrainingData(dataset, states),
            options=options,
            seed=7,
            output=output,
            draft=config.to_config_json(),
            report=Silent(),
        )

    return build


def algorithm(**changes: Any) -> Eagle3:
    losses: dict[str, Any] = dict.fromkeys(LossWeights.__struct_fields__, 0.0) | {"kl": 1.0, "ce_target": "teacher"}
    values: dict[str, Any] = {
        "layers": 1,
        "draft_vocab_size": VOCABULARY,
        "aux_layers": (1, 2, 4),
        "training_time_test": TrainingTimeTest(steps=2, decay=1.0),
        "normalization": Normalization(before_residual=True, before_fc=False, per_aux_layer=False, output=False),
        "loss": LossWeights(**losses),
        "reduction": "token_mean",
        "teacher": "renormalized",
        "out_of_vocabulary": "keep",
        "feature_noise": 0.0,
        "train_embeddings": False,
        "train_head": True,
    }
    return Eagle3(**(values | changes))


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """Calls a function with `Ranks` in so many forked processes; what each returned, or the exception it ended by."""
    context, meetings = multiprocessing.get_context("fork"), iter(range(100))

    def run(count: int, do: Callable[[Ranks], Any]) -> list[Any]:
        place = tmp_path / f"meeting-{next(meetings)}"

        def rank(number: int) -> None:
            torch.set_num_threads(1)
            try:
                with joined(number, count, f"file://{place}") as ranks:
                    found = do(ranks)
            except BaseException as error:  # noqa: BLE001  it is what the test asks for
                traceback.print_exc()
                found = error
            place.with_suffix(f".{number}").write_bytes(pickle.dumps(found))
            os._exit(0)

        processes = [context.Process(target=rank, args=(number,)) for number in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            process.kill()
        files = [place.with_suffix(f".{number}") for number in range(count)]
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]  # noqa: S301

    return run


@pytest.fixture
def lines() -> Callable[[Path], list[dict[str, float]]]:
    """Reads the lines of metrics of a training's folder, without what is the machine's."""

    def read(folder: Path) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name not in MACHINE} for line in found]

    return read
