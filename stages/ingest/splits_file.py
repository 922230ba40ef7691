"""Splits that a file gives by the images' names, before what the source says."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cluster.errors import UserError
from stages.context import canonical_json, sha256
from stages.ingest.config import SPLIT_NAMES
from stages.ingest.sources.base import SPLITS, Listing


def digest_with(digest: str, file: str) -> str:
    """A source's digest together with the content of a splits file. Raises UserError."""
    return sha256(canonical_json([digest, sha256(_content(file))]))


def override_splits(listing: Listing, file: str) -> Listing:
    """The listing with the splits of the images that `file` names, as lines of `name,split`; a header may be first.

    Images that it does not name keep their split. Raises UserError for a name that the source does not have.
    """
    given = dict(_lines(file))
    splits, unknown = listing.splits.copy(), dict(given)
    for number, reference in enumerate(listing.references):
        name = listing.image_name(reference)
        if name in given:
            splits[number] = given[name]
            unknown.pop(name, None)
    if unknown:
        example = listing.image_name(listing.references[0]) if len(listing) else "none"
        raise UserError(
            f"splits_file={file}: the source has no image {next(iter(unknown))!r} "
            f"({len(unknown)} such names): expected names such as {example!r}"
        )
    return replace(listing, splits=splits)


def _lines(file: str) -> Iterator[tuple[str, int]]:
    """Name and index into SPLITS of every line."""
    try:
        rows = list(csv.reader(_content(file).decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"splits_file={file} is no CSV in UTF-8: {error}") from error
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and row[-1].strip().lower() == "split"):
            continue
        if len(row) != 2 or row[1].strip() not in SPLIT_NAMES:
            expected = ", ".join(SPLIT_NAMES)
            raise UserError(
                f"splits_file={file}, line {number}: {','.join(row)!r}: expected a name and one of {expected}"
            )
        if row[0] in seen:
            raise UserError(f"splits_file={file}, line {number}: {row[0]!r} is named twice: give each image one split")
        seen.add(row[0])
        yield row[0], SPLITS.index(SPLIT_NAMES[row[1].strip()])


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"splits_file={file} cannot be read: {error.strerror}") from error
