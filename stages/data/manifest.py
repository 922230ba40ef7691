"""What an ingested data set says of itself: the `meta` of its output, as values. Light: no torch or numpy here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.errors import UserError, check_format
from stages.context import Output

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set's shards within a split of a mixture."""

    shards: int
    share: float
    """Part of the samples that training reads from it, whatever its size."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A part of the data set, for example `train`."""

    count: int
    shards: int
    bytes: int
    """Of the tars."""
    class_counts: tuple[int, ...]
    """Samples by label."""
    table: str
    """The file of the output that lists the shards (see `stages.data.table`)."""
    parts: tuple[Part, ...] = ()
    """Of a mixture, in the order of the shards; without, samples are read in proportion to what there is."""

    @property
    def class_table(self) -> str:
        """The file with each shard's samples by label; views, and data sets of earlier versions, have none."""
        return self.table.removesuffix(".safetensors") + ".classes.safetensors"

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Split:
        """From the JSON form, which is that of `asdict`."""
        parts = tuple(Part(**part) for part in meta.get("parts", ()))
        return cls(**{**meta, "class_counts": tuple(meta["class_counts"]), "parts": parts})


@dataclass(frozen=True, kw_only=True)
class DatasetMeta:
    """Classes and splits of a data set. A label is an index into `classes`."""

    name: str
    classes: tuple[str, ...]
    held_out: tuple[int, ...]
    """Labels that `train`, `validation` and `test` never contain."""
    multi_label: bool
    """Whether a sample has any number of labels, rather than one."""
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """One split by name. Raises UserError, which lists the splits that there are."""
        if name not in self.splits:
            raise UserError(f"data set {self.name!r} has no split {name!r}: it has {', '.join(self.splits)}")
        return self.splits[name]

    def to_meta(self) -> dict[str, Any]:
        """The JSON form, which `dataset_meta` reads back."""
        return {"format": FORMAT, **asdict(self)}


def dataset_meta(output: Output) -> DatasetMeta:
    """The description of an ingested data set. Raises UserError where the output is none or is of another format."""
    if output.kind != "dataset":
        raise UserError(f"{output.prefix} is a {output.kind}, not a dataset: refer to an ingest stage")
    meta = output.meta
    check_format(meta["format"], FORMAT, f"data set {output.prefix}")
    if meta["format"] < FORMAT:
        raise UserError(f"data set {output.prefix} has format {meta['format']}; this version reads {FORMAT}: ingest it")
    return DatasetMeta(
        name=meta["name"],
        classes=tuple(meta["classes"]),
        held_out=tuple(meta["held_out"]),
        multi_label=meta["multi_label"],
        splits={name: Split.from_meta(split) for name, split in meta["splits"].items()},
    )


def base_folder(output: Output) -> str:
    """The key prefix that relative addresses of an output are meant of: its stage's folder, whatever the attempt."""
    return output.prefix.split("/attempts/")[0]
