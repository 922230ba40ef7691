"""One few-shot evaluation of one checkpoint: what it is told, and what it leaves. Light: no torch or numpy here.

Beside the metric points, which alone say that a checkpoint is evaluated (`stages.training.keeping.evaluation_key`),
lies a note with the rows of the table, written before them. Whoever comes first writes it, and the points follow from
it alone: so two that evaluate the same checkpoint leave the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cluster.errors import check_format
from cluster.storage.base import Conflict, NotFound, Storage
from stages.context import Output, canonical_json
from stages.data.config import DataConfig
from stages.metrics import Point, now_ms, points_body
from stages.models.config import AnyModel
from stages.pretrain.fewshot_config import FewshotOnTheWay
from stages.training.keeping import evaluation_key, update_and_attempt

FORMAT = 1
AT_ONCE = 16
"""Notes that are read side by side."""


@dataclass(frozen=True, kw_only=True)
class CheckpointTask:
    """A checkpoint to evaluate. Picklable."""

    storage: Storage
    prefix: str
    """Key prefix of the checkpoint."""
    settings: FewshotOnTheWay
    dataset: Output
    """Its images are learned from and measured on."""
    class_sets: Mapping[str, tuple[int, ...]]
    """Labels by the name of the set."""
    input: DataConfig
    model: AnyModel
    resolution: int
    num_classes: int
    averaged: bool
    """Whether Polyak's average is evaluated, in place of the weights."""
    trained_on: str
    """Digest of the data set that the checkpoint was trained on."""


def evaluate_checkpoint(task: CheckpointTask) -> None:
    """See `stages.pretrain.fewshot_evaluation.evaluate_checkpoint`."""
    from stages.pretrain import fewshot_evaluation

    fewshot_evaluation.evaluate_checkpoint(task)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What came of an evaluation."""

    update: int
    trained_on: str
    time_ms: int
    """Milliseconds since 1970 at its end."""
    metrics: Mapping[str, float]
    rows: list[dict[str, Any]]
    failed: str = ""
    """Why there are none, where it could not be done."""

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        return {"format": FORMAT, **vars(self)}


def store(
    task: CheckpointTask, metrics: Mapping[str, float], rows: list[dict[str, Any]], *, failed: str = ""
) -> Evaluated:
    """Make this the outcome of the evaluation, unless there is one already; returns the one that counts."""
    key = _note_key(task.prefix)
    own = Evaluated(
        update=update_and_attempt(task.prefix)[0],
        trained_on=task.trained_on,
        time_ms=now_ms(),
        metrics=dict(metrics),
        rows=rows,
        failed=failed,
    )
    try:
        task.storage.write_if_absent(key, canonical_json(own.to_json()))
    except Conflict:
        own = _read(task.storage, key)
    _publish(task.storage, task.prefix, own)
    return own


def published_before(storage: Storage, prefix: str) -> bool:
    """Whether a checkpoint is evaluated; where whoever did it was killed before the points, they are stored now."""
    if storage.stat(evaluation_key(prefix)) is not None:
        return True
    try:
        found = _read(storage, _note_key(prefix))
    except NotFound:
        return False
    _publish(storage, prefix, found)
    return True


def evaluations(storage: Storage, folder: str, trained_on: str) -> list[Evaluated]:
    """All of a stage's, by rising updates, of networks that were trained on the data set with this digest.

    Where several attempts made the same update, the newest one's.
    """
    keys: dict[int, str] = {}
    for name in sorted(storage.list_folders(f"{folder}/attempts/"), key=int):
        for key in storage.list(f"{folder}/attempts/{name}/fewshot/"):
            if key.endswith(".json"):
                keys[int(key.rpartition("/")[2].removesuffix(".json"))] = key
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda update: _read(storage, keys[update]), sorted(keys)))
    return [own for own in found if own.trained_on == trained_on]


def _publish(storage: Storage, prefix: str, found: Evaluated) -> None:
    points = [
        Point(name=name, value=value, step=found.update, time_ms=found.time_ms) for name, value in found.metrics.items()
    ]
    storage.write(evaluation_key(prefix), points_body(points))


def _note_key(prefix: str) -> str:
    return evaluation_key(prefix).removesuffix("l")


def _read(storage: Storage, key: str) -> Evaluated:
    document = json.loads(storage.read(key))
    check_format(document.pop("format"), FORMAT, key)
    return Evaluated(**document)
