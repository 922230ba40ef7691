"""A data set of any number of small pictures that differ, made fast, for `tests.bench.soak`.

Sample n is a grey JPEG of 16 × 16 pixels, four flat squares whose levels are the four bytes of n, and is labelled
n modulo LABELS: so each row of a batch says which sample it is. At quality 100 a flat square of 8 × 8 pixels is stored
exactly: eight times its level is the one coefficient that is not zero, and is divided by one (ITU T.81, annex A).
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cluster.storage import Storage
from stages.context import Context, Output, sha256
from stages.data.index import make_index
from stages.data.manifest import DatasetMeta, Split
from stages.data.shards import ShardWriter
from stages.data.table import File, Shard, table_bytes

SIZE, LABELS = 16, 1000
FOLDER = "stages/ingest/soak"


def picture(number: int) -> bytes:
    """The JPEG of a sample."""
    levels = np.frombuffer(number.to_bytes(4, "big"), np.uint8).reshape(2, 2)
    squares = levels.repeat(SIZE // 2, axis=0).repeat(SIZE // 2, axis=1)[:, :, None]
    return simplejpeg.encode_jpeg(np.ascontiguousarray(squares), quality=100, colorspace="GRAY")


def numbers_of(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Which samples images [n, SIZE, SIZE, 3] show, [n], where they are whole and not mirrored."""
    half = SIZE // 2
    levels = images[:, [0, 0, half, half], [0, half, 0, half], 0].astype(np.int64)
    return levels @ np.array([1 << 24, 1 << 16, 1 << 8, 1])


def make_dataset(storage: Storage, samples: int, shards: int, processes: int = 0) -> Output:
    """A data set of that many samples in shards of equal sizes, written by that many processes, or by this one."""
    ends = np.linspace(0, samples, shards + 1).astype(int).tolist()
    write = partial(_write_shard, storage)
    if processes:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                written = list(pool.map(write, range(shards), ends[:-1], ends[1:]))
            except BaseException:
                # Whoever ends the benchmark does not wait for all the other tars.
                pool.shutdown(cancel_futures=True)
                raise
    else:
        written = list(map(write, range(shards), ends[:-1], ends[1:]))
    context = Context(storage=storage, folder=FOLDER, attempt=1, seed=0, tasks=_none, gang=_none)
    table = context.write("tables/train.safetensors", table_bytes(written))
    split = Split(
        count=samples,
        shards=shards,
        bytes=sum(shard.tar.bytes for shard in written),
        class_counts=tuple(np.bincount(np.arange(samples) % LABELS, minlength=LABELS).tolist()),
        table=table["path"],
    )
    classes = tuple(str(label) for label in range(LABELS))
    meta = DatasetMeta(name="soak", classes=classes, held_out=(), multi_label=False, splits={"train": split})
    return context.commit("dataset", [table], meta.to_meta())


def _none(*_: Any, **__: Any) -> Any:
    raise NotImplementedError


def _write_shard(storage: Storage, number: int, start: int, stop: int) -> Shard:
    """The samples [start, stop) as a tar and its index, both in storage."""
    name = f"train-{number:06d}"
    with storage.writer(f"{FOLDER}/shards/{name}.tar") as file:
        tar = ShardWriter(file)
        places = [tar.add(f"{n:09d}", "jpg", picture(n), [n % LABELS]) for n in range(start, stop)]
        tar.close()
    assert file.digest is not None
    index = make_index(places, [[n % LABELS] for n in range(start, stop)], multi_label=False).to_bytes()
    storage.write(f"{FOLDER}/index/{name}.safetensors", index)
    return Shard(
        tar=File(address=f"shards/{name}.tar", bytes=file.digest.bytes, sha256=file.digest.sha256),
        index=File(address=f"index/{name}.safetensors", bytes=len(index), sha256=sha256(index)),
        count=stop - start,
    )


class Seen:
    """Which samples of an epoch have come, and what was wrong with how many."""

    def __init__(self, samples: int) -> None:
        self._here = np.full(samples, False)
        self.wrong = {"unknown": 0, "twice": 0, "mislabelled": 0, "missing": 0}

    def add(self, places: NDArray[np.int64], images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Note a batch: its global sample numbers [b], which go on from the last ones, images and labels [b]."""
        epochs, numbers = places // len(self._here), numbers_of(images)
        self.wrong["mislabelled"] += int((labels != numbers % LABELS).sum())
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            self._add(numbers[here])
            if places[here][-1] == (epoch + 1) * len(self._here) - 1:
                self._end()

    def _add(self, numbers: NDArray[np.int64]) -> None:
        known = numbers[numbers < len(self._here)]
        self.wrong["unknown"] += len(numbers) - len(known)
        self.wrong["twice"] += int(self._here[known].sum()) + len(known) - len(np.unique(known))
        self._here[known] = True

    def _end(self) -> None:
        """An epoch is over: all have to have come."""
        self.wrong["missing"] += int((~self._here).sum())
        self._here[:] = False
