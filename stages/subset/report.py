"""What was left out and why, and what could not be compared, as files of the output and as figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from stages.context import Context
from stages.data.manifest import Split
from stages.data.table import Shard
from stages.subset.others import Others
from stages.subset.part import Part

Found = Mapping[str, Sequence[tuple[Shard, Part]]]
"""The shards of each reduced split, and what was found in each."""


def write_report(context: Context, stage: str, found: Found, others: Others, unreadable: Sequence[int]) -> list[Any]:
    """Store `removed.jsonl` and `unreadable.jsonl`; returns their entries for the manifest.

    `unreadable` are the numbers of evaluation images that cannot be decoded.
    """
    lines = [
        {"stage": stage, "split": name, "shard": shard.tar.address, "index": one.index, "offset": one.offset}
        for name, shard, part in _flat(found)
        for one in part.unreadable
    ]
    return [
        _write(context, "removed.jsonl", _removed(found, others)),
        _write(context, "unreadable.jsonl", [*lines, *map(others.place, unreadable)]),
    ]


def _removed(found: Found, others: Others) -> Iterator[dict[str, Any]]:
    for name, shard, part in _flat(found):
        for one in part.removed:
            yield {
                "split": name,
                "shard": shard.tar.address,
                "index": one.index,
                "offset": one.offset,
                "reason": "exact" if one.distance is None else "near",
                "distance": one.distance,
                "copy_of": others.place(one.other),
            }


def _flat(found: Found) -> Iterator[tuple[str, Shard, Part]]:
    return ((name, shard, part) for name, own in found.items() for shard, part in own)


def _write(context: Context, name: str, lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return context.write(name, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def table(found: Found, before: Mapping[str, Split], after: Mapping[str, Split]) -> list[dict[str, Any]]:
    """A row for each reduced split."""
    return [_row(name, before[name], after[name], [part for _, part in own]) for name, own in found.items()]


def _row(name: str, before: Split, after: Split, parts: Sequence[Part]) -> dict[str, Any]:
    removed = [one for part in parts for one in part.removed]
    exact = sum(one.distance is None for one in removed)
    return {
        "split": name,
        "images": before.count,
        "removed_exact": exact,
        "removed_near": len(removed) - exact,
        "unreadable": sum(len(part.unreadable) for part in parts),
        "kept": after.count,
        "classes": sum(count > 0 for count in before.class_counts),
        "classes_kept": sum(count > 0 for count in after.class_counts),
    }
