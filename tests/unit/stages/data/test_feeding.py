"""What a machine can feed is measured with the training loop's own parts, and nothing is left of it."""

import os

import pytest

from cluster.errors import UserError
from stages.data import feeding as feeding_module
from stages.data.config import DataConfig
from stages.data.feeding import Feeding, measure
from stages.data.manifest import dataset_meta

PARTS = ("storage", "one_thread", "all_threads", "hand_over")


def feeding(digits, tmp_path, **config):
    storage, output = digits
    return Feeding(
        storage=storage,
        dataset=output,
        splits=("train",),
        config=DataConfig(cache=str(tmp_path / "disk" / "cache"), **config),
        resolution=16,
        rows=24,
        seconds=0.05,
    )


@pytest.mark.parametrize("fetch", ["shards", "samples"])
@pytest.mark.parametrize("native", [True, False])
def test_every_part_has_a_rate_and_nothing_is_left(digits, tmp_path, fetch, native):
    open_before = len(os.listdir("/proc/self/fd"))
    found = measure(feeding(digits, tmp_path, fetch=fetch, native=native, loader_threads=3), rank=0, ranks_here=1)
    assert all(getattr(found, part) > 0 for part in PARTS)
    assert found.threads == 3
    assert native or not found.native
    # Batches that nobody fills come faster than those that are filled.
    assert found.hand_over > found.one_thread
    left = [name for name in os.listdir(tmp_path / "disk") if name != "cache"]
    assert left == []
    # What opened shards hold goes with them.
    assert len(os.listdir("/proc/self/fd")) <= open_before + 1


def test_bytes_of_an_image_are_those_that_are_fetched_for_it(digits, tmp_path):
    storage, output = digits
    found = measure(feeding(digits, tmp_path), rank=0, ranks_here=1)
    folder = f"{output.prefix.rpartition('/attempts/')[0]}/shards/"
    tars = [len(storage.read(key)) for key in storage.list(folder) if "/train-" in key]
    assert found.image_bytes == pytest.approx(sum(tars) / dataset_meta(output).splits["train"].count)


def test_ranks_of_a_machine_fetch_shards_of_their_own(digits, tmp_path, monkeypatch):
    fetched, fetch = [], feeding_module._fetch

    def noted(cache, shards, numbers, seconds):
        found = fetch(cache, shards, numbers, seconds)
        fetched.append(found[0])
        return found

    monkeypatch.setattr(feeding_module, "_fetch", noted)
    waits = []
    for rank in range(3):
        measure(feeding(digits, tmp_path), rank=rank, ranks_here=3, together=lambda: waits.append(1))
    assert not set(fetched[0]) & set(fetched[1])
    assert all(fetched)
    # Before each of the four parts of each rank.
    assert len(waits) == 3 * 4


def test_splits_without_images_are_a_mistake(digits, tmp_path):
    storage, output = digits
    empty = Feeding(
        storage=storage, dataset=output, splits=(), config=DataConfig(cache=str(tmp_path / "cache")), resolution=16,
        rows=4, seconds=0.05,
    )  # fmt: skip
    with pytest.raises(UserError, match="nothing to measure"):
        measure(empty, rank=0, ranks_here=1)
