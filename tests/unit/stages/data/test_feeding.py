"""What a machine can feed is measured with the training loop's own parts, and nothing is left of it."""

import fcntl
import itertools
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.data import feeding as feeding_module
from stages.data.cache import ShardCache
from stages.data.config import DataConfig
from stages.data.dataset import open_shards
from stages.data.feeding import Feeding, measure
from stages.data.manifest import base_folder, dataset_meta

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
    assert not found.copied
    left = [name for name in os.listdir(tmp_path / "disk") if name != "cache"]
    assert left == []
    # What opened shards hold goes with them.
    assert len(os.listdir("/proc/self/fd")) <= open_before + 1


def test_bytes_of_an_image_are_those_that_are_fetched_for_it(digits, tmp_path, monkeypatch):
    storage, output = digits
    fetch = feeding_module._fetch
    # Long enough for all shards.
    monkeypatch.setattr(
        feeding_module,
        "_fetch",
        lambda cache, shards, numbers, seconds, most, **named: fetch(cache, shards, numbers, 600.0, most, **named),
    )
    found = measure(feeding(digits, tmp_path), rank=0, ranks_here=1)
    folder = f"{output.prefix.rpartition('/attempts/')[0]}/shards/"
    tars = [len(storage.read(key)) for key in storage.list(folder) if "/train-" in key]
    assert found.image_bytes == pytest.approx(sum(tars) / dataset_meta(output).splits["train"].count)


def test_ranks_of_a_machine_fetch_shards_of_their_own(digits, tmp_path, monkeypatch):
    fetched, fetch = [], feeding_module._fetch

    def noted(cache, shards, numbers, *more, **named):
        found = fetch(cache, shards, numbers, *more, **named)
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


def test_what_a_killed_process_has_fetched_goes_and_what_another_fetches_stays(digits, tmp_path):
    left, used = (tmp_path / "disk" / f"{feeding_module.PREFIX}{name}" for name in ("left", "used"))
    for folder in (left, used):
        folder.mkdir(parents=True)
        (folder / "cache").write_bytes(b"x")
    lock = os.open(used, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    measure(feeding(digits, tmp_path))
    assert (left.exists(), used.exists()) == (False, True)
    os.close(lock)
    measure(feeding(digits, tmp_path))
    assert not used.exists()


def test_folders_of_ranks_that_begin_at_once_are_left_alone(tmp_path):
    """Each looks for what killed ones left while the others make theirs."""

    def made(_) -> list[bool]:
        found = []
        for _ in range(100):
            with feeding_module._folder(tmp_path) as folder:
                time.sleep(0.0005)
                found.append(folder.is_dir())
        return found

    with ThreadPoolExecutor(4) as pool:
        assert all(itertools.chain.from_iterable(pool.map(made, range(4))))
    assert not list(tmp_path.iterdir())


def test_no_more_is_fetched_than_the_cache_may_hold(digits, tmp_path, monkeypatch):
    most = []
    fetch = feeding_module._fetch

    def noted(cache, shards, numbers, seconds, bound, **named):
        most.append(bound)
        return fetch(cache, shards, numbers, seconds, bound, **named)

    monkeypatch.setattr(feeding_module, "_fetch", noted)
    measure(feeding(digits, tmp_path, cache_gigabytes=1.0), rank=1, ranks_here=4)
    assert most == [250_000_000]


@pytest.fixture
def corrupt(digits, tmp_path):
    """The data set, one of whose training tars has other bytes."""
    storage, output = digits
    shutil.copytree(storage.url.removeprefix("file://"), tmp_path / "copy")
    copy = open_storage(f"file://{tmp_path / 'copy'}")
    folder = f"{output.prefix.rpartition('/attempts/')[0]}/shards/"
    tars = [key for key in copy.list(folder) if "/train-" in key]
    copy.write(tars[0], bytes(len(copy.read(tars[0]))))
    return copy, output


def test_a_corrupt_shard_is_a_mistake_or_skipped_as_training_does(corrupt, tmp_path, capsys):
    with pytest.raises(UserError, match="neither time had the sha256"):
        measure(feeding(corrupt, tmp_path))
    found = measure(feeding(corrupt, tmp_path, corrupt_shards="skip"))
    assert found.storage > 0
    assert "skipped, since corrupt_shards is skip" in capsys.readouterr().out


def test_one_thread_and_all_are_measured_as_they_are_asked_for(digits, tmp_path, monkeypatch):
    asked = []
    parts = feeding_module._Parts
    monkeypatch.setattr(parts, "filled_per_s", lambda own, threads: asked.append(threads) or 7.0)
    monkeypatch.setattr(feeding_module, "_samples_per_s", lambda *given: asked.append(("samples", given[-1])) or 5.0)
    found = measure(feeding(digits, tmp_path, fetch="samples"), threads=5)
    assert asked == [("samples", 5), 1, 5]
    assert (found.storage, found.one_thread, found.all_threads, found.threads) == (5.0, 7.0, 7.0, 5)


def test_rates_are_images_over_time_and_hand_over_fills_nothing(digits, tmp_path, monkeypatch):
    now, rows = [0.0], []
    monkeypatch.setattr(feeding_module.time, "perf_counter", lambda: now[0])

    class Stepping(feeding_module.Workers):
        """A second for each batch."""

        def submit(self, numbers, rows):
            wait = super().submit(numbers, rows)

            def later():
                now[0] += 1.0
                return wait()

            return later

    written = feeding_module.TrainingImages.write

    def noted(own, samples, *more):
        rows.append(len(samples))
        written(own, samples, *more)

    monkeypatch.setattr(feeding_module, "Workers", Stepping)
    monkeypatch.setattr(feeding_module.TrainingImages, "write", noted)
    own = replace(feeding(digits, tmp_path), seconds=3.0)
    cache = ShardCache(own.storage, base_folder(own.dataset), tmp_path / "cache")
    shards = open_shards(cache, own.dataset, own.splits)
    parts = feeding_module._Parts(own, cache, shards, range(len(shards)))
    assert parts.filled_per_s(2) == pytest.approx(24.0)
    assert sum(rows) >= 24
    rows.clear()
    assert parts.handed_over_per_s() == pytest.approx(24.0)
    assert rows == []
