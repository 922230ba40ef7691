"""What has been read, and what has been fetched, before anybody asks for it; and what nobody keeps."""

import threading

import numpy as np
import pytest

from stages.data.config import DataConfig
from stages.data.evaluation_loader import evaluation_batches
from stages.data.order import Order
from tests.unit.stages.data.test_loader import SEED, cached, loader, seen_classes
from tests.unit.stages.shards import shards

ROWS, AHEAD = 12, 3


class Counted:
    """A storage over another one, which counts the images that are read from it."""

    def __init__(self, inner, enough=0):
        self.inner, self.reads, self.enough = inner, 0, enough
        self.changed = threading.Condition()

    def download(self, key, path):
        self.inner.download(key, path)

    def read_range(self, key, start, length):
        with self.changed:
            self.reads += 1
            self.changed.notify_all()
        return self.inner.read_range(key, start, length)

    def has_read(self, images):
        """Waits until so many have been asked for; whether they were."""
        with self.changed:
            return self.changed.wait_for(lambda: self.reads >= images, timeout=60)


def evaluation(storage, output, tmp_path, **config):
    places = config.pop("places", None)
    settings = DataConfig(cache=str(tmp_path / "cache"), fetch="samples", **config)
    return evaluation_batches(
        storage, output, ["train"], resolution=8, batch=ROWS, rank=0, world_size=1, classes=seen_classes(output),
        config=settings, places=places,
    )  # fmt: skip


def training(storage, output, tmp_path, **config):
    return loader((storage, output), tmp_path, global_batch=ROWS, fetch="samples", **config)


@pytest.mark.parametrize("batches_of", [training, evaluation])
def test_the_next_batches_are_read_while_one_is_used_and_no_more(digits, tmp_path, batches_of):
    storage, output = Counted(digits[0]), digits[1]
    batches = batches_of(storage, output, tmp_path, loader_threads=2, read_ahead=AHEAD)
    assert storage.reads == 0
    for number in range(1, 4):
        next(batches)
        assert storage.has_read((number + AHEAD) * ROWS)
    batches.close()
    assert storage.reads == (3 + AHEAD) * ROWS


def test_without_threads_nothing_is_read_ahead(digits, tmp_path):
    storage, output = Counted(digits[0]), digits[1]
    batches = training(storage, output, tmp_path, loader_threads=0, read_ahead=AHEAD)
    next(batches)
    assert storage.reads == ROWS


def test_the_training_loader_fetches_what_the_next_window_needs(digits, tmp_path):
    own = shards(*digits, "train")
    order = Order(counts=own.counts, seed=SEED, streams=2, window=50)

    def used(start, stop):
        _, numbers, _ = order.locate(range(start, stop))
        return {own[number].tar.sha256 for number in set(numbers.tolist())}

    first, second, everything = used(0, order.ahead), used(order.ahead, order.ahead + 60), used(0, order.total)
    assert first < first | second < everything, "or nothing would be shown"
    batches = loader(digits, tmp_path, streams=2, window=50, global_batch=60, loader_threads=0)
    next(batches)
    batches._fetch_ahead._pool.shutdown(wait=True)
    assert cached(tmp_path / "cache") & {shard.tar.sha256 for shard in own} == first | second


def test_an_evaluation_keeps_no_images(digits, tmp_path):
    """Not even those that would be kept in training: it asks for each once."""
    storage, output = Counted(digits[0]), digits[1]
    list(evaluation(storage, output, tmp_path, loader_threads=0, places=np.array([5, 5, 7, 5])))
    assert storage.reads == 4
