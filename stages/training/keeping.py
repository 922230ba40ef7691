"""Which checkpoints stay, how the others go, and where their evaluations lie. Light: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.storage.base import Storage
from cluster.storage.many import delete_all

CHECKPOINTS = "/checkpoints/"


def checkpoint_prefix(folder: str, update: int, attempt: int) -> str:
    """Key prefix of the checkpoint that an attempt makes of an update, below the stage's folder."""
    return f"{folder}{CHECKPOINTS}{update:08d}-a{attempt}"


def update_and_attempt(prefix: str) -> tuple[int, int]:
    """Of a checkpoint, by its key prefix."""
    update, _, attempt = prefix.rpartition("/")[2].partition("-a")
    return int(update), int(attempt)


def evaluation_key(prefix: str) -> str:
    """Key of the metric points of a checkpoint's few-shot evaluation: once they are there, it is evaluated."""
    update, attempt = update_and_attempt(prefix)
    return f"{prefix.partition(CHECKPOINTS)[0]}/attempts/{attempt}/fewshot/{update:08d}.jsonl"


@dataclass(frozen=True, kw_only=True)
class KeepRule:
    """The newest checkpoints stay, those at multiples of a number, and those that are to be evaluated and are not yet.

    A `Keep` of `stages.context`.
    """

    storage: Storage
    last: int
    every: int = 0
    """0 keeps none."""
    evaluated_every: int = 0
    """Checkpoints at multiples of this update are evaluated; 0 evaluates none."""

    def __call__(self, checkpoints: Mapping[int, str]) -> set[int]:
        newest = {*list(checkpoints)[-self.last :]}
        return newest | {update for update, prefix in checkpoints.items() if self._is_wanted(update, prefix)}

    def _is_wanted(self, update: int, prefix: str) -> bool:
        if self.every and update % self.every == 0:
            return True
        awaited = self.evaluated_every and update % self.evaluated_every == 0
        return bool(awaited) and self.storage.stat(evaluation_key(prefix)) is None


def delete_checkpoint(storage: Storage, prefix: str) -> None:
    """Remove a checkpoint that HEAD does not name: its manifest first, so that what is left is no checkpoint."""
    storage.delete(f"{prefix}/MANIFEST.json")
    delete_all(storage, list(storage.list(f"{prefix}/")))
