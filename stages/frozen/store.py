"""Stored features: what a set of them says of itself, and one kind of them in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from cluster.errors import UserError, check_format
from cluster.storage import Storage
from stages.context import Output, sha256
from stages.data.manifest import base_folder
from stages.data.table import File
from stages.frozen.task import LABELS, Part

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Images:
    """Rows of one kind of features [N, D], float32, and their labels [N]."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """The features of one data set by one model. `meta` is the stored form, of an output of the kind `features`."""

    storage: Storage
    folder: str
    """Key prefix of the folder that the files' addresses are meant of."""
    meta: dict[str, Any]

    @property
    def name(self) -> str:
        """The data set's."""
        return self.meta["data"]["name"]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return tuple(self.meta["data"]["classes"])

    @property
    def held_out(self) -> tuple[int, ...]:
        """Labels that the data set keeps from training."""
        return tuple(self.meta["data"]["held_out"])

    @property
    def kinds(self) -> tuple[str, ...]:
        """`features`, and the baselines."""
        return tuple(self.meta["kinds"])

    @property
    def never_trained_on(self) -> bool:
        """Whether the model was trained on this data set without its held-out classes."""
        own = self.meta["trained_on"] == self.meta["dataset"]
        return own and bool(self.held_out) and not set(self.meta["class_ids"]) & set(self.held_out)

    def load(self, kind: str) -> tuple[Images, Images]:
        """The pool and the test images, in the order in which they lie in the splits. Raises UserError.

        Where features are stored in half precision, these are exactly what is stored.
        """
        parts = [Part.from_json(part) for part in self.meta["parts"]]
        count = sum(part.count for part in parts)
        labels, samples = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        features, end = np.empty((count, 0), dtype=np.float32), 0
        for part in parts:
            own, found = self._read(part.files[kind]), self._read(part.files[LABELS])
            if not features.shape[1]:
                features = np.empty((count, own["features"].shape[1]), dtype=np.float32)
            rows = slice(end, end := end + part.count)
            features[rows], labels[rows], samples[rows] = own["features"], found["labels"], found["samples"]
        hint = f"values that {self.meta['stored_as']} cannot hold; look at its training, or set stored_as=float32"
        check_finite(features, f"{kind} of {self.name!r}", hint)
        pool = int(np.searchsorted(samples, self.meta["boundary"]))
        return (
            Images(features=features[:pool], labels=labels[:pool]),
            Images(features=features[pool:], labels=labels[pool:]),
        )

    def is_there(self) -> bool:
        """Whether every file is in storage, and has its size."""
        return all(Part.from_json(part).is_there(self.storage, self.folder) for part in self.meta["parts"])

    def _read(self, file: File) -> dict[str, NDArray[Any]]:
        body = self.storage.read(f"{self.folder}/{file.address}")
        if sha256(body) != file.sha256:
            raise UserError(f"{self.folder}/{file.address} is not what its manifest says: damaged; run its stage again")
        return safetensors.numpy.load(body)


def check_finite(features: NDArray[np.floating[Any]], whose: str, hint: str) -> None:
    """Raises UserError where features [N, D] are NaN or infinite, with the `hint` of what to do about it."""
    # Extremes are NaN or infinite where any number is, and take no memory.
    if features.size and not np.isfinite([features.min(), features.max()]).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise UserError(f"{whose} are not finite for {bad} of {len(features)} images: the network gives NaN or {hint}")


def read_features(storage: Storage, output: Output) -> FeatureSet:
    """The features of an output. Raises UserError where it has none, or is of a newer format."""
    if output.kind != "features":
        raise UserError(f"{output.prefix} is a {output.kind}, not features: refer to a features stage")
    check_format(output.meta["format"], FORMAT, output.prefix)
    return FeatureSet(storage=storage, folder=base_folder(output), meta=output.meta)
