"""Both engines do the verifier's work alike: the same words, the same hidden states; and a dead server is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch

from speculators.data.hidden_states import ShardWriter, is_whole, plan_shards
from speculators.data.tokens import Reading
from speculators.decoding.request import Request
from speculators.engines.base import DocumentStates
from speculators.engines.opened import Opening, extracting, generating
from speculators.engines.stored_states import write_shards
from speculators.errors import StepError
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

LAYERS = (2, 3, 5)

Servers = Callable[[], list[psutil.Process]]


def documents(lengths: Sequence[int] = (3, 90, 17, 300, 16, 33)) -> list[Reading]:
    """Of random tokens; the verifier's predictions are wanted after the later ones."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 256, (length,), generator=generator) for length in lengths]
    return [Reading(one, torch.arange(len(one)) >= len(one) // 3) for one in ids]


def test_greedy_answers_are_the_same_and_a_kill_among_them_is_told(
    verifier: Path, engine: VllmEngine, embedded: TransformersEngine, servers: Servers, tmp_path: Path
) -> None:
    asked = [Request([9, number, 4], 40, stop_ids=frozenset(range(0, 300, 60))) for number in range(12)]
    with generating(Opening(embedded, verifier, "float32", None, tmp_path)) as answer:
        wanted = {one.number: one for one in answer(asked)}
    scratch = tmp_path / "engine"

    def lose_the_server() -> Iterator[None]:
        with generating(Opening(engine, verifier, "float32", None, scratch)) as answer:
            assert {one.number: one for one in answer(asked)} == wanted
            sampled = [Request([9, 8, 4], 30, temperature=1.0, seed=seed) for seed in (5, 6, 5)]
            ids = {one.number: one.token_ids for one in answer(sampled)}
            assert ids[0] == ids[2] != ids[1]
            yield
            many = answer([Request([7, number % 250, 1], 900) for number in range(200)])
            next(many)
            next(one for one in servers() if "serve" in one.cmdline() and "tied" not in str(one.cmdline())).kill()
            list(many)

    losing = lose_the_server()
    next(losing)
    with pytest.raises(StepError, match="ended with code -9 while it was needed"):
        next(losing)
    assert psutil.wait_procs(servers(), timeout=30)[1] == []
    assert {one.reason for one in wanted.values()} == {"stop", "length"}
    assert (scratch / "vllm-0.log").is_file(), "what the server said is kept when it fails"


def test_a_server_killed_in_the_middle_of_extraction_is_told_and_what_was_whole_is_kept(
    verifier: Path, engine: VllmEngine, servers: Servers, tmp_path: Path
) -> None:
    many = documents([200] * 96)
    shards = plan_shards([200] * len(many), 4 * 128 * 4 + 4, 8 * 200 * 4 * 128 * 4)
    assert len(shards) > 8

    def lose_the_server() -> None:
        with extracting(Opening(engine, verifier, "float32", None, tmp_path / "engine"), LAYERS) as extract:
            for done in write_shards(extract, many.__getitem__, shards, torch.float32, tmp_path):
                if done == 2 * 8 * 200 + 200:
                    serving = (one for one in servers() if "serve" in one.cmdline())
                    next(one for one in serving if "tied" not in str(one.cmdline())).kill()

    with pytest.raises(StepError, match="ended with code -9 while it was needed"):
        lose_the_server()
    assert psutil.wait_procs(servers(), timeout=30)[1] == []
    whole = [shard.file for shard in shards if is_whole(tmp_path / shard.file, shard)]
    assert whole[:2] == [shard.file for shard in shards[:2]]
    assert len(whole) < len(shards)
    assert not [file.name for file in tmp_path.glob("*.safetensors") if file.name not in whole], "no half file"


def test_hidden_states_agree_layer_by_layer_and_scratch_files_go(
    verifier: Path, engine: VllmEngine, embedded: TransformersEngine, tmp_path: Path
) -> None:
    found: list[dict[int, DocumentStates]] = []
    for number, one in enumerate((engine, embedded)):
        scratch = tmp_path / str(number)
        with extracting(Opening(one, verifier, "float32", None, scratch), LAYERS) as extract:
            found.append({states.number: states for states in extract(documents())})
            assert [*scratch.glob("*.safetensors*")] == []
        assert not scratch.exists()
    theirs, ours = found
    assert sorted(theirs) == sorted(ours) == list(range(len(documents())))
    hidden = ours[0].last.shape[1]
    for number, states in ours.items():
        for name in ("aux", "last"):
            for part in range(getattr(states, name).shape[1] // hidden):
                columns = slice(part * hidden, (part + 1) * hidden)
                want, got = getattr(states, name)[:, columns], getattr(theirs[number], name)[:, columns]
                assert (got - want).norm() < 1e-3 * want.norm(), (number, name, part)
        assert torch.equal(states.argmax, theirs[number].argmax)
        assert not torch.equal(states.aux[:, :hidden], states.aux[:, hidden : 2 * hidden])
    lengths = [len(one) for one in documents()]
    (shard,) = plan_shards(lengths, 1, 1 << 30)
    writer = ShardWriter(shard, lengths, torch.float32)
    for states in theirs.values():
        writer.put(states.number, states.aux, states.last, states.argmax)
    writer.publish(tmp_path)


def test_the_last_state_alone_is_given_to_drafts_that_read_no_other(
    verifier: Path, engine: VllmEngine, embedded: TransformersEngine, tmp_path: Path
) -> None:
    found: list[dict[int, DocumentStates]] = []
    for number, one in enumerate((engine, embedded)):
        with extracting(Opening(one, verifier, "float32", None, tmp_path / str(number)), ()) as extract:
            found.append({states.number: states for states in extract(documents())})
    theirs, ours = found
    for number, states in ours.items():
        assert theirs[number].aux.shape == states.aux.shape == (len(states.argmax), 0)
        assert (theirs[number].last - states.last).norm() < 1e-3 * states.last.norm()
        assert torch.equal(states.argmax, theirs[number].argmax)
