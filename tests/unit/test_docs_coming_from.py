"""The fields and values that docs/coming-from.md names are there, and its workflow is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import BaseModel, TypeAdapter

from pipeline.config import load_workflow, parse_workflow
from pipeline.field_words import models_in
from pipeline.kinds import KINDS
from pipeline.yaml_file import read_yaml

PAGE = (Path(__file__).parents[2] / "docs/coming-from.md").read_text()


class Row(NamedTuple):
    """A line of the tables: what is there, of which kind of stage, and the fields here with the values said of them."""

    there: str
    kind: str
    fields: tuple[str, ...]


def rows() -> Iterator[Row]:
    for line in PAGE.splitlines():
        # A bar within code is none of the table's.
        cells = [cell.strip() for cell in line.strip("|").split(" |")]
        if not line.startswith("|") or len(cells) != 3 or cells[1] in ("here", "") or set(line) <= set("|- "):
            continue
        here, _, of = cells[1].partition(" of `")
        spans = [span for span in re.findall(r"`([^`]+)`", here) if not span.startswith("patchline")]
        yield Row(cells[0], of.split("`")[0] or "pretrain", tuple(spans))


def there_is(model: type[BaseModel], path: str) -> bool:
    name, _, rest = path.partition(".")
    names = {info.alias or field: field for field, info in model.model_fields.items()}
    if name not in names:
        return False
    return not rest or any(there_is(inner, rest) for field, inner in models_in(model) if field == names[name])


def test_the_page_has_the_tables_that_are_looked_at():
    assert len(list(rows())) > 60
    assert {row.kind for row in rows()} == {"pretrain", "ingest", "mixture", "fewshot", "evaluate"}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.there[:40])
def test_each_field_is_one(row: Row):
    for span in row.fields:
        assert there_is(KINDS[row.kind], span.partition(":")[0]), span


@pytest.mark.parametrize(
    "row", [row for row in rows() if any(":" in span for span in row.fields)], ids=lambda row: row.there
)
def test_each_value_is_one(row: Row):
    values = [span.partition(": ")[::2] for span in row.fields if ":" in span]
    # As the page has them beside it.
    values += [("lr_batch", "64")] if ("lr_scale", "linear") in values else []
    if row.kind == "pretrain":
        # Raises UserError for values that the field, or the others of the row, do not go with.
        load_workflow("folder", [f"pretrain.{path}={value}" for path, value in values])
        return
    for path, value in values:
        info = KINDS[row.kind].model_fields[path]
        TypeAdapter(info.annotation).validate_python(read_yaml(value))


def test_its_workflow_is_one():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert set(parse_workflow(text, "tars.yaml").stages) == {"ingest", "pretrain"}
