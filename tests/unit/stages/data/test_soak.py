"""What reading holds: a data set of many times the cache's size, in small (`make bench-soak` is the large one)."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from cluster.storage import open_storage
from stages.data import reader as reader_module
from stages.data.cache import ShardCache
from stages.data.config import DataConfig
from stages.data.dataset import open_shards
from stages.data.decode import decode_rgb
from stages.data.fetch_ahead import THREADS, FetchAhead
from stages.data.loader import TrainLoader
from stages.data.manifest import base_folder, dataset_meta
from stages.data.native.helper import native
from stages.data.order import Order
from stages.data.reader import SampleReader
from tests.bench.soak_data import LABELS, SIZE, Seen, make_dataset, picture
from tests.bench.soak_watch import Watch, evicted_bytes, open_files
from tests.unit.stages.shards import shards

SAMPLES, SHARDS = 4000, 50


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """(storage, output) of SAMPLES pictures that show their numbers, in SHARDS tars."""
    storage = open_storage(f"file://{tmp_path_factory.mktemp('numbered')}")
    return storage, make_dataset(storage, SAMPLES, SHARDS)


def reader(numbered, folder, *, limit_bytes=10**9, **options):
    storage, output = numbered
    cache = ShardCache(storage, base_folder(output), folder, limit_bytes)
    return SampleReader(cache, open_shards(cache, output, ["train"]), range(LABELS), **options)


def test_a_cache_of_a_tenth_is_enough_for_each_sample_once_and_nothing_is_left(numbered, tmp_path, monkeypatch, capsys):
    """Two epochs and a half, of images of which not all can be kept."""
    monkeypatch.setattr(reader_module, "_KEPT_BYTES", SAMPLES * 800)
    native()  # It is compiled below the temporary folder of all.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    storage, output = numbered
    tars = dataset_meta(output).split("train").bytes
    settings = DataConfig(
        streams=1, window=100, loader_threads=2, crop_area=(1, 1), crop_ratio=(1, 1), flip=False,
        cache=str(tmp_path / "cache"), cache_gigabytes=tars / 10 / 1e9,
    )  # fmt: skip
    watch, seen = Watch(tmp_path / "cache", tmp_path / "temporary"), Seen(SAMPLES)
    with TrainLoader(
        storage, output, ("train",), settings, resolution=SIZE, seed=0, global_batch=96, rank=0, world_size=1,
        start=0, classes=range(LABELS),
    ) as loader:  # fmt: skip
        for update in range(5 * SAMPLES // 2 // 96):
            batch = next(loader)
            seen.add(batch.samples, batch.images.numpy(), batch.labels.numpy())
            watch.look(96 * (update + 1))
    assert seen.wrong == {"unknown": 0, "twice": 0, "mislabelled": 0, "missing": 0}
    assert "not fetched ahead" not in capsys.readouterr().out
    assert watch.most("folder") <= (0.1 + (THREADS + 2) / SHARDS) * tars
    assert watch.look(0).cached <= tars / 10
    assert watch.left() == []
    assert not [path for path in open_files() if path.startswith(str(tmp_path))]


def test_what_has_not_come_is_seen():
    """The check itself: a sample that comes twice in place of another, and one with another's label."""
    seen, numbers = Seen(40), np.arange(40)[::-1].copy()
    numbers[7] = numbers[6]
    labels = numbers % LABELS
    images = np.stack([decode_rgb(picture(number), "") for number in numbers.tolist()])
    labels[9] += 1
    seen.add(np.arange(40), images, labels)
    assert seen.wrong == {"unknown": 0, "twice": 1, "mislabelled": 1, "missing": 1}


@pytest.mark.parametrize(
    ("bytes_each", "once", "kept"), [(1568, False, True), (1567, False, False), (1568, True, False)]
)
def test_images_are_kept_where_all_of_them_fit(numbered, tmp_path, monkeypatch, bytes_each, once, kept):
    """16 × 16 pixels in three colours, and 800 bytes around them."""
    monkeypatch.setattr(reader_module, "_KEPT_BYTES", SAMPLES * bytes_each)
    own = reader(numbered, tmp_path / "cache", once=once)
    first, again = own.read(3, 5), own.read(3, 5)
    assert (first is again) == kept
    assert np.array_equal(first.image, again.image)
    assert first.labels == again.labels


def test_a_shard_that_the_cache_has_evicted_is_closed_when_it_has_not_been_read_for_a_while(numbered, tmp_path):
    own = reader(numbered, tmp_path / "cache", limit_bytes=1, open_shards=8)
    tar = dataset_meta(numbered[1]).split("train").bytes // SHARDS
    first = [own.read(0, index).labels for index in range(3)]
    most = 0
    for shard in range(20):
        own.read(shard, 0)
        most = max(most, evicted_bytes(tmp_path / "cache"))
    assert 0 < most <= 4 * tar
    assert [own.read(0, index).labels for index in range(3)] == first
    own.close()
    assert evicted_bytes(tmp_path / "cache") == 0


def test_no_more_shards_are_open_than_may_be(numbered, tmp_path):
    own, tars = reader(numbered, tmp_path / "cache", open_shards=8), shards(*numbered, "train")
    for shard in range(20):
        own.read(shard, 0)
        assert len(opened(tmp_path)) == min(shard + 1, 8)
    for shard in (12, 20):
        own.read(shard, 1)
    assert opened(tmp_path) == {tars[shard].tar.sha256 for shard in (12, 14, 15, 16, 17, 18, 19, 20)}, "not 13"
    own.close()
    assert opened(tmp_path) == set()


def opened(folder):
    """The sha256 of the files in a cache that this process has open."""
    return {Path(path).stem for path in open_files() if path.startswith(f"{folder}/") and path.endswith(".cached")}


def test_the_next_epoch_is_fetched_ahead_as_the_first_one_is(numbered, tmp_path):
    storage, output = numbered
    counted = Counted(storage)
    cache = ShardCache(counted, base_folder(output), tmp_path / "cache", 10 * SAMPLES // SHARDS * 2048)
    shards = open_shards(cache, output, ["train"])
    order = Order(counts=shards.counts, seed=0, streams=1, window=100)
    ahead = FetchAhead(cache, shards, order, start=0)
    for start in range(0, 2 * SAMPLES - order.ahead, 50):
        ahead.look(np.arange(start, start + 50))
    ahead._pool.shutdown(wait=True)
    tars = [key for key in counted.fetched if key.endswith(".tar")]
    assert len(set(tars)) == SHARDS
    assert len(tars) > 1.8 * SHARDS, "few are in the cache still"
    assert len(ahead._wanted) < SHARDS / 2, "or memory grows with the shards"


class Counted:
    """A storage over another one, which remembers what was downloaded."""

    def __init__(self, inner):
        self.inner, self.fetched = inner, []

    def download(self, key, path):
        self.fetched.append(key)
        self.inner.download(key, path)
