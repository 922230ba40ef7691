"""`patchline ingest`: a workflow of one stage, from what a path shows itself to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import UserError
from pipeline.api import run
from pipeline.config import Workflow, parse_workflow
from pipeline.identity import fingerprint, stage_folder
from pipeline.reuse import identify, reusable
from pipeline.settings import Settings
from stages.context import Output
from stages.ingest.config import SPLIT_NAMES

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_KIND = "ingest.source.kind="
_SPLIT = re.compile(r"(train|validation|valid|val|test)(?=[^A-Za-z.]|\.tar$)")


def ingest_workflow(source: str, destination: str | None = None, overrides: Iterable[str] = ()) -> Workflow:
    """The workflow that ingests `source`, with its tars at `destination`. Raises UserError for what is no source.

    Where an override says the kind of the source, nothing is guessed.
    """
    given = list(overrides)
    words = [override.removeprefix("stages.") for override in given]
    kinds = [word.removeprefix(_KIND) for word in words if word.startswith(_KIND)]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source.rstrip("/")).stem).strip("-") or "images"
    stage: dict[str, Any] = {"source": of_kind(kinds[-1], source) if kinds else recognise(source), "name": name}
    if destination is not None:
        stage["destination"] = destination
    document = {"name": f"ingest-{name}"[:60], "stages": {"ingest": stage}}
    return parse_workflow(yaml.safe_dump(document), "patchline ingest", given)


def ingest(source: str, settings: Settings, destination: str | None = None, overrides: Iterable[str] = ()) -> Output:
    """The data set of `source`, ingested in this process where it is not there yet, without a Ray cluster.

    Raises UserError where the source is none, or the stage fails.
    """
    workflow, storage = ingest_workflow(source, destination, overrides), settings.storage()
    folder = stage_folder("ingest", fingerprint(identify(workflow, "ingest", {})))
    workflow_id, state = run(workflow, settings)
    found = reusable(storage, folder, workflow.stages["ingest"], {})
    if found is None:
        raise UserError(f"{workflow_id} is {state}: `patchline status {workflow_id}` says why")
    return found.output


def of_kind(kind: str, source: str) -> dict[str, Any]:
    """The source of a kind that is said, at this address."""
    if kind == "digits":
        return {"kind": kind}
    return {"kind": kind, "shards": {"train": source}} if kind == "webdataset" else {"kind": kind, "path": source}


def recognise(source: str) -> dict[str, Any]:
    """The source that an address means: what is there where it is a path, else what its name says.

    Raises UserError for what is none, or could be two.
    """
    path = Path(source.removeprefix("file://")).expanduser()
    if path.is_dir():
        return _of_folder(path)
    name = source.partition("?")[0].lower() if "://" in source else source.lower()
    if name.endswith(TABLES):
        return of_kind("table", source)
    if path.is_file() and name.endswith(".tar"):
        return of_kind("archives", str(path)) if _form([path]) == "archives" else of_kind("webdataset", source)
    if "://" in source or name.endswith((".tar", ".txt")) or "*" in source or "{" in source:
        return of_kind("webdataset", source)
    raise UserError(
        f"{source}: expected a folder of images for each class, a folder of archives or IDX files, a table "
        f"({', '.join(TABLES)}), or WebDataset tars such as 's3://bucket/train-*.tar'"
    )


def _of_folder(path: Path) -> dict[str, Any]:
    names = sorted(entry.name for entry in path.iterdir())
    if any(name.startswith("train-images-idx3-ubyte") for name in names):
        return of_kind("idx", str(path))
    tars = [name for name in names if name.endswith(".tar")]
    if not tars and "winter21_whole" not in names:
        return of_kind("folder", str(path))
    if not tars or any(name.startswith("ILSVRC2012_") for name in tars):
        return of_kind("archives", str(path))
    if _form([path / name for name in (tars[0], tars[-1])]) == "archives":
        return of_kind("archives", str(path))
    return {"kind": "webdataset", "shards": _splits(path, tars)}


def _splits(path: Path, tars: Sequence[str]) -> dict[str, Any]:
    """The shards of each split that a folder's tars are named after; all of them are for training where none is."""
    found = [_SPLIT.match(name) for name in tars]
    if not any(found):
        return {"train": str(path)}
    unknown = [name for name, match in zip(tars, found, strict=True) if match is None]
    if unknown:
        raise UserError(
            f"{path} has tars that are named after splits, and {unknown[0]}, which is not: name the tars of each "
            "split under source.shards in a workflow file"
        )
    by_split: dict[str, list[str]] = {}
    for word in sorted({match[1] for match in found if match is not None}):
        # `*` for the shards of a split, so that a workflow of many thousands stays short.
        alone = f"{word}.tar"
        patterns = [alone] if alone in tars else []
        if any(match is not None and match[1] == word and match.string != alone for match in found):
            patterns.append(f"{word}[!A-Za-z.]*.tar")
        by_split.setdefault(SPLIT_NAMES[word], []).extend(f"{path}/{pattern}" for pattern in patterns)
    return by_split


def _form(tars: Sequence[Path]) -> str:
    """`archives` or `webdataset`, as the first members of some tars say. Raises UserError where they do not."""
    from stages.ingest.sources.tar_forms import tar_form

    forms = {tar_form(tar) for tar in tars}
    if len(forms) > 1 or None in forms:
        raise UserError(
            f"{tars[0]}: neither tars of one class's images each, nor samples that have an image and a label: say "
            "which with -o ingest.source.kind=archives or -o ingest.source.kind=webdataset"
        )
    return str(forms.pop())
