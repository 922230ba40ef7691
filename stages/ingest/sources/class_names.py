"""Names of classes by what the source calls them, from a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import UserError
from stages.context import sha256

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def class_names(file: Path | None, classes: Sequence[str]) -> tuple[str, ...]:
    """The name of each of `classes`, in their order; itself without a file. Raises UserError for one that it lacks."""
    if file is None:
        return tuple(classes)
    names = read_class_names(file)
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(
            f"{file} has no name for {missing[0]} ({len(missing)} of {len(classes)} classes): "
            f"expected a line for each, such as {missing[0]} and its name"
        )
    return tuple(names[name] for name in classes)


def map_digest(file: Path | None) -> str | None:
    """sha256 of a file of names, None where there is none. Raises UserError where it cannot be read."""
    try:
        return None if file is None else sha256(file.read_bytes())
    except OSError as error:
        raise UserError(f"class_map={file} cannot be read: {error.strerror}") from error


def read_class_names(file: Path) -> dict[str, str]:
    """Pairs from a CSV, TSV or JSON, or from a .txt where a space parts them. Raises UserError."""
    suffix = file.suffix.lower()
    try:
        if suffix == ".json":
            return _of_json(file)
        with open(file, newline="", encoding="utf-8-sig") as opened:
            if suffix == ".txt":
                lines = (line.strip().partition(" ") for line in opened)
                return {name: title.strip() for name, _, title in lines if name}
            if suffix in _DELIMITERS:
                rows = filter(None, csv.reader(opened, delimiter=_DELIMITERS[suffix]))
                return {row[0].strip(): row[1].strip() for row in rows}
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, csv.Error) as error:
        raise UserError(
            f"{file}: {error}: expected a class as the source names it and its name in each line"
        ) from error
    raise UserError(f"{file}: expected names of classes as .csv, .tsv or .json")


def _of_json(file: Path) -> dict[str, str]:
    names = json.loads(file.read_text())
    if not isinstance(names, dict) or not all(isinstance(title, str) for title in names.values()):
        raise ValueError('no object such as {"n01440764": "tench"}')
    return names
