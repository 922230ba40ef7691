"""Existing WebDataset tars, indexed where they lie: nothing is rewritten."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from cluster.errors import UserError
from cluster.storage import Storage
from stages.context import canonical_json, sha256
from stages.data.cache import locate
from stages.data.index import make_index
from stages.data.shards import IMAGE_EXTENSIONS
from stages.data.table import File, Shard
from stages.ingest.config import IngestConfig, WebDatasetSource
from stages.ingest.headers import BadImage
from stages.ingest.part import FORMAT, Part, read_part
from stages.ingest.prepare import check
from stages.ingest.sources.base import RawImage
from stages.ingest.sources.labels import MOST_CLASSES
from stages.ingest.sources.tar_members import check_end, refusal
from stages.temporary import temporary_folder


@dataclass(frozen=True, kw_only=True)
class IndexTask:
    """All that a worker needs to index one tar. Picklable."""

    config: IngestConfig
    storage: Storage
    folder: str
    """Key prefix of the stage's folder."""
    name: str
    """For example `train-000007`."""
    address: str


@dataclass
class _Sample:
    images: list[tuple[str, int, int]] = field(default_factory=list)
    """Member's name, offset and length."""
    labels: list[bytes] = field(default_factory=list)


def index_tar(task: IndexTask) -> Part:
    """Index one tar, or find its index written by an earlier attempt."""
    key = f"{task.folder}/parts/{task.name}.json"
    found = read_part(task.storage, key, lambda part: True)
    if found is not None:
        return found
    with _local_copy(task.storage, task.address) as path:
        part = _index(task, path)
    task.storage.write(key, canonical_json({"format": FORMAT, **asdict(part)}))
    return part


@contextmanager
def _local_copy(storage: Storage, address: str) -> Iterator[Path]:
    """The tar as a file of this machine: itself where it is one, else fetched for a while."""
    if address.startswith("file://"):
        yield Path(address.removeprefix("file://"))
        return
    place, key = locate(storage, "", address)
    with temporary_folder() as folder:
        place.download(key, folder / "shard.tar")
        yield folder / "shard.tar"


def _index(task: IndexTask, path: Path) -> Part:
    config, source = task.config, task.config.source
    assert isinstance(source, WebDatasetSource)
    bad: list[tuple[str, str]] = []
    traits: Counter[str] = Counter()
    places: list[tuple[int, int]] = []
    labels: list[tuple[int, ...]] = []
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        samples = _samples(file, task.address, source, bad)
        for key, sample in samples.items():
            try:
                own = _labels(sample, source, config.class_names)
                name, offset, length = _image(sample)
                file.seek(offset)
                traits.update(check(RawImage(name=name, data=file.read(length)), config))
            except BadImage as error:
                bad.append((f"{task.address}/{key}", str(error)))
                continue
            places.append((offset, length))
            labels.append(own)
    counts = dict(sorted(Counter(label for own in labels for label in own).items()))
    found = {"multi_label": source.multi_label, "class_counts": counts, "bad": bad, "traits": dict(traits)}
    if not labels:
        return Part(shard=None, **found)
    index = make_index(places, labels, multi_label=source.multi_label).to_bytes()
    address = f"index/{task.name}.safetensors"
    task.storage.write(f"{task.folder}/{address}", index)
    shard = Shard(
        tar=File(address=task.address, bytes=path.stat().st_size, sha256=digest),
        index=File(address=address, bytes=len(index), sha256=sha256(index)),
        count=len(labels),
    )
    return Part(shard=shard, **found)


def _samples(file: BinaryIO, address: str, source: WebDatasetSource, bad: list[tuple[str, str]]) -> dict[str, _Sample]:
    """The tar's samples by key, in the order of the tar. Refused and doubled members go to `bad`."""
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                reason = refusal(member)
                if reason is not None:
                    bad.append((f"{address}/{member.name}", reason))
                elif member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    sample = samples.setdefault(f"{folder}/{stem}".lstrip("/"), _Sample())
                    if extension.lower() in IMAGE_EXTENSIONS:
                        sample.images.append((member.name, member.offset_data, member.size))
                    elif extension == source.label_member and (content := tar.extractfile(member)) is not None:
                        sample.labels.append(content.read())
            check_end(file, tar.offset)
    except tarfile.TarError as error:
        raise UserError(f"{address} is no whole tar: {error}; fetch or write it again") from error
    return samples


def _image(sample: _Sample) -> tuple[str, int, int]:
    if not sample.images:
        raise BadImage("no image")
    names = [name for name, *_ in sample.images]
    if len(set(names)) < len(names):
        raise BadImage("duplicate key")
    if len(names) > 1:
        raise BadImage("several images")
    return sample.images[0]


def _labels(sample: _Sample, source: WebDatasetSource, names: tuple[str, ...] | None) -> tuple[int, ...]:
    """The labels of a sample. Raises BadImage for one that is missing, or is none."""
    if not sample.labels:
        raise BadImage("no label")
    if len(sample.labels) > 1:
        raise BadImage(f"several labels: {len(sample.labels)} members named .{source.label_member}")
    try:
        text = sample.labels[0].decode().strip()
        value = json.loads(text)[source.label_field] if source.label_field is not None else text
    except (ValueError, KeyError, TypeError) as error:
        raise BadImage("no label") from error
    values = value if isinstance(value, list) else [value]
    if len(values) != 1 and not source.multi_label:
        raise BadImage(f"mislabelled: {len(values)} labels")
    return tuple(dict.fromkeys(_label(item, names) for item in values))


def _label(value: object, names: tuple[str, ...] | None) -> int:
    if names is not None and str(value) in names:
        return names.index(str(value))
    try:
        number = int(str(value))
    except ValueError:
        expected = "is none of class_names" if names is not None else "is no number: set class_names to all names"
        raise BadImage(f"mislabelled: {value!r} {expected}") from None
    most = MOST_CLASSES if names is None else len(names)
    if not 0 <= number < most:
        raise BadImage(f"mislabelled: {number}: expected numbers from 0 to below {most:,}")
    return number
