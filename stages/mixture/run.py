"""A mixture: tables over other data sets' tars, with their labels in one list of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.storage import Storage
from stages.context import Context, Inputs, Output, Result
from stages.data.cache import locate
from stages.data.index import read_index
from stages.data.manifest import DatasetMeta, Part, Split, dataset_meta
from stages.data.mixed_order import turns
from stages.data.table import Shard
from stages.data.views import absolute_shards, relabel, write_index, write_split
from stages.mixture.classes import join_classes, join_held_out
from stages.mixture.config import MixtureConfig

SHARDS_PER_TASK = 64
"""Indexes that one task writes anew: each is small, and a task costs a few milliseconds."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One of the data sets."""

    stage: str
    output: Output
    meta: DatasetMeta
    labels: list[int]
    """Of each of its classes, in the mixture."""


@dataclass(frozen=True, kw_only=True)
class _Relabelling:
    """Some shards whose indexes get new labels. Picklable."""

    storage: Storage
    folder: str
    shards: tuple[tuple[str, Shard], ...]
    """Names of the new indexes, and shards with absolute addresses."""
    labels: tuple[int, ...]
    multi_label: bool


def run(config: MixtureConfig, inputs: Inputs, context: Context) -> Result:
    """Lay the data sets' shards end to end, split by split. The same inputs give the same bytes."""
    outputs = [inputs[f"data.{number}"] for number in range(len(config.data))]
    metas = [dataset_meta(output) for output in outputs]
    classes, labels = join_classes(config, metas)
    sources = [
        _Source(stage=stage, output=output, meta=meta, labels=own)
        for stage, output, meta, own in zip(config.data, outputs, metas, labels, strict=True)
    ]
    multi_label = any(meta.multi_label for meta in metas)
    files, splits, rows = [], {}, []
    for name in dict.fromkeys(chain.from_iterable(meta.splits for meta in metas)):
        own = [source for source in sources if name in source.meta.splits]
        shards = [list(_shards(context, source, name, multi_label)) for source in own]
        entry, split = write_split(context, name, list(chain(*shards)), _class_counts(own, name, len(classes)))
        shares = _shares(config, own) if name == "train" else None
        parts = _parts([source.meta.split(name) for source in own], shares)
        files.append(entry)
        splits[name] = replace(split, parts=parts)
        rows += _rows(name, own, parts)
    meta = DatasetMeta(
        name=config.name or "+".join(config.data),
        classes=classes,
        held_out=join_held_out(metas, labels),
        multi_label=multi_label,
        splits=splits,
    )
    totals = {"images": float(sum(split.count for split in splits.values())), "classes": float(len(classes))}
    return Result(output=context.commit("dataset", files, meta.to_meta()), metrics=totals, tables={"mixture": rows})


def _shares(config: MixtureConfig, sources: Sequence[_Source]) -> list[float] | None:
    """Each data set's share of training, None where their sizes say it. Raises UserError where one cannot have it."""
    if len(sources) < len(config.data):
        lacking = [stage for stage in config.data if stage not in [source.stage for source in sources]]
        raise UserError(f"{', '.join(lacking)} has no split 'train', so there is nothing to mix")
    if config.weights is None:
        return None
    turns(config.weights)
    return [weight / sum(config.weights) for weight in config.weights]


def _parts(splits: Sequence[Split], shares: Sequence[float] | None) -> tuple[Part, ...]:
    """The parts of a split of the mixture; those of mixtures of mixtures are laid out flat."""
    if shares is None and not any(split.parts for split in splits):
        return ()
    total = sum(split.count for split in splits)
    found = []
    for number, split in enumerate(splits):
        share = shares[number] if shares is not None else split.count / total
        inner = split.parts or (Part(shards=split.shards, share=1.0),)
        found += [Part(shards=part.shards, share=part.share * share) for part in inner]
    return tuple(found)


def _shards(context: Context, source: _Source, name: str, multi_label: bool) -> Iterator[Shard]:
    """The shards of one data set's split, by absolute addresses and with the mixture's labels."""
    found = absolute_shards(context.storage, source.output, name)
    if source.labels == list(range(len(source.labels))) and source.meta.multi_label == multi_label:
        yield from found
        return
    named = [(f"{source.stage}-{name}-{number:06d}", shard) for number, shard in enumerate(found)]
    tasks = (
        _Relabelling(
            storage=context.storage,
            folder=context.folder,
            shards=tuple(named[start : start + SHARDS_PER_TASK]),
            labels=tuple(source.labels),
            multi_label=multi_label,
        )
        for start in range(0, len(named), SHARDS_PER_TASK)
    )
    for shards in context.tasks(_relabel, tasks, label="indexes"):
        yield from shards


def _relabel(task: _Relabelling) -> list[Shard]:
    written = []
    for name, shard in task.shards:
        place, key = locate(task.storage, "", shard.index.address)
        index = relabel(read_index(place.read(key)), task.labels, multi_label=task.multi_label)
        new = write_index(task.storage, task.folder, name, index, shard.tar)
        assert new is not None, "a shard without samples is in no table"
        written.append(new)
    return written


def _class_counts(sources: Sequence[_Source], name: str, classes: int) -> list[int]:
    counts = np.zeros(classes, dtype=np.int64)
    for source in sources:
        np.add.at(counts, source.labels, source.meta.split(name).class_counts)
    return counts.tolist()


def _rows(name: str, sources: Sequence[_Source], parts: Sequence[Part]) -> list[dict[str, Any]]:
    total = sum(source.meta.split(name).count for source in sources)
    rows, place = [], 0
    for source in sources:
        split = source.meta.split(name)
        count = len(split.parts) or 1
        share = sum(part.share for part in parts[place : place + count]) if parts else split.count / total
        place += count
        rows.append({"split": name, "data": source.stage, "images": split.count, "share": share})
    return rows
