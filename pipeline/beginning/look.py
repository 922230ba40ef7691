"""What images there are, seen in a few seconds: how many, in which classes and splits, how large.

What is seen decides on proposals alone. Ingestion looks again, at everything.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cluster.errors import UserError
from pipeline.ingestion import recognise
from stages.ingest.config import FolderSource, SourceConfig
from stages.ingest.sources.unused import is_image_file

SECONDS = 4.0
"""After which counting ends, and the rest is estimated."""
MEASURED = 40
"""Images whose sizes are looked at."""
NOT_LISTED = ("archives", "webdataset")
"""Sources that cannot be counted without reading through all of them."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen of a source. None is what could not be seen in time."""

    source: dict[str, Any]
    """As it stands in a workflow file."""
    train: int | None = None
    """Images that may be trained on, before any split is drawn from them."""
    others: dict[str, int] = field(default_factory=dict)
    """Images of the splits that the source has itself, by split, beside train."""
    exact: bool = True
    """Whether everything was counted; else `train` and `others` are estimates."""
    classes: int | None = None
    per_class: tuple[int, ...] = ()
    """Training images of each class that was counted, in no order; empty where images have several labels."""
    multi_label: bool = False
    """Whether images have several labels."""
    side: int | None = None
    """Median of the images' shorter sides in pixels."""
    unreadable: int = 0
    """Of the images whose sizes were looked at, those that are damaged."""

    @property
    def smallest(self) -> int | None:
        """Training images of the class that has the fewest; None where that is not known."""
        return min(self.per_class, default=None)


def look(images: str, seconds: float = SECONDS) -> Seen:
    """Look at what an address leads to, for so many seconds at most. Raises UserError for what is no source of images.

    Nothing is read from other machines.
    """
    source = {"kind": "digits"} if images == "digits" else _absolute(recognise(images))
    if source["kind"] == "folder":
        return _look_at_folder(source, time.monotonic() + seconds)
    if source["kind"] in NOT_LISTED or "://" in str(source.get("path", "")):
        return Seen(source=source)
    return _look_at_listing(source)


def _absolute(source: dict[str, Any]) -> dict[str, Any]:
    """The same with whole paths, so that the workflow file can be moved."""
    path = source.get("path")
    return source if path is None or "://" in path else {**source, "path": str(Path(path).expanduser().absolute())}


def _look_at_listing(source: dict[str, Any]) -> Seen:
    """Of IDX files, tables and the digits, whose listing is there at once."""
    from stages.ingest.sources import open_source
    from stages.ingest.sources.base import SPLITS, RawImage

    opened = open_source(TypeAdapter(SourceConfig).validate_python(source))
    listing = opened.listing()
    counts = Counter(SPLITS[number] for number in listing.splits.tolist())
    chosen = [listing.references[number] for number in _spread(len(listing))]
    found = [item.data if isinstance(item, RawImage) else b"" for item in opened.read(chosen)]
    side, unreadable = _sides(found)
    per_class = Counter[int]()
    if listing.starts is None:
        per_class.update(listing.labels[listing.splits == SPLITS.index("train")].tolist())
    return Seen(
        source=source,
        train=counts.pop("train", 0),
        others=dict(counts),
        classes=len(listing.classes),
        per_class=tuple(per_class.values()),
        multi_label=listing.starts is not None,
        side=side,
        unreadable=unreadable,
    )


def _look_at_folder(source: dict[str, Any], deadline: float) -> Seen:
    from stages.ingest.sources.folder import split_folders

    root = Path(source["path"])
    splits = split_folders(root)
    counts, exact, paths = dict[str, int](), True, list[str]()
    per_class: Counter[str] = Counter()
    for folder, split in splits.items():
        classes = sorted(entry.name for entry in os.scandir(root / folder) if entry.is_dir())
        # In an order of chance, so that those that there was time for stand for the others.
        random.Random(0).shuffle(classes)
        looked, found = 0, Counter[str]()
        for name in classes:
            if looked and time.monotonic() > deadline:
                break
            images, whole = _images(root / folder / name, deadline)
            exact, looked = exact and whole, looked + 1
            if images:
                found[name] = len(images)
                paths.extend(images[: MEASURED // 4])
        exact = exact and looked == len(classes)
        counts[split] = counts.get(split, 0) + round(found.total() * len(classes) / max(1, looked))
        if split == "train":
            per_class = found
            number = len(found) if exact else len(classes)
    if not per_class:
        _refuse(source)
    side, unreadable = _sides(_read(paths[place] for place in _spread(len(paths))))
    train = counts.pop("train")
    return Seen(
        source=source,
        train=train,
        others={split: count for split, count in counts.items() if count},
        exact=exact,
        classes=number,
        per_class=tuple(per_class.values()),
        side=side,
        unreadable=unreadable,
    )


def _images(folder: Path, deadline: float) -> tuple[list[str], bool]:
    """Paths of a class's images, and whether there was time for all of them."""
    found: list[str] = []
    for place, _, names in os.walk(folder, followlinks=True):
        entries = {entry.name: entry for entry in os.scandir(place)}
        found += [entries[name].path for name in sorted(names) if name in entries and _is_image(entries[name])]
        if time.monotonic() > deadline:
            return found, False
    return found, True


def _is_image(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() and is_image_file(entry)
    except OSError:
        return False


def _refuse(source: dict[str, Any]) -> None:
    """Raise what ingestion would say of a folder without images; its words are the better ones."""
    from stages.ingest.sources import open_source

    open_source(FolderSource.model_validate(source)).listing()
    raise UserError(f"{source['path']} has no images that could be read: put them into a folder for each class")


def _spread(count: int) -> list[int]:
    """Places of at most MEASURED things, evenly over all of them."""
    return [number * count // min(count, MEASURED) for number in range(min(count, MEASURED))]


def _read(paths: Iterable[str]) -> Iterable[bytes]:
    for path in paths:
        try:
            yield Path(path).read_bytes()
        except OSError:
            yield b""


def _sides(images: Iterable[bytes] | Sequence[bytes]) -> tuple[int | None, int]:
    """The median of the shorter sides in pixels, None where no image is whole, and how many are damaged."""
    from stages.ingest.headers import BadImage, read_header

    sides, damaged = list[int](), 0
    for data in images:
        try:
            header = read_header(data)
        except BadImage:
            damaged += 1
        else:
            sides.append(min(header.width, header.height))
    return (round(statistics.median(sides)) if sides else None), damaged
