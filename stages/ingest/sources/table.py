"""A table with a row for each image: its address or its bytes, and its labels."""

from __future__ import annotations

import hashlib
import posixpath
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.context import canonical_json, sha256
from stages.ingest.config import SPLIT_NAMES, TableSource
from stages.ingest.sources.addressed import STORED, read_addresses, resolve
from stages.ingest.sources.base import SPLITS, Listing, Missing, RawImage, Reference
from stages.ingest.sources.class_names import class_names, map_digest
from stages.ingest.sources.labels import Labels
from stages.ingest.sources.parquet import ParquetTable
from stages.ingest.sources.ranges import locate_object
from stages.ingest.sources.text_table import CsvTable, JsonTable

_TYPICAL_BYTES = 110_000
"""Taken for the size of an image behind an address: ImageNet's mean."""


class Table:
    """Images of a CSV, TSV, JSONL or Parquet table.

    An image is referred to by its address as the table has it, or, where the table has its bytes, by the
    number of its row, counted from 0. Images behind addresses are taken as unchanged while the table is.
    """

    def __init__(self, config: TableSource) -> None:
        self._config = config
        self._map = None if config.class_map is None else Path(config.class_map)

    def listing(self) -> Listing:
        table, config, embedded = self._table, self._config, self._embedded
        columns = [config.label, *self._split_column, *([] if embedded else [config.image])]
        labels = Labels(config.path, config.label_separator, text=table.text)
        rows, addresses, seen = array("q"), list[str](), set[bytes]()
        splits, refused = bytearray(), list[tuple[str, str]]()
        for row, (label, *others) in enumerate(table.rows(columns)):
            address = None if embedded else self._address(row, others[-1])
            if address is None and not embedded:
                refused.append((f"row-{row}", "no image"))
            elif address is not None and (place := self._digest_of(address)) in seen:
                refused.append((address, f"listed twice: again in row {row}; several labels go into one row"))
            elif not labels.add(row, label):
                refused.append((address or f"row-{row}", "no label"))
            else:
                if address is not None:
                    addresses.append(address)
                    seen.add(place)
                rows.append(row)
                splits.append(self._split(row, others[0]) if self._split_column else 0)
        if not rows:
            raise UserError(f"{config.path} has no row with an image and a label: expected one for each image")
        classes, numbers, starts = labels.finish()
        return Listing(
            classes=class_names(self._map, classes),
            references=rows.tolist() if embedded else addresses,
            labels=numbers,
            starts=starts,
            sizes=self._sizes(rows),
            splits=np.frombuffer(splits, dtype=np.int8).copy(),
            refused=refused,
        )

    def digest(self) -> str:
        """sha256 over the table's name, size and time or tag, what its addresses are relative to, and the class map."""
        return sha256(canonical_json([*self._state(), None if self._embedded else self._base, map_digest(self._map)]))

    def read(self, references: Sequence[Reference]) -> Iterator[RawImage | Missing]:
        if references and isinstance(references[0], int):
            assert isinstance(self._table, ParquetTable)
            return self._table.images(self._config.image, [int(reference) for reference in references])
        return read_addresses(map(str, references), self._base)

    @cached_property
    def _table(self) -> CsvTable | JsonTable | ParquetTable:
        path, suffix = self._config.path, PurePosixPath(self._config.path).suffix.lower()
        if suffix == ".parquet":
            return ParquetTable(path)
        return JsonTable(path) if suffix == ".jsonl" else CsvTable(path, suffix)

    @cached_property
    def _embedded(self) -> bool:
        """Whether the table has the images' bytes. Raises UserError where it lacks a column."""
        config, columns = self._config, self._table.columns
        if not columns:
            raise UserError(f"{config.path} is empty: expected columns {config.image} and {config.label}")
        for field in ("image", "label", "split"):
            name = getattr(config, field)
            if name not in columns and name is not None and (field, name) != ("split", "split"):
                raise UserError(f"{config.path} has no column {field}={name}: it has {', '.join(columns)}")
        return isinstance(self._table, ParquetTable) and self._table.has_bytes(config.image)

    @property
    def _split_column(self) -> list[str]:
        name = self._config.split
        return [name] if name is not None and name in self._table.columns else []

    @property
    def _base(self) -> str:
        base = self._config.base or self._config.path.rpartition("/")[0]
        return base.removeprefix("file://").rstrip("/")

    def _address(self, row: int, value: object) -> str | None:
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise UserError(f"{self._config.path}, row {row}: image {value!r}: expected an address")
        resolve(value, self._base)
        return value

    def _digest_of(self, address: str) -> bytes:
        """What an image is known by, however its address is written: of 16 bytes, since all are in memory at once."""
        place = posixpath.normpath(resolve(address, self._base).removeprefix("file://"))
        return hashlib.blake2b(place.encode(), digest_size=16).digest()

    def _split(self, row: int, value: object) -> int:
        if not isinstance(value, str) or value not in SPLIT_NAMES:
            column, expected = self._config.split, ", ".join(SPLIT_NAMES)
            raise UserError(f"{self._config.path}, row {row}: {column} is {value!r}: expected one of {expected}")
        return SPLITS.index(SPLIT_NAMES[value])

    def _sizes(self, rows: Sequence[int]) -> NDArray[np.int64]:
        if self._embedded and isinstance(self._table, ParquetTable):
            return self._table.sizes(self._config.image)[np.asarray(rows, dtype=np.int64)]
        return np.full(len(rows), _TYPICAL_BYTES)

    def _state(self) -> tuple[str, int, int | str]:
        """Name, size, and time of change or tag."""
        path = self._config.path
        if path.startswith(STORED):
            storage, key = locate_object(path)
            stat = storage.stat(key)
            if stat is None:
                raise UserError(f"{path} is not there")
            return key, stat.bytes, stat.tag
        try:
            status = Path(path.removeprefix("file://")).stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        return path.rpartition("/")[2], status.st_size, status.st_mtime_ns
