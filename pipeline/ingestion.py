"""`patchline ingest`: a workflow of one stage, from what a path shows itself to be."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import UserError
from pipeline.config import Workflow, parse_workflow

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


def ingest_workflow(source: str, destination: str | None = None, overrides: Iterable[str] = ()) -> Workflow:
    """The workflow that ingests `source`, with its tars at `destination`. Raises UserError for what is no source."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source.rstrip("/")).stem).strip("-") or "images"
    stage: dict[str, Any] = {"source": recognise(source), "name": name}
    if destination is not None:
        stage["destination"] = destination
    document = {"name": f"ingest-{name}"[:60], "stages": {"ingest": stage}}
    return parse_workflow(yaml.safe_dump(document), "patchline ingest", overrides)


def recognise(source: str) -> dict[str, Any]:
    """The source that an address means: tars, a table, a folder of archives, of IDX files, or of classes' folders."""
    if source.endswith(TABLES):
        return {"kind": "table", "path": source}
    if ".tar" in source or "://" in source:
        return {"kind": "webdataset", "shards": {"train": source}}
    path = Path(source).expanduser()
    if not path.is_dir():
        raise UserError(
            f"{source}: expected a folder of images for each class, a folder of archives or IDX files, a table "
            f"({', '.join(TABLES)}), or WebDataset tars such as 's3://bucket/train-*.tar'"
        )
    names = {entry.name for entry in path.iterdir()}
    if any(name.startswith("train-images-idx3-ubyte") for name in names):
        return {"kind": "idx", "path": source}
    if any(name.endswith(".tar") for name in names):
        return {"kind": "archives", "path": source}
    return {"kind": "folder", "path": source}
