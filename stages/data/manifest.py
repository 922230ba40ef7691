"""What an ingested data set says of itself: the `meta` of its output, as values. Light: no torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.errors import UserError
from stages.context import Output

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar in WebDataset form and its index; paths are relative to the output's prefix."""

    path: str
    index_path: str
    bytes: int
    sha256: str
    """Of the tar. The index's own stands in the output's list of files."""
    count: int
    class_counts: Mapping[int, int]
    """Samples by label."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A part of the data set, for example `train`."""

    count: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetMeta:
    """Classes, splits and shards of a data set. A label is an index into `classes`."""

    name: str
    classes: tuple[str, ...]
    held_out: tuple[int, ...]
    """Labels that `train`, `validation` and `test` never contain."""
    splits: Mapping[str, Split]

    def shards(self, names: Iterable[str]) -> tuple[Shard, ...]:
        """The shards of several splits, end to end. Raises UserError for a split that there is not."""
        return tuple(shard for name in names for shard in self.split(name).shards)

    def split(self, name: str) -> Split:
        """One split by name. Raises UserError, which lists the splits that there are."""
        if name not in self.splits:
            raise UserError(f"data set {self.name!r} has no split {name!r}: it has {', '.join(self.splits)}")
        return self.splits[name]

    def to_meta(self) -> dict[str, Any]:
        """The JSON form, which `dataset_meta` reads back."""
        return {
            "format": FORMAT,
            "name": self.name,
            "classes": list(self.classes),
            "held_out": list(self.held_out),
            "splits": {name: _split_to_meta(split) for name, split in self.splits.items()},
        }


def dataset_meta(output: Output) -> DatasetMeta:
    """The description of an ingested data set. Raises UserError where the output is none or is too new."""
    if output.kind != "dataset":
        raise UserError(f"{output.prefix} is a {output.kind}, not a dataset: refer to an ingest stage")
    meta = output.meta
    if meta["format"] > FORMAT:
        raise UserError(
            f"data set {output.prefix} has format {meta['format']}; "
            f"this version reads up to {FORMAT}: install a newer patchline"
        )
    return DatasetMeta(
        name=meta["name"],
        classes=tuple(meta["classes"]),
        held_out=tuple(meta["held_out"]),
        splits={name: _split_from_meta(split) for name, split in meta["splits"].items()},
    )


def _split_to_meta(split: Split) -> dict[str, Any]:
    shards = [asdict(shard) for shard in split.shards]
    for shard in shards:
        shard["class_counts"] = {str(label): count for label, count in sorted(shard["class_counts"].items())}
    return {"count": split.count, "shards": shards}


def _split_from_meta(meta: dict[str, Any]) -> Split:
    shards = []
    for shard in meta["shards"]:
        counts = {int(label): count for label, count in shard["class_counts"].items()}
        shards.append(Shard(**{**shard, "class_counts": counts}))
    return Split(count=meta["count"], shards=tuple(shards))
