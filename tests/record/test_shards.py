"""Shards: what any number of ranks has written, any other number reads, each rank its own rows, to the bit."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from record.integrity import damage, listed, write_manifest
from record.shards import Shards, Staging, join_shards, write_shard

SHAPES = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4
)


@contextlib.contextmanager
def rank_of(number, world_size):
    """A rank that sees no other: its tensors are sharded, and nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=number, world_size=world_size)
    try:
        yield init_device_mesh("cpu", (world_size,))
    finally:
        dist.destroy_process_group()


def sharded(tensors, mesh):
    """The tensors as a rank of FSDP2 has them; those without dimensions are whole on each."""
    return {n: distribute_tensor(t, mesh, [Shard(0)], src_data_rank=None) if t.ndim else t for n, t in tensors.items()}


def written(tensors, world_size, folder):
    for number in range(world_size):
        with rank_of(number, world_size) as mesh:
            parts = Staging().copy(sharded(tensors, mesh), main=number == 0)
            write_shard(folder, number, parts)
    return join_shards(folder, world_size)


@settings(max_examples=10)
@given(SHAPES, st.integers(1, 5), st.integers(1, 5))
def test_every_rank_reads_its_rows_of_what_any_number_of_ranks_has_written(tmp_path_factory, shapes, before, after):
    folder = tmp_path_factory.mktemp("shards")
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    facts = written(tensors, before, folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*facts, "shards.json"])
    shards = Shards(folder)
    assert {name: shards.whole(name).tolist() for name in shards.names("")} == {
        n: t.tolist() for n, t in tensors.items()
    }
    for number in range(after):
        with rank_of(number, after) as mesh:
            targets = sharded({n: torch.full_like(t, torch.nan) for n, t in tensors.items()}, mesh)
            for name, target in targets.items():
                shards.fill(name, target)
                whole = tensors[name]
                rows = torch.chunk(whole, after) if whole.ndim else [whole] * after
                own = target.to_local() if isinstance(target, DTensor) else target
                assert own.equal(rows[number] if number < len(rows) else whole[:0]), (name, number)


def test_a_staged_copy_stays_what_it_was_and_its_memory_is_used_again():
    staging, weight = Staging(), torch.arange(6.0).reshape(2, 3).T
    (part,) = staging.copy({"w": weight}, main=True).values()
    weight.zero_()
    assert part.rows.tolist() == [[0, 3], [1, 4], [2, 5]]
    (again,) = staging.copy({"w": weight + 1}, main=True).values()
    assert again.rows.data_ptr() == part.rows.data_ptr()
    assert again.rows.tolist() == [[1, 1]] * 3


def test_an_index_that_does_not_fit_is_refused(tmp_path):
    written({"a": torch.randn(4, 2)}, 2, tmp_path)
    index = json.loads((tmp_path / "shards.json").read_text())
    with pytest.raises(ValueError, match=r"shards.json has no tensor a of shape \[3, 2\]"):
        Shards(tmp_path).fill("a", torch.zeros(3, 2))
    index["tensors"]["a"]["parts"].pop()
    (tmp_path / "shards.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"shards.json: rows of a are missing"):
        Shards(tmp_path).whole("a")
    (tmp_path / "shards.json").write_text("{}")
    with pytest.raises(ValueError, match=r"shards.json is damaged"):
        Shards(tmp_path)


def test_nothing_is_joined_before_all_ranks_have_written(tmp_path):
    with rank_of(0, 2) as mesh:
        write_shard(tmp_path, 0, Staging().copy(sharded({"a": torch.randn(4)}, mesh), main=True))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        join_shards(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_shard_s_own_sum_is_in_the_manifest(tmp_path):
    facts = written({"a": torch.randn(4, 2)}, 2, tmp_path)
    write_manifest(tmp_path, facts)
    assert damage(tmp_path) is None
    assert listed(tmp_path).keys() == {*facts, "shards.json"}
    path = tmp_path / "shard_00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert damage(tmp_path) == "shard_00001.safetensors is not what was written (its SHA-256 differs)"
