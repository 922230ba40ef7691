"""What became of one shard, as a document that later attempts find."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.errors import check_format
from cluster.storage import NotFound, Storage
from stages.data.table import File, Shard

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of one task: the shard, None where no image was good, and what was met on the way."""

    shard: Shard | None
    multi_label: bool
    class_counts: Mapping[int, int]
    bad: Sequence[tuple[str, str]] = ()
    """Name and reason of each image that was left out."""
    traits: Mapping[str, int] = field(default_factory=dict)
    """Images by trait (see `stages.ingest.prepare`)."""


def read_part(storage: Storage, key: str, holds: Callable[[Part], bool]) -> Part | None:
    """What an earlier attempt made, where it made it and it still `holds`. Raises UserError for a newer format."""
    try:
        document = json.loads(storage.read(key))
    except NotFound:
        return None
    check_format(document.pop("format"), FORMAT, key)
    shard = document["shard"]
    if shard is not None:
        shard = Shard(tar=File(**shard["tar"]), index=File(**shard["index"]), count=shard["count"])
    counts = {int(label): count for label, count in document["class_counts"].items()}
    bad = [(name, reason) for name, reason in document["bad"]]
    part = Part(**{**document, "shard": shard, "class_counts": counts, "bad": bad})
    return part if holds(part) else None
