"""Ingestion: from a pile of labelled images to splits of shuffled shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.context import Context, Inputs, Output, Result, SizedIterable
from stages.data.manifest import DatasetMeta, Split
from stages.data.table import Shard, class_counts_bytes, table_bytes
from stages.ingest.addresses import shard_addresses
from stages.ingest.config import IngestConfig, WebDatasetSource
from stages.ingest.destination import claim
from stages.ingest.in_place import IndexTask, index_tar
from stages.ingest.part import Part
from stages.ingest.report import Report
from stages.ingest.shard import ShardTask, make_shard
from stages.ingest.sources import open_source
from stages.ingest.sources.base import Listing
from stages.ingest.splits import draw_held_out, draw_splits, fill_shards
from stages.ingest.splits_file import override_splits


def run(config: IngestConfig, inputs: Inputs, context: Context) -> Result:
    """Draw the splits, write a shard per task, commit. The same config and seed give the same bytes."""
    if isinstance(config.source, WebDatasetSource):
        return _index_in_place(config, context, shard_addresses(config.source))
    listing = open_source(config.source).listing()
    if config.splits_file is not None:
        listing = override_splits(listing, config.splits_file)
    classes = _class_names(config, listing)
    held_out = draw_held_out(len(classes), config.held_out_classes, context.seed)
    splits = draw_splits(listing, config, held_out, context.seed)
    plan = {name: fill_shards(listing, numbers, config) for name, numbers in splits.items()}
    claim(config, context)
    shards = sum(len(groups) for groups in plan.values())
    tasks = SizedIterable(_tasks(config, context, listing, plan), shards)
    parts = context.tasks(make_shard, tasks, label="shards")
    return _finish(config, context, classes, held_out, _by_split(plan, parts), listing.refused, listing.unused)


def _index_in_place(config: IngestConfig, context: Context, addresses: dict[str, list[str]]) -> Result:
    count = sum(map(len, addresses.values()))
    tasks = (
        IndexTask(
            config=_checked(config, split),
            storage=context.storage,
            folder=context.folder,
            name=f"{split}-{number:06d}",
            address=address,
        )
        for split, own in addresses.items()
        for number, address in enumerate(own)
    )
    parts = _by_split(addresses, context.tasks(index_tar, SizedIterable(tasks, count), label="indexes"))
    found = [label for own in parts.values() for part in own for label in part.class_counts]
    classes = config.class_names or tuple(str(label) for label in range(max(found, default=-1) + 1))
    return _finish(config, context, classes, (), parts)


def _checked(config: IngestConfig, split: str) -> IngestConfig:
    """The config for a split's tasks: what models are measured on is decoded whatever `verify` says."""
    return config if split in ("train", "held_out") else config.model_copy(update={"verify": "decode"})


def _by_split(plan: Mapping[str, Sequence[Any]], parts: Iterable[Part]) -> dict[str, list[Part]]:
    """Parts in the order of the plan, by split."""
    stream = iter(parts)
    return {name: [next(stream) for _ in groups] for name, groups in plan.items()}


def _finish(
    config: IngestConfig,
    context: Context,
    classes: tuple[str, ...],
    held_out: tuple[int, ...],
    parts: dict[str, list[Part]],
    refused: Sequence[tuple[str, str]] = (),
    unused: Mapping[str, int] = MappingProxyType({}),
) -> Result:
    """Report what was met, and commit."""
    unlisted = Part(shard=None, multi_label=False, class_counts={}, bad=refused)
    report = Report(config.max_bad, [unlisted, *(part for own in parts.values() for part in own)], unused)
    report.tell_unused()
    names = report.write(context)
    report.check(f"{context.storage.url}/{context.prefix}/{names['path']}")
    output = _commit(config, context, classes, held_out, parts, names)
    rows = [_row(name, Split.from_meta(split)) for name, split in output.meta["splits"].items()]
    totals = {name: float(sum(row[name] for row in rows)) for name in ("images", "shards", "bytes")}
    metrics = {**totals, "classes": float(len(classes)), **report.metrics()}
    return Result(output=output, metrics=metrics, tables={"splits": rows, **report.tables()})


def _tasks(
    config: IngestConfig, context: Context, listing: Listing, plan: dict[str, list[NDArray[np.int64]]]
) -> Iterator[ShardTask]:
    for name, groups in plan.items():
        for number, members in enumerate(groups):
            yield ShardTask(
                config=_checked(config, name),
                storage=context.storage,
                folder=context.folder,
                name=f"{name}-{number:06d}",
                numbers=members.tolist(),
                references=[listing.references[member] for member in members.tolist()],
                labels=[listing.labels_of(member) for member in members.tolist()],
                multi_label=listing.starts is not None,
            )


def _commit(
    config: IngestConfig,
    context: Context,
    classes: tuple[str, ...],
    held_out: tuple[int, ...],
    parts: dict[str, list[Part]],
    names: dict[str, Any],
) -> Output:
    files, splits = [names], {}
    for name, own in parts.items():
        shards = [part.shard for part in own if part.shard is not None]
        if not shards:
            raise UserError(f"split {name}: none of its images can be used; see the report of bad images")
        files.append(context.write(f"tables/{name}.safetensors", table_bytes(shards)))
        splits[name] = _split(shards, own, len(classes), files[-1]["path"])
        counts = [part.class_counts for part in own if part.shard is not None]
        files.append(context.write(splits[name].class_table, class_counts_bytes(counts)))
    meta = DatasetMeta(
        name=config.name or config.source.kind,
        classes=classes,
        held_out=held_out,
        multi_label=any(part.multi_label for own in parts.values() for part in own),
        splits=splits,
    )
    return context.commit("dataset", files, meta.to_meta())


def _split(shards: list[Shard], parts: list[Part], classes: int, table: str) -> Split:
    counts = np.zeros(classes, dtype=np.int64)
    for part in parts:
        for label, count in part.class_counts.items():
            counts[label] += count
    return Split(
        count=sum(shard.count for shard in shards),
        shards=len(shards),
        bytes=sum(shard.tar.bytes for shard in shards),
        class_counts=tuple(counts.tolist()),
        table=table,
    )


def _class_names(config: IngestConfig, listing: Listing) -> tuple[str, ...]:
    names = config.class_names or listing.classes
    if len(names) != len(listing.classes):
        raise UserError(
            f"class_names has {len(names)} names and the source has {len(listing.classes)} classes: give one for each"
        )
    return names


def _row(name: str, split: Split) -> dict[str, Any]:
    classes = sum(count > 0 for count in split.class_counts)
    return {
        "split": name,
        "images": split.count,
        "classes": classes,
        "shards": split.shards,
        "bytes": split.bytes,
    }
