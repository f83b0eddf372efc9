"""Stored states: each document's rows come back, whatever the order they were written in; half a file is no shard."""

from __future__ import annotations

import json

import pytest
import torch

from speculators.data.hidden_states import HiddenStates, ShardWriter, is_whole, plan_shards, write_record
from speculators.errors import ArtifactMismatch

LENGTHS = [3, 5, 1, 7, 2, 4]


def states_of(number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    length = LENGTHS[number]
    aux, last = torch.randn(length, 6, generator=generator), torch.randn(length, 2, generator=generator)
    return aux, last, torch.randint(0, 99, (length,), generator=generator, dtype=torch.int32)


@pytest.fixture
def shards():
    return plan_shards(LENGTHS, row_bytes=10, shard_bytes=90)


@pytest.fixture
def stored(tmp_path, shards):
    for shard in shards:
        numbers = range(shard.first_document, shard.first_document + shard.documents)
        writer = ShardWriter(shard, [LENGTHS[number] for number in numbers], torch.float32)
        for place in reversed(range(shard.documents)):
            writer.put(place, *states_of(shard.first_document + place))
        writer.publish(tmp_path)
    write_record(tmp_path, {"layer_ids": [1, 2, 3], "documents": len(LENGTHS), "tokens": sum(LENGTHS)}, shards)
    return tmp_path


def test_shards_cover_every_document_once_and_in_order(shards):
    assert len(shards) > 1
    assert sum(shard.documents for shard in shards) == len(LENGTHS)
    assert sum(shard.tokens for shard in shards) == sum(LENGTHS)
    for shard in shards:
        assert shard.first_token == sum(LENGTHS[: shard.first_document])
        assert shard.tokens <= 9 or shard.documents == 1


def test_every_document_comes_back_bit_for_bit(stored):
    states = HiddenStates.open(stored)
    for number in range(len(LENGTHS)):
        for found, wanted in zip(states.document(number), states_of(number), strict=True):
            assert torch.equal(found, wanted)


def test_a_truncated_shard_is_not_whole_and_is_refused(stored, shards):
    file = stored / shards[1].file
    assert is_whole(file, shards[1])
    file.write_bytes(file.read_bytes()[:-8])
    assert not is_whole(file, shards[1])
    with pytest.raises(ArtifactMismatch, match=r"states-00001.safetensors in .* is not whole"):
        HiddenStates.open(stored)


def test_nothing_unfinished_has_a_shards_name(tmp_path, shards):
    writer = ShardWriter(shards[0], LENGTHS[: shards[0].documents], torch.float16)
    aux, last, argmax = states_of(0)
    writer.put(0, aux * 1e9, last, argmax)
    with pytest.raises(ArtifactMismatch, match="store them as bfloat16 or float32"):
        writer.publish(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_smaller_types_store_the_nearest_values(tmp_path, dtype):
    (shard,) = plan_shards(LENGTHS[:1], 10, 1000)
    writer = ShardWriter(shard, LENGTHS[:1], dtype)
    writer.put(0, *states_of(0))
    writer.publish(tmp_path)
    write_record(tmp_path, {}, [shard])
    found = HiddenStates.open(tmp_path).document(0)
    assert torch.equal(found[0], states_of(0)[0].to(dtype))
    assert torch.equal(found[2], states_of(0)[2]), "predictions are integers whatever the type"
    assert json.loads((tmp_path / "states.json").read_text())["shards"][0]["tokens"] == 3
