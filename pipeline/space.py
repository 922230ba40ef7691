"""`du`: what a root takes up, by what it is, by stage, and how much of it `gc` would free.

One listing gives bytes and objects. Who uses a stage is read from all workflows' events, as `gc` does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from cluster.storage import Storage
from pipeline.collection import collect_root
from pipeline.garbage import KEPT
from pipeline.usage import AT_ONCE, told_by

What = Literal["data sets", "checkpoints", "outputs", "logs and metrics", "workflows", "scratch", "other"]
DATA = ("shards", "index", "parts")
"""Folders of a stage that hold a data set (docs/architecture.md, Storage layout)."""
OLD_SECONDS = 7 * 86400.0
"""What `gc` leaves alone for its youth, if it is not told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Bytes, and the objects that they are in."""

    bytes: int = 0
    objects: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(bytes=self.bytes + other.bytes, objects=self.objects + other.objects)


@dataclass(frozen=True, kw_only=True)
class StageSpace:
    """What a stage's folder takes up, and the ids of the workflows that have used it."""

    folder: str
    amount: Amount
    workflows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a root takes up. `by_kind` sums up to `total`; `garbage` is a part of it."""

    root: str
    total: Amount
    by_kind: dict[What, Amount]
    stages: list[StageSpace]
    """The largest first."""
    garbage: Amount
    """What `gc` would remove now."""


@dataclass(kw_only=True)
class Tally:
    """Sums over keys and sizes, as a listing brings them."""

    by_kind: dict[What, Amount] = field(default_factory=dict)
    by_stage: dict[str, Amount] = field(default_factory=dict)

    def add(self, key: str, size: int) -> None:
        """Count an object by its key below the root."""
        kind, one = kind_of(key), Amount(bytes=size, objects=1)
        self.by_kind[kind] = self.by_kind.get(kind, Amount()) + one
        if (stage := _stage_of(key)) is not None:
            self.by_stage[stage] = self.by_stage.get(stage, Amount()) + one

    @property
    def total(self) -> Amount:
        return sum(self.by_kind.values(), Amount())


def space(storage: Storage, *, largest: int = 10) -> Space:
    """What a root takes up, with the `largest` stages. Changes nothing. Raises UserError where `gc` does."""
    tally = Tally()
    for key, size in storage.sizes(""):
        tally.add(key, size)
    folders = sorted(tally.by_stage, key=lambda folder: -tally.by_stage[folder].bytes)[:largest]
    users = _users(storage, folders)
    found = collect_root(storage, older_than=OLD_SECONDS, dry_run=True)
    return Space(
        root=storage.url,
        total=tally.total,
        by_kind=dict(sorted(tally.by_kind.items(), key=lambda item: -item[1].bytes)),
        stages=[StageSpace(folder=name, amount=tally.by_stage[name], workflows=users[name]) for name in folders],
        garbage=sum((Amount(bytes=item.bytes, objects=item.objects) for item in found), Amount()),
    )


def kind_of(key: str) -> What:
    """What an object is, by its key below the root."""
    parts = key.split("/")
    match parts:
        case ["stages", _, _, "checkpoints", *_]:
            return "checkpoints"
        case ["stages", _, _, folder, *_] if folder in DATA:
            return "data sets"
        case ["stages", _, _, "attempts", _, *rest] if "/".join(rest).startswith(KEPT):
            return "logs and metrics"
        case ["stages", _, _, *_]:
            return "outputs"
        case ["workflows", _, "logs", *_]:
            return "logs and metrics"
        case ["workflows" | "index", *_]:
            return "workflows"
        case ["scratch", *_]:
            return "scratch"
        case _:
            return "other"


def _stage_of(key: str) -> str | None:
    parts = key.split("/")
    return "/".join(parts[:3]) if parts[0] == "stages" and len(parts) > 3 else None


def _users(storage: Storage, folders: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The ids of the workflows whose events name each folder."""
    names = storage.list_folders("workflows/")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        used = dict(zip(names, pool.map(lambda name: told_by(storage, name).folders, names), strict=True))
    return {folder: tuple(name for name in names if folder in used[name]) for folder in folders}
