import dataclasses

import pytest

from cluster.errors import UserError
from stages.context import Output, read_output
from stages.data.manifest import dataset_meta
from stages.data.table import File, Shard, ShardTable, table_bytes
from tests.unit.stages.shards import shards


def changed(output, **meta):
    return Output(prefix=output.prefix, manifest={**output.manifest, "meta": {**output.meta, **meta}})


def test_the_description_survives_storage(digits):
    storage, output = digits
    meta = dataset_meta(read_output(storage, output.prefix))
    assert meta == dataset_meta(output)
    assert meta.to_meta() == output.meta


def test_shards_of_several_splits_lie_end_to_end(digits):
    storage, output = digits
    train, test = shards(storage, output, "train"), shards(storage, output, "test")
    both = shards(storage, output, "train", "test")
    assert list(both) == [*train, *test]
    assert both.counts.tolist() == [shard.count for shard in both]
    assert both[-1] == test[len(test) - 1]
    assert both[1:3] == [both[1], both[2]]
    with pytest.raises(IndexError):
        both[len(both)]


def test_a_table_gives_back_any_shards_and_costs_little(tmp_path):
    def file(name, number):
        return File(address=f"{name}/train-{number:06d}", bytes=number * 10**9, sha256=f"{number:064x}")

    rows = [Shard(tar=file("shards", i), index=file("index", i), count=i % 7) for i in range(1000)]
    (tmp_path / "table").write_bytes(table_bytes(rows))
    assert list(ShardTable(tmp_path / "table")) == rows
    assert (tmp_path / "table").stat().st_size / len(rows) < 150


def test_an_unknown_split_is_answered_with_the_ones_that_there_are(digits):
    with pytest.raises(UserError, match=r"'tset'.*train, validation, test, held_out, held_out_test"):
        shards(*digits, "tset")


def test_a_newer_format_and_another_kind_are_refused(digits):
    _, output = digits
    with pytest.raises(UserError, match="install a newer"):
        dataset_meta(changed(output, format=3))
    with pytest.raises(UserError, match="has format 1; this version reads 2: ingest it"):
        dataset_meta(changed(output, format=1))
    with pytest.raises(UserError, match="is a model"):
        dataset_meta(dataclasses.replace(output, manifest={**output.manifest, "kind": "model"}))
