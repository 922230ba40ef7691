"""Tables as text: CSV, TSV and JSON lines, read row by row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TextIO

from cluster.errors import UserError
from stages.ingest.sources.ranges import open_stored

_BUFFER_BYTES = 8 * 2**20
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class CsvTable:
    """Values are texts. The first line has the columns' names."""

    text = True

    def __init__(self, address: str, suffix: str) -> None:
        self._address, self._delimiter = address, _DELIMITERS[suffix]

    @cached_property
    def columns(self) -> list[str]:
        with _opened(self._address) as file:
            return next(csv.reader(file, delimiter=self._delimiter), [])

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The values of some columns, row by row. Raises UserError for a row that is short of them."""
        places = [self.columns.index(name) for name in columns]
        with _opened(self._address) as file:
            reader = csv.reader(file, delimiter=self._delimiter)
            next(reader, None)
            for row in filter(None, reader):
                if len(row) != len(self.columns):
                    raise UserError(
                        f"{self._address}, line {reader.line_num}: {len(row)} values in {len(self.columns)} columns: "
                        "put values with the delimiter in them into quotes"
                    )
                yield tuple(row[place] for place in places)


class JsonTable:
    """An object in each line. The first one has all columns; a later one may leave some out."""

    text = False

    def __init__(self, address: str) -> None:
        self._address = address

    @cached_property
    def columns(self) -> list[str]:
        return list(next(self._objects(), {}))

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The values of some columns, row by row; None where there is none."""
        for row in self._objects():
            yield tuple(row.get(name) for name in columns)

    def _objects(self) -> Iterator[dict[str, object]]:
        with _opened(self._address) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{self._address}, line {number}: no JSON: {error}") from error
                if not isinstance(row, dict):
                    raise UserError(f"{self._address}, line {number}: {line.strip()[:80]!r}: expected an object")
                yield row


@contextmanager
def _opened(address: str) -> Iterator[TextIO]:
    buffered = io.BufferedReader(open_stored(address), _BUFFER_BYTES)
    try:
        with io.TextIOWrapper(buffered, encoding="utf-8-sig", newline="") as file:
            yield file
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{address} cannot be read as text in UTF-8: {error}") from error
