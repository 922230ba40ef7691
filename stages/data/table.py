"""The shards of a split as one table, which is read lazily: about 150 bytes a shard.

How many samples of each class a shard has is in a file of its own beside it, 8 bytes for each class that a shard
has, so that a reader who does not ask for it does not fetch it. A table is one safetensors file, so that a row costs
the reading of that row. Addresses are relative to the data set's folder, or absolute (`s3://…`, `file://…`,
`https://…`) where tars were indexed in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import safe_open


@dataclass(frozen=True, kw_only=True)
class File:
    """A stored file, by address, with its size and hexadecimal sha256."""

    address: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar in WebDataset form, its index, and the number of its samples."""

    tar: File
    index: File
    count: int


def table_bytes(shards: Sequence[Shard]) -> bytes:
    """The stored form of a table."""
    arrays: dict[str, NDArray[Any]] = {"counts": np.array([shard.count for shard in shards], dtype=np.int64)}
    for name in ("tar", "index"):
        files: list[File] = [getattr(shard, name) for shard in shards]
        text = [file.address.encode() for file in files]
        arrays |= {
            f"{name}.bytes": np.array([file.bytes for file in files], dtype=np.int64),
            f"{name}.sha256": np.frombuffer(b"".join(bytes.fromhex(f.sha256) for f in files), np.uint8).reshape(-1, 32),
            f"{name}.address": np.frombuffer(b"".join(text), np.uint8),
            f"{name}.address_ends": np.cumsum([len(part) for part in text], dtype=np.int64),
        }
    return safetensors.numpy.save(arrays)


def tar_sizes(data: bytes) -> dict[str, int]:
    """Of a table in its stored form, the bytes of every tar by its address."""
    arrays = safetensors.numpy.load(data)
    text, ends = arrays["tar.address"].tobytes(), arrays["tar.address_ends"].tolist()
    addresses = [text[start:stop].decode() for start, stop in itertools.pairwise([0, *ends])]
    return dict(zip(addresses, arrays["tar.bytes"].tolist(), strict=True))


class ShardTable(Sequence[Shard]):
    """A split's shards from a local copy of its table. `counts` [n] are in memory, rows are read when asked for."""

    def __init__(self, path: Path | str) -> None:
        self._arrays = safe_open(str(path), framework="np")
        self.counts: NDArray[np.int64] = self._arrays.get_tensor("counts")

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        return Shard(tar=self._file("tar", number), index=self._file("index", number), count=int(self.counts[number]))

    def _file(self, name: str, number: int) -> File:
        def row(column: str, start: int, stop: int) -> NDArray[Any]:
            return self._arrays.get_slice(f"{name}.{column}")[start:stop]

        ends = row("address_ends", max(0, number - 1), number + 1).tolist()
        start, stop = (0, ends[0]) if number == 0 else ends
        return File(
            address=row("address", start, stop).tobytes().decode(),
            bytes=int(row("bytes", number, number + 1)[0]),
            sha256=row("sha256", number, number + 1).tobytes().hex(),
        )


def class_counts_bytes(counts: Sequence[Mapping[int, int]]) -> bytes:
    """The stored form of the samples by label of each shard of a table."""
    pairs = [pair for own in counts for pair in sorted(own.items())]
    table = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    ends = np.cumsum([len(own) for own in counts], dtype=np.int64)
    return safetensors.numpy.save({"pairs": table, "ends": ends})


class ClassCounts(Sequence[dict[int, int]]):
    """Samples by label of each shard of a table, from a local copy; read when asked for."""

    def __init__(self, path: Path | str) -> None:
        self._arrays = safe_open(str(path), framework="np")
        self._ends: NDArray[np.int64] = self._arrays.get_tensor("ends")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        start, stop = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
        # Of multi-label samples without labels there is nothing to read.
        return dict(self._arrays.get_slice("pairs")[start:stop].tolist()) if start < stop else {}


class Shards(Sequence[Shard]):
    """The shards of several tables, end to end."""

    def __init__(self, tables: Iterable[ShardTable]) -> None:
        self._tables = [table for table in tables if len(table)]
        self._ends = np.cumsum([len(table) for table in self._tables], dtype=np.int64)
        empty = np.zeros(0, dtype=np.int64)
        self.counts: NDArray[np.int64] = np.concatenate([empty, *(table.counts for table in self._tables)])

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        turn = int(np.searchsorted(self._ends, number, side="right"))
        return self._tables[turn][number - (int(self._ends[turn - 1]) if turn else 0)]
