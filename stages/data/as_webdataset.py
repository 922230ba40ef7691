"""A data set in this program's order, as the first stage of anybody's own `webdataset` pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.storage import Storage
from stages.context import Output
from stages.data.config import DataConfig
from stages.data.dataset import open_cache, open_order, open_shards
from stages.data.manifest import dataset_meta
from stages.data.reader import SampleReader

_AT_ONCE = 1024
"""Samples whose places are looked up together."""
_EXTENSIONS = ((b"\x89PNG", "png"), (b"RIFF", "webp"))


def as_webdataset(
    storage: Storage,
    dataset: Output,
    splits: Sequence[str] = ("train",),
    config: DataConfig | None = None,
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    decode: bool = False,
) -> OrderedSamples:
    """The samples that training with `seed` reads, from global sample number `start` on, without end.

    Of these, `rank` takes every `world_size`-th. Each is a dict, as `webdataset` has them: `__key__` is the global
    sample number, so `start=int(key) + 1` goes on after it; `__url__` is the tar's address; then `jpg`, `png` or
    `webp` with the image's bytes, and `cls` or, where samples have several labels, `json` with the label's. With
    `decode` there are `image`, uint8 [H, W, 3], upright and in RGB, and `label`, an integer or a list of them; what
    cannot be decoded is replaced as in training. Raises UserError where a split is not there.
    """
    if not 0 <= rank < world_size or start < 0:
        raise UserError(f"start={start}, rank={rank}, world_size={world_size}: expected start ≥ 0, rank < world_size")
    return OrderedSamples(
        storage=storage,
        dataset=dataset,
        splits=tuple(splits),
        config=config or DataConfig(),
        seed=seed,
        start=start,
        rank=rank,
        world_size=world_size,
        decode=decode,
    )


@dataclass(frozen=True, kw_only=True)
class OrderedSamples:
    """Iterable and, since `webdataset.DataPipeline` asks for that, callable. Picklable: nothing is open yet."""

    storage: Storage
    dataset: Output
    splits: tuple[str, ...]
    config: DataConfig
    seed: int
    start: int
    rank: int
    world_size: int
    decode: bool

    def __call__(self) -> Iterator[dict[str, Any]]:
        return iter(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        cache = open_cache(self.storage, self.dataset, self.config)
        shards = open_shards(cache, self.dataset, self.splits)
        order = open_order(shards, self.dataset, self.splits, self.config, self.seed)
        meta = dataset_meta(self.dataset)
        reader = SampleReader(
            cache,
            shards,
            range(len(meta.classes)),
            whole=self.config.fetch == "shards",
            max_bad=self.config.max_bad,
            skip_corrupt=self.config.corrupt_shards == "skip",
        )
        first = self.start + self.rank
        while True:
            numbers = first + self.world_size * np.arange(_AT_ONCE)
            _, tars, indices = order.locate(numbers)
            for number, shard, index in zip(numbers.tolist(), tars.tolist(), indices.tolist(), strict=True):
                place = {"__key__": f"{number:012d}", "__url__": shards[shard].tar.address}
                yield {**place, **self._content(reader, shard, index, multi_label=meta.multi_label)}
            first += self.world_size * _AT_ONCE

    def _content(self, reader: SampleReader, shard: int, index: int, *, multi_label: bool) -> dict[str, Any]:
        if self.decode:
            sample = reader.read_or_replace(shard, index)
            return {"image": sample.image, "label": list(sample.labels) if multi_label else sample.labels[0]}
        data, labels = reader.read_bytes(shard, index)
        extension = next((name for start, name in _EXTENSIONS if data.startswith(start)), "jpg")
        if multi_label:
            return {extension: data, "json": json.dumps({"labels": labels}).encode()}
        return {extension: data, "cls": str(labels[0]).encode()}
