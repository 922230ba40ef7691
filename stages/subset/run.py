"""A subset: first without what other data sets have, then a fraction of each class of what remains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.errors import UserError
from stages.context import Context, Inputs, Result, SizedIterable, sha256
from stages.data.manifest import DatasetMeta, Split, dataset_meta
from stages.data.table import File, Shard
from stages.data.views import absolute_shards, write_split
from stages.subset.config import SubsetConfig
from stages.subset.fingerprint import join, read_fingerprints
from stages.subset.others import Others, find_others
from stages.subset.part import Part
from stages.subset.report import Found, table, write_report
from stages.subset.selection import choose
from stages.subset.tasks import MatchTask, ShardTask, match_shard, print_shard

NOTHING = Part(removed=(), unreadable=())


def run(config: SubsetConfig, inputs: Inputs, context: Context) -> Result:
    """Find the copies, choose, and write new indexes and tables. The same inputs and seed give the same bytes."""
    meta = dataset_meta(inputs["data"])
    if config.per_class is not None and meta.multi_label:
        raise UserError(f"per_class={config.per_class}: samples of {meta.name!r} have several labels; use fraction")
    shards = {name: absolute_shards(context.storage, inputs["data"], name) for name in meta.splits}
    reduced = {name: shards[name] for name in dict.fromkeys(config.splits) if meta.split(name)}
    others = find_others(config, inputs, context.storage)
    found, unreadable = _find_copies(config, context, reduced, others)
    files, splits = write_report(context, config.data, found, others, unreadable), {}
    for name, split in meta.splits.items():
        if name in reduced:
            split, kept = _reduce(config, context, name, meta, found[name])
        else:
            kept = shards[name]
        entry, written = write_split(context, name, kept, split.class_counts)
        files.append(entry)
        splits[name] = replace(written, parts=split.parts)
    made = replace(meta, name=config.name or _name(config, meta.name), splits=splits)
    output = context.commit("dataset", files, made.to_meta())
    rows = table(found, meta.splits, splits)
    return Result(output=output, metrics=_metrics(rows, len(unreadable)), tables={"subset": rows})


def _find_copies(
    config: SubsetConfig, context: Context, reduced: Mapping[str, Sequence[Shard]], others: Others
) -> tuple[Found, list[int]]:
    """What others have too, of each shard of each split; and the numbers of others' images that are unreadable."""
    if not config.without:
        return {name: [(shard, NOTHING) for shard in own] for name, own in reduced.items()}, []
    prints, unreadable = _print_others(context, others)
    tasks = (
        MatchTask(storage=context.storage, folder=context.folder, shard=shard, prints=prints, near=config.near)
        for own in reduced.values()
        for shard in own
    )
    parts = iter(context.tasks(match_shard, SizedIterable(tasks, sum(map(len, reduced.values()))), label="copies"))
    return {name: [(shard, next(parts)) for shard in own] for name, own in reduced.items()}, unreadable


def _print_others(context: Context, others: Others) -> tuple[File, list[int]]:
    """Store the fingerprints of all of the others' images as one file; and which of them are unreadable."""
    tasks = (ShardTask(storage=context.storage, folder=context.folder, shard=row.shard) for row in others.rows)
    keys = list(context.tasks(print_shard, SizedIterable(tasks, len(others.rows)), label="fingerprints"))
    everything = join([read_fingerprints(context.storage.read(key)) for key in keys])
    body = everything.to_bytes()
    file = File(address=f"prints/all-{sha256(body)[:20]}.safetensors", bytes=len(body), sha256=sha256(body))
    context.storage.write(f"{context.folder}/{file.address}", body)
    return file, np.flatnonzero(~everything.readable).tolist()


def _reduce(
    config: SubsetConfig, context: Context, name: str, meta: DatasetMeta, found: Sequence[tuple[Shard, Part]]
) -> tuple[Split, list[Shard]]:
    """What is kept of a split: its description, with the new class counts, and its shards."""
    classes = 1 if meta.multi_label else len(meta.classes)
    chosen: list[Shard | None] = []
    counts: Counter[int] = Counter()
    for shard, own in choose(config, context, name, classes, found):
        chosen.append(shard)
        counts.update(own)
    if not any(chosen):
        raise UserError(
            f"split {name}: nothing is left, since all of its {meta.split(name).count} images are in "
            f"{', '.join(config.without)}; see {context.storage.url}/{context.prefix}/removed.jsonl"
        )
    split = replace(meta.split(name), class_counts=tuple(counts[label] for label in range(len(meta.classes))))
    return _without_empty(name, split, chosen)


def _without_empty(name: str, split: Split, chosen: Sequence[Shard | None]) -> tuple[Split, list[Shard]]:
    """The shards that have samples; of a mixture, its parts with as many shards as they still have."""
    parts, start = [], 0
    for number, part in enumerate(split.parts):
        left = sum(shard is not None for shard in chosen[start : start + part.shards])
        start += part.shards
        if not left:
            raise UserError(
                f"split {name}: nothing is left of number {number + 1} of the {len(split.parts)} data sets that are "
                "mixed: leave it out of the mixture"
            )
        parts.append(replace(part, shards=left))
    return replace(split, parts=tuple(parts)), [shard for shard in chosen if shard is not None]


def _name(config: SubsetConfig, name: str) -> str:
    """For example `photos deduplicated 10%`."""
    words = [name]
    if config.without:
        words.append("deduplicated")
    if config.fraction < 1:
        words.append(f"{100 * config.fraction:g}%")
    if config.per_class is not None:
        words.append(f"{config.per_class} a class")
    return " ".join(words)


def _metrics(rows: Sequence[dict[str, Any]], unreadable_others: int) -> dict[str, float]:
    names = ("images", "removed_exact", "removed_near", "unreadable", "kept")
    totals = {name: float(sum(row[name] for row in rows)) for name in names}
    return {**totals, "unreadable_others": float(unreadable_others)}
