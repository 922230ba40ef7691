"""Parquet tables: columns without the images, and the images by row. The only importer of pyarrow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.ingest.sources.base import Missing, RawImage
from stages.ingest.sources.ranges import open_stored

_ROWS = 8192
_IMAGES = 64
"""Images that are decoded from Parquet at once."""

_BUFFER_BYTES = 8 * 2**20
"""Parquet is read in pieces of this size, so that a row group of gigabytes takes no more memory than that."""

_IN_MEMORY_BYTES = 64 * 2**20
"""Images that wait for their turn go to a temporary file above this size."""


class ParquetTable:
    """One Parquet file. Opened when it is needed."""

    text = False

    def __init__(self, address: str) -> None:
        self._address = address

    @cached_property
    def columns(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The values of some columns, row by row. Only these columns are read."""
        for batch in self._file.iter_batches(batch_size=_ROWS, columns=list(columns), use_threads=False):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)

    def has_bytes(self, column: str) -> bool:
        """Whether a column has images' bytes, also as {"bytes", "path"}, not addresses. Raises UserError."""
        kind = self._file.schema_arrow.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
            kind = kind.field("bytes").type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return False
        if any(is_kind(kind) for is_kind in _BINARY):
            return True
        raise UserError(
            f'{self._address}: column {column} is {kind}: expected addresses, bytes, or a struct {{"bytes", "path"}}'
        )

    def sizes(self, column: str) -> NDArray[np.int64]:
        """Bytes of each row's image: the mean of its row group."""
        means = []
        for number in range(self._file.num_row_groups):
            group = self._file.metadata.row_group(number)
            chunks = [group.column(place) for place in range(group.num_columns)]
            own = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")]
            means.append(sum(chunk.total_uncompressed_size for chunk in own) // max(1, group.num_rows))
        return np.repeat(np.array(means, dtype=np.int64), np.diff(self._starts))

    def images(self, column: str, rows: Sequence[int]) -> Iterator[RawImage | Missing]:
        """The images of `rows`, in their order, which may be any.

        Each row group that has some of them is read once. What is read before its turn waits in a temporary
        file, so that memory holds one row group's images at most.
        """
        places: dict[int, tuple[str, int, int] | None] = {}
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as waiting:
            for row, value in self._values(column, rows):
                name, data = _image(row, value)
                places[row] = (name, waiting.tell(), len(data)) if data is not None else None
                waiting.write(data or b"")
            for row in rows:
                place = places[row]
                if place is None:
                    yield Missing(name=f"row-{row}", reason="no bytes in the table")
                    continue
                waiting.seek(place[1])
                yield RawImage(name=place[0], data=waiting.read(place[2]))

    def _values(self, column: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Row and value of each of `rows`, in the order of the table."""
        wanted = np.unique(np.array(rows, dtype=np.int64))
        bounds = np.searchsorted(wanted, self._starts)
        for group in np.flatnonzero(np.diff(bounds)).tolist():
            first = int(self._starts[group])
            batches = self._file.iter_batches(
                batch_size=_IMAGES, row_groups=[group], columns=self._parts(column), use_threads=False
            )
            for batch in batches:
                low, high = np.searchsorted(wanted, (first, first + batch.num_rows))
                for row in wanted[low:high].tolist():
                    yield row, batch.column(column)[row - first].as_py()
                first += batch.num_rows

    def _parts(self, column: str) -> list[str]:
        """What to read of a column: of a struct the bytes and the path alone."""
        kind = self._file.schema_arrow.field(column).type
        if not pa.types.is_struct(kind):
            return [column]
        return [f"{column}.{field.name}" for field in kind if field.name in ("bytes", "path")]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """First row of each row group, and the number of rows."""
        metadata = self._file.metadata
        counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        return np.cumsum([0, *counts], dtype=np.int64)

    @cached_property
    def _file(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(open_stored(self._address), buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise UserError(f"{self._address} is no Parquet file: {error}") from error


_BINARY = (
    *(pa.types.is_binary, pa.types.is_large_binary),
    *(pa.types.is_fixed_size_binary, pa.types.is_binary_view),
)


def _image(row: int, value: Any) -> tuple[str, bytes | None]:
    """Name and bytes of an image, as bytes or as {"bytes", "path"}."""
    if isinstance(value, dict):
        return value.get("path") or f"row-{row}", value["bytes"]
    return f"row-{row}", value
