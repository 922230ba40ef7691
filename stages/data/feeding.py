"""How fast images can come to the ranks of a machine: from storage, out of the decoder, and into the batch.

The parts of the training loop's own loader, one after the other, each for a few seconds: whole shards into a cache of
their own, crops of what has arrived by one thread and by as many as training would have, and batches that nobody fills.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.errors import UserError
from cluster.machine import cores
from cluster.storage import Storage
from stages.context import Output
from stages.data.batches import label_shape
from stages.data.cache import CorruptShard, ShardCache, default_folder
from stages.data.config import DataConfig
from stages.data.crops import Crops
from stages.data.dataset import open_cache, open_shards
from stages.data.fetch_ahead import THREADS
from stages.data.manifest import base_folder
from stages.data.native.helper import native
from stages.data.reader import SampleReader, open_reader
from stages.data.table import Shards
from stages.data.training_images import TrainingImages
from stages.data.workers import Fill, Workers

PREFIX = "patchline-feed-"
MOST_BYTES = 8 * 10**9
"""That are fetched, however fast storage is."""
MOST_ROWS = 512
"""Of a batch: a larger one is no faster."""
AHEAD = 3
"""Batches under way at once, as in training: one that is waited for, and two read ahead."""


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """What is to be measured. Picklable."""

    storage: Storage
    dataset: Output
    splits: tuple[str, ...]
    config: DataConfig
    resolution: int
    rows: int
    """Of each rank's batch."""
    seconds: float
    """For each part."""
    gpus: bool = False
    """Whether batches are copied to a GPU, where there is one."""


@dataclass(frozen=True, kw_only=True)
class Fed:
    """What one rank was fed with, in images/s, while the others of its machine were measured beside it."""

    cores: int
    """Of its machine."""
    native: bool
    threads: int
    """That decoded at once."""
    copied: bool
    """Whether batches were copied to a GPU."""
    image_bytes: float
    """That are fetched for an image, on average."""
    storage: float
    one_thread: float
    all_threads: float
    hand_over: float


def measure(
    feeding: Feeding,
    *,
    rank: int = 0,
    ranks_here: int = 1,
    threads: int | None = None,
    together: Callable[[], object] = lambda: None,
) -> Fed:
    """Measure one rank of `ranks_here` on this machine, the one with this number.

    It decodes with so many `threads`, or those that a rank of so many has. `together` waits until all of them are
    there: it is called before each part. Raises UserError where there is nothing to read, and for shards that are
    corrupt, unless they are to be skipped.
    """
    config = feeding.config
    threads = config.threads(ranks_here) if threads is None else threads
    cached = Path(config.cache).expanduser() if config.cache else default_folder()
    with _folder(cached.parent) as folder:
        most = min(MOST_BYTES, int(config.cache_gigabytes * 1e9), shutil.disk_usage(folder).free // 2) // ranks_here
        cache = ShardCache(feeding.storage, base_folder(feeding.dataset), folder / "cache", 10 * MOST_BYTES)
        shards = open_shards(open_cache(feeding.storage, feeding.dataset, config), feeding.dataset, feeding.splits)
        own = _own(shards, rank, ranks_here)
        together()
        own, size, took = _fetch(cache, shards, own, feeding.seconds, most, skip=config.corrupt_shards == "skip")
        image_bytes = size / int(shards.counts[own].sum())
        storage = size / took / image_bytes
        if config.fetch == "samples":
            together()
            storage = _samples_per_s(feeding, cache, shards, own, threads)
        parts = _Parts(feeding, cache, shards, own)
        rates = []
        for number in (1, threads):
            together()
            rates.append(parts.filled_per_s(number))
        together()
        handed = parts.handed_over_per_s()
    return Fed(
        cores=cores(),
        native=parts.native,
        threads=threads,
        copied=parts.device.type == "cuda",
        image_bytes=image_bytes,
        storage=storage,
        one_thread=rates[0],
        all_threads=rates[1],
        hand_over=handed,
    )


def _own(shards: Shards, rank: int, ranks_here: int) -> list[int]:
    """Numbers of the shards that a rank measures: others than its neighbours', where there are enough."""
    if not len(shards):
        raise UserError("there is nothing to measure: the splits have no images")
    numbers = list(range(len(shards)))
    random.Random(0).shuffle(numbers)
    return numbers[rank::ranks_here] or numbers[rank % len(numbers) :]


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A folder on the disk that the cache is on, which goes at the end; and those of processes that were killed go."""
    parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        # One at a time: between its folder and its lock, another one's would look like that of a killed process.
        with _locked(parent):
            _sweep(parent)
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent))
            stack.enter_context(_locked(Path(name)))
        yield Path(name)


def _sweep(parent: Path) -> None:
    """Remove what processes left that were killed."""
    for left in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), _locked(left, fcntl.LOCK_NB):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    """A lock on a folder itself, which goes with this process. Raises OSError where it is another's, with LOCK_NB."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(handle)


def _fetch(
    cache: ShardCache, shards: Shards, numbers: Sequence[int], seconds: float, most: int, *, skip: bool
) -> tuple[list[int], int, float]:
    """Fetch shards into an empty cache, as training does, until the time is over or there are `most` bytes.

    Returns the numbers of those fetched, the bytes of their tars, and the seconds that it took. Raises UserError for a
    corrupt one, unless they are to be skipped, and where none is left.
    """
    began, lock = time.perf_counter(), threading.Lock()
    ahead, fetched, size = deque(numbers), list[int](), 0

    def fetch() -> None:
        nonlocal size
        while True:
            with lock:
                late = bool(fetched) and time.perf_counter() - began > seconds
                if not ahead or late or size > most:
                    return
                number = ahead.popleft()
            shard = shards[number]
            try:
                for file in (shard.index, shard.tar):
                    os.close(cache.open(file))
            except CorruptShard as error:
                if skip:
                    print(f"skipped, since corrupt_shards is skip: {error}", flush=True)
                    continue
                raise UserError(str(error)) from None
            with lock:
                fetched.append(number)
                size += shard.tar.bytes

    _at_once(THREADS, fetch)
    if not fetched:
        raise UserError("there is nothing to measure: every shard is corrupt")
    return fetched, size, time.perf_counter() - began


def _at_once(threads: int, function: Callable[[], None]) -> None:
    """Run a function in so many threads. Raises what one of them does."""
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(function) for _ in range(threads)]:
            done.result()


def _samples_per_s(feeding: Feeding, cache: ShardCache, shards: Shards, own: Sequence[int], threads: int) -> float:
    """Samples that single range requests bring, of so many threads."""
    reader = open_reader(cache, shards, feeding.config, _classes(feeding))
    places, lock, count = _places(shards, own), threading.Lock(), 0
    began = time.perf_counter()

    def read() -> None:
        nonlocal count
        while time.perf_counter() - began < feeding.seconds:
            with lock:
                place = next(places)
                count += 1
            reader.read_bytes(*place)

    _at_once(max(1, threads), read)
    return count / (time.perf_counter() - began)


class _Parts:
    """Batches of shards that have arrived."""

    def __init__(self, feeding: Feeding, cache: ShardCache, shards: Shards, own: Sequence[int]) -> None:
        helper = native() if feeding.config.native else None
        self.native = helper is not None
        whole = feeding.config.model_copy(update={"fetch": "shards"})
        self._reader: SampleReader = open_reader(cache, shards, whole, _classes(feeding), helper)
        self._images = TrainingImages(self._reader, Crops(helper), feeding.config, seed=0)
        self._feeding, self._rows = feeding, min(feeding.rows, MOST_ROWS)
        self.device = torch.device("cuda" if feeding.gpus and torch.cuda.is_available() else "cpu")
        self._places, self._lock = _places(shards, own), threading.Lock()

    def filled_per_s(self, threads: int) -> float:
        """Images that so many threads write into batches in a second."""
        return self._batches_per_s(threads, self._fill) * self._rows

    def handed_over_per_s(self) -> float:
        """Images that batches would bring if writing them took no time: made, waited for, copied to the device."""
        return self._batches_per_s(1, lambda numbers, images, labels: None) * self._rows

    def _fill(self, numbers: NDArray[np.int64], images: NDArray[np.uint8], labels: Tensor) -> None:
        with self._lock:
            places = list(itertools.islice(self._places, len(numbers)))
        self._images.write(numbers, places, images, labels)

    def _batches_per_s(self, threads: int, fill: Fill) -> float:
        feeding, device = self._feeding, self.device
        shape = label_shape(feeding.dataset, _classes(feeding))
        workers = Workers(threads, fill, feeding.resolution, shape, pinned=device.type == "cuda")
        pending: deque[Callable[[], tuple[Tensor, Tensor]]] = deque()
        numbers = np.arange(self._rows)
        try:
            for turn in itertools.count(-1):
                if turn == 0:
                    # The first batch was for opening shards.
                    began = time.perf_counter()
                elif turn > 0 and time.perf_counter() - began > feeding.seconds:
                    return turn / (time.perf_counter() - began)
                while len(pending) < AHEAD:
                    pending.append(workers.submit(numbers, self._rows))
                images, _ = pending.popleft()()
                images.to(device)
        finally:
            workers.close()
        raise AssertionError("the loop has no other end")


def _classes(feeding: Feeding) -> Sequence[int]:
    return range(len(feeding.dataset.meta["classes"]))


def _places(shards: Shards, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Samples of some shards, (shard, index) of each, mixed as training mixes them, without end."""
    draw = np.random.default_rng(0)
    counts = shards.counts[list(numbers)]
    ends = np.cumsum(counts)
    while True:
        # Within all of them, laid end to end.
        drawn = draw.integers(ends[-1], size=1024)
        places = np.searchsorted(ends, drawn, side="right")
        indices = drawn - (ends - counts)[places]
        yield from zip((numbers[place] for place in places.tolist()), indices.tolist(), strict=True)
