import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.data.cache import CorruptShard, ShardCache
from stages.data.config import DataConfig
from stages.data.decode import UnreadableImage, decode_rgb
from stages.data.evaluation_loader import evaluation_batches
from stages.data.fetch_ahead import FetchAhead
from stages.data.labels import split_labels
from stages.data.loader import TrainLoader
from stages.data.manifest import base_folder, dataset_meta
from stages.data.mixup import mix_images
from stages.data.order import Order, rows_here
from tests.unit.stages.shards import shards

SEED = 5


def seen_classes(output):
    meta = dataset_meta(output)
    return [label for label in range(len(meta.classes)) if label not in meta.held_out]


def class_counts(output, *splits):
    meta = dataset_meta(output)
    return [sum(meta.splits[split].class_counts[label] for split in splits) for label in seen_classes(output)]


def loader(digits, tmp_path, *, rank=0, world_size=1, start=0, global_batch=12, splits=("train",), **config):
    storage, output = digits
    settings = {"streams": 3, "window": 50, "cache": str(tmp_path / "cache"), **config}
    return TrainLoader(
        storage,
        output,
        splits,
        DataConfig(**settings),
        resolution=16,
        seed=SEED,
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
        start=start,
        classes=seen_classes(output),
    )


def take(loaders, updates):
    """Images, labels and sample numbers of some updates, the ranks' rows put together."""
    rows = [batch for _ in range(updates) for batch in [next(each) for each in loaders]]
    for each in loaders:
        each.close()
    return (
        torch.cat([batch.images for batch in rows]),
        torch.cat([batch.labels for batch in rows]),
        np.concatenate([batch.samples for batch in rows]),
    )


def same(one, other):
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and np.array_equal(one[2], other[2])


@pytest.fixture
def reference(digits, tmp_path):
    return take([loader(digits, tmp_path, loader_threads=0)], 6)


def test_a_batch_has_the_promised_form(digits, tmp_path):
    with loader(digits, tmp_path, world_size=3, rank=1, global_batch=12, start=100) as batches:
        batch = next(batches)
        assert batches.cursor == 112
    assert batch.images.shape == (4, 16, 16, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert batch.images.min() < 12
    assert batch.images.max() > 230
    assert batch.labels.dtype == torch.int64
    assert batch.samples.tolist() == [104, 105, 106, 107]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("read_ahead", [1, 4])
def test_threads_and_reading_ahead_change_no_bit(digits, tmp_path, reference, threads, read_ahead):
    batches = loader(digits, tmp_path, loader_threads=threads, read_ahead=read_ahead)
    assert same(take([batches], 6), reference)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_read_what_one_reads(digits, tmp_path, reference, world_size):
    ranks = [loader(digits, tmp_path, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert same(take(ranks, 6), reference)


@pytest.mark.parametrize("update", range(1, 6))
def test_a_run_goes_on_where_it_was_stopped(digits, tmp_path, reference, update):
    batches = loader(digits, tmp_path)
    assert batches.cursor == 0
    for number in range(update):
        next(batches)
        assert batches.cursor == 12 * (number + 1)
    batches.close()
    resumed = take([loader(digits, tmp_path, start=batches.cursor)], 6 - update)
    assert same(resumed, tuple(column[12 * update :] for column in reference))


def test_a_batch_of_another_size_holds_the_same_samples(digits, tmp_path, reference):
    assert same(take([loader(digits, tmp_path, global_batch=24)], 3), reference)


def test_an_epoch_shows_each_image_once_with_its_own_label(digits, tmp_path):
    """Without crops, pixels identify an image: each one's count and label must match the shards'."""
    storage, output = digits
    plain = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
    total = dataset_meta(output).splits["train"].count
    images, labels, _ = take([loader(digits, tmp_path, global_batch=total, **plain)], 1)
    stored = list(
        evaluation_batches(
            storage,
            output,
            ["train"],
            resolution=16,
            batch=100,
            rank=0,
            world_size=1,
            classes=seen_classes(output),
            config=DataConfig(cache=str(tmp_path / "cache")),
        )
    )
    expected = [(row.numpy().tobytes(), label) for b in stored for row, label in unmasked(b)]
    found = [(row.numpy().tobytes(), label) for row, label in zip(images, labels.tolist(), strict=True)]
    assert sorted(found) == sorted(expected)
    assert found != expected


def unmasked(batch):
    return zip(batch.images[batch.mask], batch.labels[batch.mask].tolist(), strict=True)


def test_crops_and_flips_change_between_epochs(digits, tmp_path):
    order = Order(counts=shards(*digits, "train").counts, seed=SEED, streams=3, window=50)
    _, found, indices = order.locate(range(2 * order.total))
    places = list(zip(found.tolist(), indices.tolist(), strict=True))
    again = places.index(places[0], 1)
    first = next(loader(digits, tmp_path, global_batch=1, loader_threads=0))
    second = next(loader(digits, tmp_path, global_batch=1, start=again, loader_threads=0))
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.images, second.images)


def test_half_of_the_images_are_mirrored(digits, tmp_path):
    plain = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "global_batch": 600}
    straight, _, _ = take([loader(digits, tmp_path, flip=False, **plain)], 1)
    mixed, _, _ = take([loader(digits, tmp_path, flip=True, **plain)], 1)
    mirrored = (mixed == straight.flip(2)).flatten(1).all(1)
    untouched = (mixed == straight).flatten(1).all(1)
    assert (mirrored | untouched).all()
    assert 240 < mirrored.sum() < 360


def test_several_splits_are_one_sequence(digits, tmp_path):
    _, output = digits
    meta = dataset_meta(output)
    total = meta.splits["train"].count + meta.splits["validation"].count
    _, labels, _ = take([loader(digits, tmp_path, splits=("train", "validation"), global_batch=total)], 1)
    expected = class_counts(output, "train", "validation")
    assert torch.bincount(labels).tolist() == expected


def test_a_class_that_the_task_lacks_is_refused_from_a_thread_too(digits, tmp_path):
    batches = loader(digits, tmp_path, splits=("held_out",), loader_threads=2)
    with pytest.raises(UserError, match="label"):
        next(batches)
    batches.close()


def test_a_world_size_that_does_not_divide_is_refused_with_one_that_does(digits, tmp_path):
    with pytest.raises(UserError, match="run 4 workers"):
        loader(digits, tmp_path, world_size=5)


@pytest.mark.parametrize(("world_size", "batch"), [(1, 64), (2, 64), (3, 7), (4, 1000), (16, 10)])
def test_evaluation_counts_each_sample_once_in_equal_steps(digits, tmp_path, world_size, batch):
    storage, output = digits
    ranks = [
        list(
            evaluation_batches(
                storage,
                output,
                ["validation", "test"],
                resolution=8,
                batch=batch,
                rank=rank,
                world_size=world_size,
                classes=seen_classes(output),
                config=DataConfig(cache=str(tmp_path / "cache"), loader_threads=rank % 3),
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert len({each.images.shape for batches in ranks for each in batches}) == 1
    assert ranks[0][0].images.shape[0] <= batch
    labels = torch.cat([each.labels[each.mask] for batches in ranks for each in batches])
    expected = class_counts(output, "validation", "test")
    assert torch.bincount(labels).tolist() == expected
    padding = torch.cat([each.images[~each.mask] for batches in ranks for each in batches])
    assert not padding.any()


@pytest.mark.parametrize(("world_size", "threads"), [(1, 0), (1, 2), (3, 2)])
def test_evaluation_leaves_out_what_cannot_be_decoded(digits, tmp_path, monkeypatch, capsys, world_size, threads):
    storage, output = digits
    unreadable = ["sample 3 of shards/test-000000.tar", "sample 90 of shards/test-000000.tar"]

    def decode(data, name):
        if name in unreadable:
            raise UnreadableImage(f"{name} cannot be decoded")
        return decode_rgb(data, name)

    def evaluated(world_size, **config):
        found = []
        for rank in range(world_size):
            batches = evaluation_batches(
                storage, output, ["test"], resolution=8, batch=32, rank=rank, world_size=world_size,
                classes=seen_classes(output), config=DataConfig(cache=str(tmp_path / "cache"), **config),
            )  # fmt: skip
            for batch in batches:
                assert not batch.images[~batch.mask].any()
                pairs = zip(batch.images[batch.mask], batch.labels[batch.mask].tolist(), strict=True)
                found += [(image.numpy().tobytes(), label) for image, label in pairs]
        return sorted(found)

    whole = evaluated(1)
    monkeypatch.setattr("stages.data.reader.decode_rgb", decode)
    found = evaluated(world_size, loader_threads=threads)
    assert len(found) == len(whole) - 2
    assert set(found) <= set(whole)
    assert capsys.readouterr().out.count("left out of the evaluation: sample ") == 2
    unreadable += [f"sample {number} of shards/test-000000.tar" for number in range(20, 40)]
    with pytest.raises(UnreadableImage, match=r"11 of \d+ samples are unreadable, more than max_bad=0\.001"):
        evaluated(1, loader_threads=0)


def test_spans_of_an_evaluation_are_its_parts(digits, tmp_path):
    storage, output = digits

    def evaluated(span):
        batches = evaluation_batches(
            storage, output, ["validation", "test"], resolution=8, batch=32, rank=0, world_size=1, span=span,
            classes=seen_classes(output), config=DataConfig(cache=str(tmp_path / "cache")),
        )  # fmt: skip
        found = [(batch.samples[batch.mask.numpy()], batch.labels[batch.mask]) for batch in batches]
        return [np.concatenate([own[part] for own in found] or [[]]).tolist() for part in (0, 1)]

    total = sum(class_counts(output, "validation", "test"))
    parts = [evaluated(span) for span in ((0, 50), (50, 51), (51, 51), (51, total))]
    assert [[*a, *b, *c, *d] for a, b, c, d in zip(*parts, strict=True)] == evaluated(None)
    assert evaluated(None)[0] == list(range(total))


def test_evaluation_can_be_left_early(digits, tmp_path):
    storage, output = digits
    batches = evaluation_batches(
        storage,
        output,
        ["test"],
        resolution=8,
        batch=10,
        rank=0,
        world_size=1,
        classes=seen_classes(output),
        config=DataConfig(cache=str(tmp_path / "cache")),
    )
    assert next(batches).mask.all()
    batches.close()
    assert next(batches, None) is None


@pytest.mark.parametrize("world_size", [1, 2, 4, 12])
def test_mixing_is_the_same_on_any_number_of_ranks(digits, tmp_path, world_size):
    """Also where a pair lies on two ranks, as with 12 ranks of one row each."""

    def mixed(ranks):
        batches = [next(each) for _ in range(2) for each in ranks]
        for each in ranks:
            each.close()
        pairs = [(mix_images(b.images, b.mixing.images, b.mixing.weights), b.mixing) for b in batches]
        return torch.cat([images for images, _ in pairs]), torch.cat([mixing.labels for _, mixing in pairs])

    one = mixed([loader(digits, tmp_path, mixup=0.5)])
    ranks = [loader(digits, tmp_path, rank=rank, world_size=world_size, mixup=0.5) for rank in range(world_size)]
    images, labels = mixed(ranks)
    assert torch.equal(images, one[0])
    assert torch.equal(labels, one[1])
    plain = take([loader(digits, tmp_path)], 2)
    assert not torch.equal(images, plain[0].float())
    swapped = plain[1].reshape(-1, 2).flip(1).reshape(-1)
    assert torch.equal(labels, swapped)


def test_random_operations_follow_the_sample_not_the_rank(digits, tmp_path, reference):
    settings = {"randaugment": {"layers": 2, "magnitude": 15}}
    one = take([loader(digits, tmp_path, **settings)], 2)
    two = take(
        [loader(digits, tmp_path, rank=rank, world_size=2, loader_threads=rank, **settings) for rank in (0, 1)], 2
    )
    assert same(one, two)
    changed = (one[0] != reference[0][:24]).flatten(1).any(1)
    assert changed.float().mean() > 0.5


def test_an_unreadable_sample_is_replaced_by_the_next_of_its_shard_and_counted(digits, tmp_path, monkeypatch):
    from stages.data import reader as reader_module

    whole = reader_module.decode_rgb

    def decode(data, name):
        if name.split(" of ")[0] in ("sample 3", "sample 7"):
            raise UnreadableImage(f"{name}: broken by the test")
        return whole(data, name)

    plain = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
    total = dataset_meta(digits[1]).splits["train"].count
    untouched, _, samples = take([loader(digits, tmp_path, global_batch=total, **plain)], 1)
    monkeypatch.setattr(reader_module, "decode_rgb", decode)
    for threads in (0, 2):
        batches = loader(digits, tmp_path, global_batch=total, loader_threads=threads, max_bad=0.05, **plain)
        images, _, _ = take([batches], 1)
        tars = len(shards(*digits, "train"))
        assert batches.replaced == 2 * tars
        different = (images != untouched).flatten(1).any(1)
        order = Order(counts=shards(*digits, "train").counts, seed=SEED, streams=3, window=50)
        _, found, indices = order.locate(samples)
        assert sorted(indices[different.numpy()].tolist()) == [3] * tars + [7] * tars
        where = {(s, i): row for row, (s, i) in enumerate(zip(found.tolist(), indices.tolist(), strict=True))}
        for shard in range(tars):
            for index in (3, 7):
                assert torch.equal(images[where[shard, index]], untouched[where[shard, index + 1]])
    with pytest.raises(UnreadableImage, match=r"unreadable, more than max_bad=0\.001"):
        take([loader(digits, tmp_path, global_batch=total, **plain)], 1)


@pytest.fixture
def spoiled(digits, tmp_path):
    """The digits with a flipped byte in the second training tar."""
    storage, output = digits
    shutil.copytree(storage.url.removeprefix("file://"), tmp_path / "copy")
    copy = open_storage(f"file://{tmp_path / 'copy'}")
    tar = tmp_path / "copy" / base_folder(output) / shards(copy, output, "train")[1].tar.address
    body = bytearray(tar.read_bytes())
    body[1000] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(body)
    return copy, output


def test_a_corrupt_shard_stops_the_run_by_its_name(spoiled, tmp_path):
    with pytest.raises(CorruptShard, match=r"train-000001\.tar was fetched twice"):
        take([loader(spoiled, tmp_path, global_batch=600)], 1)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_corrupt_shard_that_is_skipped_gives_way_to_the_next(digits, spoiled, tmp_path, world_size):
    plain = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
    total = dataset_meta(digits[1]).splits["train"].count // 3 * 3
    untouched, labels, samples = take([loader(digits, tmp_path / "whole", global_batch=total, **plain)], 1)
    ranks = [
        loader(
            spoiled,
            tmp_path,
            rank=rank,
            world_size=world_size,
            global_batch=total,
            corrupt_shards="skip",
            max_bad=0.0,
            loader_threads=0,
            **plain,
        )
        for rank in range(world_size)
    ]
    images, found, _ = take(ranks, 1)
    counts = shards(*digits, "train").counts
    order = Order(counts=counts, seed=SEED, streams=3, window=50)
    _, tars, indices = order.locate(samples)
    where = {(s, i): row for row, (s, i) in enumerate(zip(tars.tolist(), indices.tolist(), strict=True))}
    for (tar, index), row in where.items():
        stand_in = where.get((2, index % counts[2]) if tar == 1 else (tar, index))
        if stand_in is not None:
            assert torch.equal(images[row], untouched[stand_in])
            assert found[row] == labels[stand_in]
    assert sum(own.replaced for own in ranks) == (tars == 1).sum()


@pytest.mark.parametrize("fetch", ["shards", "samples"])
def test_a_lost_shard_is_named_or_gives_way_to_the_next(digits, tmp_path, fetch):
    storage, output = digits
    shutil.copytree(storage.url.removeprefix("file://"), tmp_path / "copy")
    lost = open_storage(f"file://{tmp_path}/copy")
    lost.delete(f"{base_folder(output)}/shards/train-000001.tar")
    plain = {"global_batch": 600, "fetch": fetch}
    with pytest.raises(CorruptShard, match=r"train-000001\.tar is no longer where its manifest says"):
        take([loader((lost, output), tmp_path, **plain)], 1)
    own = loader((lost, output), tmp_path, corrupt_shards="skip", loader_threads=0, **plain)
    _, _, samples = take([own], 1)
    counts = shards(*digits, "train").counts
    _, tars, _ = Order(counts=counts, seed=SEED, streams=3, window=50).locate(samples)
    assert own.replaced == (tars == 1).sum() > 0


def cached(folder):
    return {path.stem for path in folder.glob("*.cached")}


def test_shards_are_fetched_one_window_ahead(digits, tmp_path):
    storage, output = digits
    cache = ShardCache(storage, base_folder(output), tmp_path / "cache")
    own = shards(storage, output, "train")
    order = Order(counts=own.counts, seed=SEED, streams=2, window=50)
    assert order.ahead == 100

    def used(start, stop):
        _, numbers, _ = order.locate(range(start, stop))
        return {own[number].tar.sha256 for number in set(numbers.tolist())}

    ahead = FetchAhead(cache, own, order, start=0)
    ahead.look(np.arange(0, 30))
    ahead._pool.shutdown(wait=True)
    expected = used(0, 100) | used(100, 130)
    assert expected < used(0, order.total), "or nothing would be shown"
    tars = {shard.tar.sha256 for shard in own}
    assert cached(tmp_path / "cache") & tars == expected


def test_with_a_stream_for_each_row_a_machine_fetches_the_shards_of_its_own_rows(digits, tmp_path):
    storage, output = digits
    own = shards(storage, output, "train")
    order = Order(counts=own.counts, seed=SEED, streams=8, window=20)
    tars = [shard.tar.sha256 for shard in own]
    found = []
    for rank in (0, 2):
        cache = ShardCache(storage, base_folder(output), tmp_path / f"cache-{rank}")
        rows = rows_here(8, rank, 4, 2)
        ahead = FetchAhead(cache, own, order, 0, (rows, 8))
        ahead._pool.shutdown(wait=True)
        _, numbers, _ = order.locate([8 * batch + row for batch in range(20) for row in rows])
        found.append(cached(tmp_path / f"cache-{rank}") & set(tars))
        assert found[-1] == {tars[number] for number in numbers.tolist()}
    assert len(found[0] & found[1]) <= 1, "the one that the middle of the epoch lies in"


def test_the_rows_of_a_machine_are_those_of_its_ranks():
    assert [rows_here(64, rank, 8, 4) for rank in (0, 3, 4, 7)] == [range(32), range(32), range(32, 64), range(32, 64)]
    assert rows_here(64, 6, 8, 3) == range(48, 64), "the last machine has fewer"
    assert rows_here(64, 0, 1, 1) == range(64)


@pytest.mark.parametrize(("gigabytes", "free", "room"), [(1e-4, 10**9, "100 kB"), (40, 10**6, r"8\d\d kB")])
def test_nothing_is_fetched_ahead_that_the_cache_or_its_disk_would_not_hold(
    digits, tmp_path, capsys, monkeypatch, gigabytes, free, room
):
    """The tars of all digits have 2.5 MB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    batches = loader(digits, tmp_path, cache_gigabytes=gigabytes, window=1000, loader_threads=0)
    batches.close()
    said = capsys.readouterr().out
    assert re.search(rf"two windows need 2\.\d MB of cache, which has {room} in /.*/cache: set cache_gigabytes", said)
    assert not cached(tmp_path / "cache") & {shard.tar.sha256 for shard in shards(*digits, "train")}


def test_what_the_cache_holds_already_counts_as_room(digits, tmp_path, monkeypatch):
    storage, output = digits
    cache = ShardCache(storage, base_folder(output), tmp_path / "cache")
    tars = [shard.tar for shard in shards(storage, output, "train")][:3]
    for tar in tars:
        cache.read(tar)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert cache.room() == int(0.8 * (1000 + sum(tar.bytes for tar in tars)))


def test_what_fails_ahead_is_told_when_it_is_needed(digits, tmp_path, capsys):
    storage, output = digits
    shutil.copytree(storage.url.removeprefix("file://"), tmp_path / "copy")
    copy = open_storage(f"file://{tmp_path / 'copy'}")
    for tar in (tmp_path / "copy").rglob("train-*.tar"):
        tar.unlink()
    batches = loader((copy, output), tmp_path)
    with pytest.raises(CorruptShard, match="is no longer where its manifest says"):
        next(batches)
    batches.close()


def test_images_at_some_places_are_those_of_all_images(digits, tmp_path):
    storage, output = digits
    splits, classes = ("train", "held_out"), range(10)

    def shown(**options):
        config = DataConfig(cache=str(tmp_path / "cache"), loader_threads=0)
        return evaluation_batches(
            storage, output, splits, resolution=16, batch=7, rank=0, world_size=1, classes=classes, config=config,
            **options,
        )  # fmt: skip

    everything = list(shown())
    images, labels = (
        torch.cat([getattr(batch, name)[batch.mask] for batch in everything]) for name in ("images", "labels")
    )
    places = np.array([3, 4, 99, 100, 101, 700, 1200, len(labels) - 1, 5])
    few = list(shown(places=places))
    assert [batch.mask.tolist() for batch in few] == [[True] * 7, [True] * 2 + [False] * 5]
    assert np.concatenate([batch.samples for batch in few]).tolist() == [*places.tolist(), *[-1] * 5]
    assert torch.equal(torch.cat([batch.images[batch.mask] for batch in few]), images[places])
    assert torch.equal(torch.cat([batch.labels[batch.mask] for batch in few]), labels[places])
    config = DataConfig(cache=str(tmp_path / "cache"))
    assert split_labels(storage, output, splits, config).tolist() == labels.tolist()
    assert list(shown(places=np.zeros(0, dtype=np.int64))) == []
