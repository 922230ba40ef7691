"""One task of the extraction: the features of a range of images, stored once whoever asks.

Two may do the same task, since one that was given up may go on, and another processor may round otherwise. So a file's
name tells its content, and of the notes that say which files are meant the first one counts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from cluster.errors import check_format
from cluster.storage import Conflict, NotFound, Storage
from stages.context import canonical_json, sha256
from stages.data.pixels import normalise
from stages.data.table import File
from stages.frozen.networks import extractors
from stages.frozen.span import Span
from stages.models.store import load_model

FORMAT = 1
LABELS = "labels"
"""Beside the kinds of features: labels [n], and the images' places in the splits, `samples` [n]."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one task stored: a file for each kind of features, and one with the labels."""

    files: dict[str, File]
    """Addresses are relative to the stage's folder."""
    count: int
    """Images; fewer than the range has where some could not be decoded."""

    def to_json(self) -> dict[str, Any]:
        """The stored form, which `from_json` reads back."""
        return {"files": {name: asdict(file) for name, file in self.files.items()}, "count": self.count}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Part:
        return cls(files={k: File(**file) for k, file in document["files"].items()}, count=document["count"])

    def is_there(self, storage: Storage, folder: str) -> bool:
        """Whether every file is in storage, and has its size. `folder` is the stage's."""
        found = [(file, storage.stat(f"{folder}/{file.address}")) for file in self.files.values()]
        return all(stat is not None and stat.bytes == file.bytes for file, stat in found)


@dataclass(frozen=True, kw_only=True)
class ExtractTask(Span):
    """A range of a data set's images, whose features are wanted. Picklable."""

    folder: str
    """Key prefix of the stage's folder."""
    kinds: tuple[str, ...]
    resolution: int
    stored_as: str

    @property
    def prefix(self) -> str:
        """Where its files lie: named by what determines them, so that no other model's are taken for this one's."""
        evaluation = self.input.evaluation.model_dump(mode="json")
        inputs = [self.dataset.digest, self.model.digest, list(self.splits), list(self.kinds)]
        content = sha256(canonical_json([*inputs, self.resolution, self.stored_as, evaluation]))
        return f"features/{content[:20]}/{self.start:010d}-{self.stop:010d}"


def extract_part(task: ExtractTask) -> Part:
    """Compute and store the features of the range, or find those that somebody else has stored."""
    note = f"{task.folder}/{task.prefix}.json"
    try:
        found, tag = _noted(task.storage, note)
    except NotFound:
        found, tag = None, ""
    if found is not None and found.is_there(task.storage, task.folder):
        return found
    arrays = _compute(task)
    files = {name: _write(task, name, own) for name, own in arrays.items()}
    part = Part(files=files, count=len(arrays[LABELS]["labels"]))
    body = canonical_json({"format": FORMAT, **part.to_json()})
    try:
        # Last of all: it alone says that the others are there. One whose files were lost is replaced.
        if found is None:
            task.storage.write_if_absent(note, body)
        else:
            task.storage.compare_and_swap(note, body, tag)
    except Conflict:
        return _noted(task.storage, note)[0]
    return part


def _noted(storage: Storage, note: str) -> tuple[Part, str]:
    """What a note says, and its tag. Raises NotFound."""
    body, tag = storage.read_tagged(note)
    document = json.loads(body)
    check_format(document["format"], FORMAT, note)
    return Part.from_json(document), tag


def _compute(task: ExtractTask) -> dict[str, dict[str, NDArray[Any]]]:
    """Arrays by the file that they go into."""
    model = load_model(task.storage, task.model)
    by_kind = extractors(model, task.kinds, int(task.model.meta["seed"]), task.device)
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in (*task.kinds, "labels", "samples")}
    for batch in task.batches(task.resolution):
        images = normalise(batch.images[batch.mask].to(task.device))
        found["labels"].append(batch.labels[batch.mask].numpy())
        found["samples"].append(batch.samples[batch.mask.numpy()])
        for kind, extractor in by_kind.items():
            with torch.inference_mode():
                found[kind].append(_narrowed(extractor(images).float().cpu().numpy(), task.stored_as))
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    labels = {"labels": whole["labels"], "samples": whole["samples"]}
    return {LABELS: labels, **{kind: {"features": whole[kind]} for kind in task.kinds}}


def _narrowed(features: NDArray[np.float32], stored_as: str) -> NDArray[Any]:
    # What half precision cannot hold becomes infinite, and is told when it is read.
    with np.errstate(over="ignore"):
        return features.astype(stored_as)


def _write(task: ExtractTask, name: str, arrays: dict[str, NDArray[Any]]) -> File:
    body = safetensors.numpy.save(arrays)
    content = sha256(body)
    address = f"{task.prefix}-{content[:20]}-{name}.safetensors"
    task.storage.write(f"{task.folder}/{address}", body)
    return File(address=address, bytes=len(body), sha256=content)
