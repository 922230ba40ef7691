"""Ingestion: from a pile of labelled images to splits of shuffled shards."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from cluster.storage.base import Storage
from stages.context import Context, Inputs, Result
from stages.data.manifest import DatasetMeta, Shard, Split
from stages.data.random import permutation
from stages.data.shards import Sample, index_bytes, write_shard
from stages.ingest.config import IngestConfig, Source
from stages.ingest.sources import Listing, Reference, list_source, read_images

SPLITS = ("train", "validation", "test", "held_out", "held_out_test")


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to write one shard. Picklable."""

    source: Source
    storage: Storage
    prefix: str
    path: str
    """Of the tar, without its suffix, relative to `prefix`."""
    numbers: Sequence[int]
    references: Sequence[Reference]
    labels: Sequence[int]


def run(config: IngestConfig, inputs: Inputs, context: Context) -> Result:
    """Draw the splits, write a shard per task, commit. The same config and seed give the same bytes."""
    listing = list_source(config.source)
    classes = _class_names(config, listing)
    held_out = _held_out(len(classes), config.held_out_classes, context.seed)
    splits = draw_splits(listing, config, held_out, context.seed)
    tasks = {name: _tasks(config, context, listing, name, numbers) for name, numbers in splits.items()}
    written = context.tasks(make_shard, [task for group in tasks.values() for task in group], label="shards")
    shards = iter(shard for shard, _ in written)
    meta = DatasetMeta(
        name=config.name or config.source.kind,
        classes=classes,
        held_out=held_out,
        splits={
            name: Split(count=len(splits[name]), shards=tuple(next(shards) for _ in group))
            for name, group in tasks.items()
        },
    )
    output = context.commit("dataset", [file for _, files in written for file in files], meta.to_meta())
    rows = [_row(name, split) for name, split in meta.splits.items()]
    totals = {name: float(sum(row[name] for row in rows)) for name in ("images", "shards", "bytes")}
    return Result(output=output, metrics={**totals, "classes": float(len(classes))}, tables={"splits": rows})


def draw_splits(
    listing: Listing, config: IngestConfig, held_out: Sequence[int], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Sample numbers of each split that is not empty, shuffled.

    A split that the source lacks is drawn from its training images, from each class alike. Held-out
    classes leave the splits for `held_out` (train and validation) and `held_out_test`.
    """
    names = listing.splits.astype("U16")
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    missing = {name: fraction for name, fraction in fractions.items() if not np.any(names == name)}
    pool = np.flatnonzero(names == "train")
    by_class = pool[np.argsort(listing.labels[pool], kind="stable")]
    bounds = np.searchsorted(listing.labels[by_class], np.arange(len(listing.classes) + 1))
    for label in range(len(listing.classes)):
        members = by_class[bounds[label] : bounds[label + 1]]
        members = members[permutation(len(members), seed, "splits", label)]
        for name, fraction in missing.items():
            # At least one image of a class stays for training.
            count = max(0, min(int(fraction * (bounds[label + 1] - bounds[label]) + 0.5), len(members) - 1))
            names[members[:count]] = name
            members = members[count:]
    hidden = np.isin(listing.labels, held_out)
    names[hidden] = np.where(names[hidden] == "test", "held_out_test", "held_out")
    found = {name: np.flatnonzero(names == name) for name in SPLITS}
    return {
        name: numbers[permutation(len(numbers), seed, f"shuffle {name}")]
        for name, numbers in found.items()
        if len(numbers)
    }


def make_shard(task: ShardTask) -> tuple[Shard, list[dict[str, Any]]]:
    """Write one tar and its index to storage; returns the shard and its files' manifest entries."""
    images = read_images(task.source, task.references)
    samples = (
        Sample(key=f"{number:09d}", extension=extension, data=data, label=label)
        for number, label, (extension, data) in zip(task.numbers, task.labels, images, strict=True)
    )
    with tempfile.TemporaryDirectory(prefix="patchline-") as folder:
        tar, npy = Path(folder) / "shard.tar", Path(folder) / "shard.npy"
        index, class_counts = write_shard(samples, tar)
        npy.write_bytes(index_bytes(index))
        entries = []
        for path, file in ((f"{task.path}.tar", tar), (f"{task.path}.npy", npy)):
            digest = task.storage.upload(f"{task.prefix}/{path}", file)
            entries.append({"path": path, "bytes": digest.bytes, "sha256": digest.sha256})
    shard = Shard(
        path=entries[0]["path"],
        index_path=entries[1]["path"],
        bytes=entries[0]["bytes"],
        sha256=entries[0]["sha256"],
        count=len(index),
        class_counts=class_counts,
    )
    return shard, entries


def _class_names(config: IngestConfig, listing: Listing) -> tuple[str, ...]:
    names = config.class_names or listing.classes
    if len(names) != len(listing.classes):
        raise UserError(
            f"class_names has {len(names)} names and the source has {len(listing.classes)} classes: give one for each"
        )
    return names


def _held_out(classes: int, count: int, seed: int) -> tuple[int, ...]:
    if count >= classes:
        raise UserError(f"held_out_classes={count} leaves none of {classes} classes to train on: give a smaller number")
    return tuple(sorted(permutation(classes, seed, "held-out classes")[:count].tolist()))


def _tasks(
    config: IngestConfig, context: Context, listing: Listing, split: str, numbers: NDArray[np.int64]
) -> list[ShardTask]:
    tasks = []
    for shard, start in enumerate(range(0, len(numbers), config.samples_per_shard)):
        members = numbers[start : start + config.samples_per_shard].tolist()
        tasks.append(
            ShardTask(
                source=config.source,
                storage=context.storage,
                prefix=context.prefix,
                path=f"shards/{split}-{shard:06d}",
                numbers=members,
                references=[listing.references[member] for member in members],
                labels=listing.labels[members].tolist(),
            )
        )
    return tasks


def _row(name: str, split: Split) -> dict[str, Any]:
    classes = {label for shard in split.shards for label in shard.class_counts}
    stored = sum(shard.bytes for shard in split.shards)
    return {
        "split": name,
        "images": split.count,
        "classes": len(classes),
        "shards": len(split.shards),
        "bytes": stored,
    }
