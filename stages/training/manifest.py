"""A checkpoint's manifest: what it promises, and whether storage has it. Light: no torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import check_format
from cluster.storage.base import NotFound, Storage

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands after an update, beside its tensors."""

    data: str
    """Digest of the data set's manifest."""
    update: int = 0
    cursor: int = 0
    """The next global sample number."""
    counters: dict[str, Any] = field(default_factory=dict)
    """The engine's."""
    recent_losses: list[float] = field(default_factory=list)
    """The guard's."""


class Damaged(Exception):
    """A checkpoint is not what its manifest promises. The message names the file, what it is, and what it should be."""


def read_manifest(storage: Storage, prefix: str) -> dict[str, Any]:
    """The manifest of a committed checkpoint. Raises Damaged where it is gone; UserError for a newer format."""
    try:
        manifest = json.loads(storage.read(f"{prefix}/MANIFEST.json"))
    except NotFound:
        raise Damaged(f"{prefix}/MANIFEST.json is missing") from None
    except ValueError as error:
        raise Damaged(f"{prefix}/MANIFEST.json is no JSON: {error}") from None
    check_format(manifest["format"], FORMAT, prefix)
    if manifest["format"] == 1:
        # Before there was fp16, every update was a step of the optimizer.
        counters = {"optimizer_steps": manifest["update"]}
        manifest = {**manifest, "counters": counters, "recent_losses": [], "data": ""}
    return manifest


def check_stored(storage: Storage, key: str, part: dict[str, Any]) -> None:
    """Raises Damaged where the object is not there, or not of the size that the manifest has."""
    stat = storage.stat(key)
    if stat is None:
        raise Damaged(f"{key} is missing; its manifest promises {part['bytes']} bytes")
    if stat.bytes != part["bytes"]:
        raise Damaged(f"{key} has {stat.bytes} bytes; its manifest says {part['bytes']}")
