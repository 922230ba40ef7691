"""A stage's tables: those that people know from the terminal as they are there, all others cell by cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table as Drawn

from pipeline.display import fewshot_table
from pipeline.display_models import PERCENT, TABLES
from pipeline.report.document import Table

KNOWN = {**TABLES, "fewshot": fewshot_table}
CAPTIONS = "figures"
"""The table that says what each picture is of."""
Rows = list[dict[str, Any]]


def tables(found: Mapping[str, Rows]) -> list[Table]:
    """Those with rows, the known ones first."""
    names = sorted((name for name in found if found[name] and name != CAPTIONS), key=lambda name: name not in KNOWN)
    return [_table(name, found[name]) for name in names]


def _table(name: str, rows: Rows) -> Table:
    if name in KNOWN:
        try:
            return _drawn(name, KNOWN[name](rows))
        except (KeyError, ValueError, StopIteration):
            # A stage of somebody's own has one of the same name and another form.
            pass
    return _plain(name, rows)


def _drawn(name: str, table: Drawn) -> Table:
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    return Table(
        name=name,
        title=str(table.title or ""),
        columns=[str(column.header).replace("\n", " ") for column in table.columns],
        numeric=[column.justify == "right" for column in table.columns],
        rows=[list(row) for row in zip(*cells, strict=True)],
        strong=[number for number, row in enumerate(table.rows) if row.style],
    )


def _plain(name: str, rows: Rows) -> Table:
    names = dict.fromkeys(key for row in rows for key in row)
    numeric = {name: all(_is_number(row.get(name)) for row in rows) for name in names}
    # What a row is about comes first: a record's own order is that of the alphabet.
    columns = sorted(names, key=numeric.__getitem__)
    return Table(
        name=name,
        title=name.replace("_", " "),
        columns=[column.replace("_", " ") for column in columns],
        numeric=[numeric[column] for column in columns],
        rows=[[value_text(column, row.get(column)) for column in columns] for row in rows],
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def value_text(name: str, value: Any) -> str:
    """A value of a metric or a column, as people read it."""
    if value is None:
        return ""
    if not _is_number(value):
        return str(value)
    if PERCENT.search(name):
        return f"{100 * value:.1f} %"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
