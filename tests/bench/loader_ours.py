"""Our loader for `tests.bench.loader`: the training loop's own, over ingested photos, on the local disk and in S3."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.storage import Storage, open_storage
from stages.context import Output
from stages.data.manifest import base_folder, dataset_meta
from tests.bench.loader_peers import BATCH, SIZE

STREAMS, WINDOW = 4, 1024
"""A buffer of 4,096 samples to shuffle in, which has to be there before the first batch. The default of 262,144 is
meant for epochs of a million; of these small ones it would be the whole."""


def ingest(photos: Path, root: Path, per_shard: int) -> tuple[Storage, Output]:
    """The storage and the data set that the stage `ingest` makes of a folder."""
    from pipeline.config import parse_workflow
    from pipeline.driver import create
    from pipeline.runner import Runner
    from tests.unit.pipeline.test_runner import Silent

    text = f"""
name: loader
stages:
  ingest:
    source: {{kind: folder, path: {photos.absolute()}}}
    samples_per_shard: {per_shard}
    validation_fraction: 0
    test_fraction: 0
"""
    storage, flow = open_storage(f"file://{root}"), parse_workflow(text, "loader.yaml")
    runner = Runner(storage, create(storage, flow), flow, owner="bench", ray=False, tracker=Silent())
    assert runner.run() == "done", runner.failed
    return storage, runner.finished["ingest"].output


def several_times(photos: list[Path], folder: Path, times: int) -> Path:
    """A folder with every photo under several names, each time in other classes; links, so no bytes are copied."""
    for turn in range(times):
        for path in photos:
            link = folder / f"{path.parent.name}-{turn:02d}" / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link) if path.stat().st_dev == folder.stat().st_dev else shutil.copy(path, link)
    return folder


class Epochs:
    """Epochs of a data set, one after the other as in a long training run; of so many passes each."""

    def __init__(self, storage: Storage, dataset: Output, passes: int = 1) -> None:
        self._storage, self._dataset, self._epoch = storage, dataset, 0
        self.batches = passes * dataset_meta(dataset).split("train").count // BATCH

    def next(self, cache: Path) -> Iterator[Any]:
        """Batches of the next one, with shards in this cache; opening the data set is part of it."""
        from stages.data.config import DataConfig
        from stages.data.loader import TrainLoader

        start, self._epoch = self._epoch * self.batches * BATCH, self._epoch + 1
        config = DataConfig(
            crop_sampling="torchvision",
            loader_threads=os.cpu_count() or 1,
            cache=str(cache),
            window=WINDOW,
            streams=STREAMS,
        )
        with TrainLoader(
            self._storage, self._dataset, ("train",), config, resolution=SIZE, seed=0, global_batch=BATCH, rank=0,
            world_size=1, start=start, classes=range(len(self._dataset.meta["classes"])),
        ) as loader:  # fmt: skip
            for _ in range(self.batches):
                batch = next(loader)
                yield batch.images, batch.labels


class Repeated:
    """The same tars on the local disk and in S3: epochs from a warm cache, and from S3 with an empty one and that."""

    def __init__(self, storage: Storage, dataset: Output, remote: Storage, folder: Path) -> None:
        for key in storage.list(f"{base_folder(dataset)}/"):
            storage.download(key, folder / "copied")
            remote.upload(key, folder / "copied")
        self._folder, self._round = folder, 0
        self._bytes = dataset_meta(dataset).split("train").bytes
        self._local, self._remote = Epochs(storage, dataset), Epochs(remote, dataset)

    def local(self) -> Iterator[Any]:
        """From tars of the local disk."""
        return self._local.next(self._folder / "cache-local")

    def first(self) -> Iterator[Any]:
        """From S3 into a cache that is empty at the start."""
        shutil.rmtree(self._folder / f"cache-s3-{self._round}", ignore_errors=True)
        self._round += 1
        kept = _Kept(self._bytes)
        return kept.given_up(self._remote.next(self._folder / f"cache-s3-{self._round}"), self._remote.batches)

    def cached(self) -> Iterator[Any]:
        """From the cache that the last first epoch has filled."""
        return self._remote.next(self._folder / f"cache-s3-{self._round}")


class _Kept:
    """Memory in the place of what a first epoch writes, which is given up as that comes.

    Some virtual machines give memory that is free for two seconds back to their host, and pay for it when they next
    write to it: 2.2 ms a MB where this was made, ten times what writing costs otherwise. An epoch of a few seconds into
    a new folder would measure that more than the loader.
    """

    def __init__(self, size: int) -> None:
        self._memory, self._left = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), size
        for start in range(0, size, mmap.PAGESIZE):
            self._memory[start] = 1

    def given_up(self, batches: Iterator[Any], count: int) -> Iterator[Any]:
        """The batches, `count` in all."""
        size = self._left
        for number in range(count):
            # What is fetched is one window ahead of what is read.
            self._shrink(size - size * (number + STREAMS * WINDOW // BATCH) // count)
            yield next(batches)
        self._memory.close()

    def _shrink(self, left: int) -> None:
        left = max(0, left // mmap.PAGESIZE * mmap.PAGESIZE)
        if left < self._left:
            self._memory.madvise(mmap.MADV_DONTNEED, left, self._left - left)
            self._left = left


@contextmanager
def s3(home: Path) -> Iterator[tuple[Storage, int]]:
    """A SeaweedFS of its own on this machine, for as long as the block lasts; its storage and process id."""
    from cluster.local import processes, servers

    for name in ("logs", "s3-home"):
        (home / name).mkdir(parents=True, exist_ok=True)
    words = servers.Secrets(access_key=secrets.token_hex(10), secret_key=secrets.token_hex(20), ray_token="")
    server, ports = servers.start_s3(home, words, {})
    address = f"http://{servers.HOST}:{ports['s3']}"
    kept = dict(os.environ)
    own = {"AWS_ENDPOINT_URL_S3": address, "AWS_REGION": "us-east-1"}
    os.environ.update(own, AWS_ACCESS_KEY_ID=words.access_key, AWS_SECRET_ACCESS_KEY=words.secret_key)
    try:
        deadline = time.monotonic() + 60
        while not servers.s3_works(address):
            assert time.monotonic() < deadline, f"SeaweedFS does not answer: {server.log}"
            time.sleep(0.2)
        yield open_storage(f"s3://{servers.BUCKET}/bench"), server.pid
    finally:
        processes.stop(server)
        os.environ.clear()
        os.environ.update(kept)
