"""A checkpoint's manifest: what it promises, and whether storage has it. Light: no torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import check_format
from cluster.storage.base import NotFound, Storage
from stages.context import canonical_json, sha256

FORMAT = 3
"""From the third on a manifest has its own digest."""


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
    evaluation_due: bool = False
    """Training was stopped at an update that is evaluated, before it was."""


class Damaged(Exception):
    """A checkpoint is not what its manifest promises. The message names the file, what it is, and what it should be."""


def read_manifest(storage: Storage, prefix: str) -> dict[str, Any]:
    """The manifest of a committed checkpoint.

    Raises Damaged where it is gone or is not what was written; UserError for a newer format.
    """
    try:
        manifest = json.loads(storage.read(f"{prefix}/MANIFEST.json"))
    except NotFound:
        raise Damaged(f"{prefix}/MANIFEST.json is missing") from None
    except ValueError as error:
        raise Damaged(f"{prefix}/MANIFEST.json is no JSON: {error}") from None
    _check_digest(prefix, manifest)
    check_format(manifest["format"], FORMAT, prefix)
    if manifest["format"] == 1:
        # Before there was fp16, every update was a step of the optimizer.
        counters = {"optimizer_steps": manifest["update"]}
        manifest = {**manifest, "counters": counters, "recent_losses": [], "data": ""}
    # It is younger than the third format.
    return {"evaluation_due": False, **manifest}


def with_digest(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, and the sha256 of its canonical form."""
    return {**manifest, "digest": sha256(canonical_json(manifest))}


def _check_digest(prefix: str, manifest: Any) -> None:
    """Before anything else in it is believed, its format too."""
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise Damaged(f"{prefix}/MANIFEST.json is no manifest")
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    if "digest" in manifest and with_digest(rest)["digest"] != manifest["digest"]:
        raise Damaged(f"{prefix}/MANIFEST.json is not what was written: its digest differs")
    if "digest" not in manifest and manifest["format"] == FORMAT:
        raise Damaged(f"{prefix}/MANIFEST.json has lost its digest")


def check_stored(storage: Storage, key: str, part: dict[str, Any]) -> None:
    """Raises Damaged where the object is not there, or not of the size that the manifest has."""
    stat = storage.stat(key)
    if stat is None:
        raise Damaged(f"{key} is missing; its manifest promises {part['bytes']} bytes")
    if stat.bytes != part["bytes"]:
        raise Damaged(f"{key} has {stat.bytes} bytes; its manifest says {part['bytes']}")
