"""One shard, made by one task: written once, whichever attempt or machine does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.storage import Storage
from stages.context import canonical_json, sha256
from stages.data.index import make_index
from stages.data.shards import ShardWriter
from stages.data.table import File, Shard
from stages.ingest.config import IngestConfig
from stages.ingest.destination import place
from stages.ingest.headers import BadImage
from stages.ingest.part import FORMAT, Part, read_part
from stages.ingest.prepare import prepare
from stages.ingest.sources import open_source
from stages.ingest.sources.base import Missing, Reference


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to write one shard. Picklable."""

    config: IngestConfig
    storage: Storage
    folder: str
    """Key prefix of the stage's folder."""
    name: str
    """For example `train-000007`."""
    numbers: Sequence[int]
    """Of the images in the source's listing; they become the samples' keys."""
    references: Sequence[Reference]
    labels: Sequence[tuple[int, ...]]
    multi_label: bool


def make_shard(task: ShardTask) -> Part:
    """Write one tar and its index, or find them written by an earlier attempt.

    A shard's bytes depend on the stage's identity alone, so two tasks that write the same one at the same
    time write the same bytes. It counts once its part document is there, which comes last.
    """
    key = f"{task.folder}/parts/{task.name}.json"
    found = read_part(task.storage, key, lambda part: _is_there(task, part))
    if found is not None:
        return found
    part = _write(task)
    task.storage.write(key, canonical_json({"format": FORMAT, **asdict(part)}))
    return part


def _is_there(task: ShardTask, part: Part) -> bool:
    """Whether a part is for this destination, and its tar is still there whole."""
    if part.shard is None:
        return True
    storage, key, address = _place(task)
    stat = storage.stat(key)
    return part.shard.tar.address == address and stat is not None and stat.bytes == part.shard.tar.bytes


def _place(task: ShardTask) -> tuple[Storage, str, str]:
    """Storage, key and address of the tar."""
    return place(task.config, task.storage, task.folder, task.name)


def _write(task: ShardTask) -> Part:
    storage, key, address = _place(task)
    places: list[tuple[int, int]] = []
    labels: list[tuple[int, ...]] = []
    bad: list[tuple[str, str]] = []
    traits: Counter[str] = Counter()
    with storage.writer(key) as file:
        tar = ShardWriter(file)
        for number, own, outcome in _images(task):
            if isinstance(outcome, Missing):
                bad.append((outcome.name, outcome.reason))
                continue
            traits.update(outcome.traits)
            places.append(tar.add(f"{number:09d}", outcome.extension, outcome.data, own, multi_label=task.multi_label))
            labels.append(own)
        tar.close()
    counts = dict(sorted(Counter(label for own in labels for label in own).items()))
    found = {
        "multi_label": task.multi_label,
        "class_counts": counts,
        "bad": bad,
        "traits": dict(sorted(traits.items())),
    }
    if not labels:
        storage.delete(key)
        return Part(shard=None, **found)
    assert file.digest is not None
    index = make_index(places, labels, multi_label=task.multi_label).to_bytes()
    task.storage.write(f"{task.folder}/index/{task.name}.safetensors", index)
    shard = Shard(
        tar=File(address=address, bytes=file.digest.bytes, sha256=file.digest.sha256),
        index=File(address=f"index/{task.name}.safetensors", bytes=len(index), sha256=sha256(index)),
        count=len(labels),
    )
    return Part(shard=shard, **found)


def _images(task: ShardTask) -> Iterator[tuple[int, tuple[int, ...], Any]]:
    """Number, labels, and the prepared image or why there is none."""
    images = open_source(task.config.source).read(task.references)
    for number, own, raw in zip(task.numbers, task.labels, images, strict=True):
        if isinstance(raw, Missing):
            yield number, own, raw
            continue
        try:
            yield number, own, prepare(raw, task.config)
        except BadImage as error:
            yield number, own, Missing(name=raw.name, reason=str(error))
