import dataclasses
from collections import Counter

import pytest

from cluster.errors import UserError
from stages.context import Output, read_output
from stages.data.cache import ShardCache
from stages.data.dataset import open_class_counts
from stages.data.manifest import base_folder, dataset_meta
from stages.data.table import ClassCounts, File, Shard, ShardTable, class_counts_bytes, table_bytes
from tests.unit.stages.shards import index, shards


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


def test_each_shard_says_its_classes_and_a_data_set_need_not(digits, tmp_path):
    storage, output = digits
    cache = ShardCache(storage, base_folder(output), tmp_path / "cache")
    meta = dataset_meta(output)
    for name, split in meta.splits.items():
        counts = open_class_counts(cache, output, name)
        assert counts is not None
        assert list(counts) == [index(storage, output, n, name).class_counts() for n in range(split.shards)]
        total = sum((Counter(own) for own in counts), Counter())
        assert tuple(total[label] for label in range(len(meta.classes))) == split.class_counts
    files = [entry for entry in output.manifest["files"] if not entry["path"].endswith(".classes.safetensors")]
    older = dataclasses.replace(output, manifest={**output.manifest, "files": files})
    assert open_class_counts(cache, older, "train") is None
    assert len(shards(storage, older, "train")) == meta.splits["train"].shards


def test_class_counts_take_8_bytes_for_each_class_of_a_shard(tmp_path):
    rows = [{label: 1 + label for label in range(number % 5, 1000)} for number in range(100)]
    (tmp_path / "counts").write_bytes(class_counts_bytes([*rows, {}]))
    assert list(ClassCounts(tmp_path / "counts")) == [*rows, {}]
    assert ClassCounts(tmp_path / "counts")[-2:] == [rows[-1], {}]
    assert (tmp_path / "counts").stat().st_size / sum(map(len, rows)) < 8.1


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
