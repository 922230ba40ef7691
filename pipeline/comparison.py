"""What `verify` compares: losses, cursor and weights of a window that was run again, with what is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from pipeline.head import HeadDocument
from pipeline.identity import differences, fields_with_role, rounding_fields
from pipeline.kinds import builds_for
from pipeline.record import Record, read_note
from stages.metrics import MetricReader
from stages.models.weights_out import StoredTensor, checkpoint_tensors
from stages.training.config import TrainingConfig
from stages.training.manifest import read_manifest

TOLERANCE = 1e-5
"""Largest difference of a loss, in parts of it where it is above 1, where placement or builds are not the same."""
LOSS = "train/loss"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was run again, and how it came out."""

    stage: str
    start: int
    end: int
    """Updates `start` + 1 to `end`."""
    differs: tuple[str, ...]
    """What keeps the bits from being the same: placement and builds. Empty: they have to be."""
    losses: int
    """How many of them there are to compare: those of the updates that were logged."""
    loss_difference: float
    weights_equal: bool
    weight_difference: float
    problems: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether everything came out the same, bit for bit."""
        return not self.problems and self.weights_equal and self.loss_difference == 0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training stage, as it is stored."""

    folder: str
    head: HeadDocument
    record: Record
    config: TrainingConfig
    seed: int


def compared(
    storage: Storage, found: Trained, folder: str, stage: str, begin: int, end: int, differs: Sequence[str]
) -> Verified:
    """How the updates `begin` + 1 to `end`, run again into `folder`, came out. `differs` is as of `differing`."""
    old, new = _losses(storage, found, begin, end), dict(_points(storage, f"{folder}/attempts/1", begin, end))
    common = sorted(old.keys() & new.keys())
    apart = {update: abs(old[update] - new[update]) / max(1.0, abs(old[update])) for update in common}
    problems = [] if common else ["no loss of these updates was logged: there is nothing to compare"]
    worst = max(common, key=lambda update: apart[update], default=0)
    if apart.get(worst, 0.0) > (TOLERANCE if differs else 0.0):
        problems.append(f"update {worst} has loss {new[worst]!r}; it had {old[worst]!r}")
    theirs = next((item.prefix for item in found.head.checkpoints if item.update == end), None)
    equal, distance, wrong = _states(storage, theirs, f"{folder}/checkpoints/{end:08d}-a1", end, exact=not differs)
    return Verified(
        stage=stage,
        start=begin,
        end=end,
        differs=tuple(differs),
        losses=len(common),
        loss_difference=apart.get(worst, 0.0),
        weights_equal=equal,
        weight_difference=distance,
        problems=(*problems, *wrong),
    )


def _states(storage: Storage, theirs: str | None, mine: str, end: int, *, exact: bool) -> tuple[bool, float, list[str]]:
    """Whether the weights of two checkpoints are equal, how far they are apart, and what is wrong with the new one."""
    if theirs is None:
        return False, 0.0, [f"the checkpoint at update {end} is not kept: its weights cannot be compared"]
    old, new = read_manifest(storage, theirs), read_manifest(storage, mine)
    problems = [
        f"{name} after update {end} is {new[name]}; it was {old[name]}"
        for name in ("update", "cursor", "counters")
        if old[name] != new[name]
    ]
    equal, distance = _weights(storage, theirs, mine)
    if not equal and exact:
        problems.append(f"the weights after update {end} are others: they differ by up to {distance:.3g}")
    return equal, distance, problems


def _losses(storage: Storage, found: Trained, begin: int, end: int) -> dict[int, float]:
    """The stored losses by update, each one of the attempt whose update is in the result."""
    losses: dict[int, float] = {}
    for segment in found.head.history:
        first, last = max(begin, segment.start), min(end, segment.end)
        if first < last:
            losses |= dict(_points(storage, f"{found.folder}/attempts/{segment.attempt}", first, last))
    return losses


def _points(storage: Storage, prefix: str, begin: int, end: int) -> Iterator[tuple[int, float]]:
    for point in MetricReader(storage, prefix).new_points():
        if point.name == LOSS and begin < point.step <= end:
            yield point.step, point.value


def differing(storage: Storage, found: Trained, begin: int, end: int, workers: int) -> list[str]:
    """What keeps the bits from being the same on so many workers here, given the attempts that made the window."""
    names = rounding_fields(type(found.config))
    own = {name: fields_with_role(found.config, "placement").get(name) for name in names}
    here = {**own, "workers": max(1, workers), **builds_for(found.config)}
    lines: dict[str, None] = {}
    for segment in found.head.history:
        if segment.end <= begin or segment.start >= end:
            continue
        note = read_note(storage, f"{found.folder}/attempts/{segment.attempt}")
        if note is None:
            return [f"attempt {segment.attempt} left no note of where it ran"]
        there = {name: note.placement.get(name) for name in names}
        there["workers"] = _ranks(storage, found.head, segment.attempt, there["workers"])
        lines |= dict.fromkeys(differences({**there, **note.builds}, here))
    return list(lines)


def _ranks(storage: Storage, head: HeadDocument, attempt: int, asked: Any) -> Any:
    """How many ranks an attempt had: of a range its checkpoints tell, as far as any is kept."""
    if isinstance(asked, int):
        # No gang and a gang of one compute the same.
        return max(1, asked)
    for item in head.checkpoints:
        manifest = read_manifest(storage, item.prefix)
        if manifest.get("attempt") == attempt:
            return manifest["world_size"]
    return asked


def _weights(storage: Storage, theirs: str, mine: str) -> tuple[bool, float]:
    """Whether the weights of two checkpoints are equal bit for bit, and their largest difference."""
    old = checkpoint_tensors(storage, theirs, read_manifest(storage, theirs), "weight")
    new = checkpoint_tensors(storage, mine, read_manifest(storage, mine), "weight")
    if old.keys() != new.keys():
        return False, float("inf")
    equal, distance = True, 0.0
    for name in old:
        before, after = _bytes(storage, old[name]), _bytes(storage, new[name])
        if hashlib.sha256(before).digest() != hashlib.sha256(after).digest():
            equal, distance = False, max(distance, _distance(before, after))
    return equal, distance


def _bytes(storage: Storage, tensor: StoredTensor) -> bytes:
    return b"".join(storage.read_range(piece.key, piece.start, piece.length) for piece in tensor.pieces)


def _distance(before: bytes, after: bytes) -> float:
    import numpy as np

    if len(before) != len(after):
        return float("inf")
    difference = np.frombuffer(before, dtype="<f4") - np.frombuffer(after, dtype="<f4")
    return float(np.abs(difference).max(initial=0.0))


def trained_dropout(config: TrainingConfig) -> float:
    """The dropout with which a stage trains: its network's, or its own."""
    network = getattr(config, "model", None)
    return float(getattr(network, "dropout", 0.0) or getattr(config, "dropout", 0.0))
