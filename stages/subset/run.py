"""A subset: first without what other data sets have, then a fraction of each class of what remains."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.context import Context, Inputs, Output, Result, sha256
from stages.data.manifest import DatasetMeta, Split, dataset_meta
from stages.data.table import Shard
from stages.data.views import absolute_shards, write_split
from stages.subset.choice import thresholds
from stages.subset.config import SubsetConfig
from stages.subset.fingerprint import join, read_fingerprints
from stages.subset.part import Part
from stages.subset.tasks import (
    ChoiceTask,
    MatchTask,
    SelectTask,
    ShardTask,
    hash_shard,
    match_shard,
    print_shard,
    select_shard,
)

NOTHING = Part(removed=(), unreadable=0)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run of the stage."""

    config: SubsetConfig
    context: Context
    meta: DatasetMeta

    def task(self, name: str, number: int, shard: Shard) -> dict[str, Any]:
        """What every task over the shard with this number of a split is told."""
        context = self.context
        return {
            "storage": context.storage,
            "folder": context.folder,
            "name": f"{name}-{number:06d}",
            "shard": shard,
        }


def run(config: SubsetConfig, inputs: Inputs, context: Context) -> Result:
    """Find the copies, choose, and write new indexes and tables. The same inputs and seed give the same bytes."""
    meta = dataset_meta(inputs["data"])
    if config.per_class is not None and meta.multi_label:
        raise UserError(f"per_class={config.per_class}: samples of {meta.name!r} have several labels; use fraction")
    this = _Run(config=config, context=context, meta=meta)
    shards = {name: absolute_shards(context.storage, inputs["data"], name) for name in meta.splits}
    reduced = {name: shards[name] for name in dict.fromkeys(config.splits) if meta.split(name)}
    parts = _find_copies(this, inputs, reduced)
    files, splits = [_write_report(context, reduced, parts)], {}
    for name, split in meta.splits.items():
        kept, counts = shards[name], list(split.class_counts)
        if name in reduced:
            chosen, counts = _choose(this, name, shards[name], parts[name])
            split, kept = _without_empty(split, chosen)
        entry, written = write_split(context, name, kept, counts)
        files.append(entry)
        splits[name] = replace(written, parts=split.parts)
    made = replace(meta, name=config.name or meta.name, splits=splits)
    output = context.commit("dataset", files, made.to_meta())
    rows = [_row(name, meta.split(name), splits[name], parts[name]) for name in reduced]
    names = ("images", "equal", "near", "kept")
    metrics = {name: float(sum(row[name] for row in rows)) for name in names}
    unreadable = sum(part.unreadable for own in parts.values() for part in own)
    return Result(output=output, metrics={**metrics, "unreadable": float(unreadable)}, tables={"subset": rows})


def _find_copies(this: _Run, inputs: Inputs, shards: dict[str, list[Shard]]) -> dict[str, list[Part]]:
    """What other data sets have too, of each shard of each split."""
    config, context = this.config, this.context
    if not config.without:
        return {name: [NOTHING] * len(own) for name, own in shards.items()}
    others = [
        (f"{stage}/{split}-{number:06d}", shard)
        for place, stage in enumerate(config.without)
        for split in _evaluation_splits(config, stage, inputs[f"without.{place}"])
        for number, shard in enumerate(absolute_shards(context.storage, inputs[f"without.{place}"], split))
    ]
    tasks = (
        ShardTask(storage=context.storage, folder=context.folder, name=name, shard=shard) for name, shard in others
    )
    keys = list(context.tasks(print_shard, tasks, label="fingerprints"))
    everything = join([read_fingerprints(context.storage.read(key)) for key in keys])
    body = everything.to_bytes()
    prints = f"{context.folder}/prints/all-{sha256(body)[:20]}.safetensors"
    context.storage.write(prints, body)
    names = tuple((name, shard.count) for name, shard in others)
    matching = (
        MatchTask(**this.task(name, number, shard), prints=prints, names=names, near=config.near)
        for name, own in shards.items()
        for number, shard in enumerate(own)
    )
    found = iter(context.tasks(match_shard, matching, label="copies"))
    return {name: [next(found) for _ in own] for name, own in shards.items()}


def _evaluation_splits(config: SubsetConfig, stage: str, output: Output) -> list[str]:
    meta = dataset_meta(output)
    found = [name for name in config.without_splits if name in meta.splits]
    if not found:
        raise UserError(
            f"without: data set {meta.name!r} of {stage} has none of without_splits={list(config.without_splits)}: "
            f"it has {', '.join(meta.splits)}"
        )
    return found


def _choose(
    this: _Run, name: str, shards: Sequence[Shard], parts: Sequence[Part]
) -> tuple[list[Shard | None], list[int]]:
    """The shards of what is kept of a split, and its samples by label."""
    common = [
        {
            **this.task(name, number, shard),
            "removed": tuple(removed.index for removed in part.removed),
            "seed": this.context.seed,
        }
        for number, (shard, part) in enumerate(zip(shards, parts, strict=True))
    ]
    limits = _limits(this, common)
    tasks = (SelectTask(**fields, thresholds=limits) for fields in common)
    chosen: list[Shard | None] = []
    counts: Counter[int] = Counter()
    for shard, own in this.context.tasks(select_shard, tasks, label="indexes"):
        chosen.append(shard)
        counts.update(own)
    if not any(chosen):
        raise UserError(f"split {name}: nothing is left of it; see removed.jsonl, or raise fraction")
    return chosen, [counts[label] for label in range(len(this.meta.classes))]


def _limits(this: _Run, common: Sequence[dict[str, Any]]) -> NDArray[np.float64] | None:
    """The largest hash to keep, of each class or, where samples have several labels, of all samples together."""
    config = this.config
    if config.fraction == 1 and config.per_class is None:
        return None
    tasks = (ChoiceTask(**fields) for fields in common)
    hashes, labels = zip(*this.context.tasks(hash_shard, tasks, label="hashes"), strict=True)
    together = np.concatenate(hashes)
    if this.meta.multi_label:
        return thresholds(together, np.zeros(len(together), dtype=np.int32), 1, config.fraction, None)
    return thresholds(together, np.concatenate(labels), len(this.meta.classes), config.fraction, config.per_class)


def _without_empty(split: Split, chosen: Sequence[Shard | None]) -> tuple[Split, list[Shard]]:
    """The shards that have samples; of a mixture, its parts with as many shards as they still have."""
    parts, start = [], 0
    for part in split.parts:
        left = sum(shard is not None for shard in chosen[start : start + part.shards])
        start += part.shards
        if not left:
            raise UserError("nothing is left of one of the data sets that are mixed: leave it out of the mixture")
        parts.append(replace(part, shards=left))
    return replace(split, parts=tuple(parts)), [shard for shard in chosen if shard is not None]


def _write_report(context: Context, shards: dict[str, list[Shard]], parts: dict[str, list[Part]]) -> dict[str, Any]:
    """Store what was left out as a copy, and of what; returns the file's entry for the manifest."""
    lines = [
        {
            "split": name,
            "shard": shard.tar.address,
            "index": removed.index,
            "offset": removed.offset,
            "reason": "equal pixels" if removed.distance is None else "near",
            "distance": removed.distance,
            "copy_of": removed.other,
        }
        for name, own in parts.items()
        for shard, part in zip(shards[name], own, strict=True)
        for removed in part.removed
    ]
    return context.write("removed.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def _row(name: str, before: Split, after: Split, parts: Sequence[Part]) -> dict[str, Any]:
    distances = [removed.distance for part in parts for removed in part.removed]
    equal = sum(distance is None for distance in distances)
    return {
        "split": name,
        "images": before.count,
        "equal": equal,
        "near": len(distances) - equal,
        "kept": after.count,
    }
