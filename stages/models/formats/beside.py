"""What is said beside a file's arrays: in settings of another program, in our own description, and by the user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from stages.models.formats.network import own_description

MOST_SETTINGS = 64 * 2**20
"""Bytes of a file of settings."""
_DESCRIBED = ("format", "model", "resolution", "num_classes", "classes")


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the user says, in place of what is said in files or is usual for their format."""

    num_heads: int | None = None
    activation: str | None = None
    layer_norm_epsilon: float | None = None
    position: str | None = None
    resolution: int | None = None
    class_names: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    """Names of arrays to leave out, with * for any letters."""

    def fields(self) -> dict[str, Any]:
        """Those of `ModelConfig`."""
        names = ("num_heads", "activation", "layer_norm_epsilon", "position")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What is said beside the arrays, in settings of another program's or of ours."""

    usual: dict[str, Any]
    """Fields of the network's config that are usual for the format."""
    usual_stem: dict[str, Any] = field(default_factory=dict)
    """Fields of `StemConfig`, where there is a stem."""
    said: dict[str, Any] = field(default_factory=dict)
    """Fields of the network's config."""
    resolution: Any = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def with_own(self, where: str, description: Any) -> Beside:
        """The same with one of our own descriptions, which goes before all else; None is none."""
        found = own_description(where, description)
        if not found:
            return self
        classes = found.get("classes")
        return Beside(
            usual={},
            said=dict(found["model"]),
            resolution=found.get("resolution"),
            num_classes=found.get("num_classes"),
            classes=tuple(map(str, classes)) if isinstance(classes, list) else None,
            about={name: value for name, value in found.items() if name not in _DESCRIBED},
        )


def read_settings(path: Path) -> dict[str, Any] | None:
    """A file of JSON, None where there is none. Raises UserError where it is no mapping."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MOST_SETTINGS:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, expected up to {MOST_SETTINGS:,}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path.name}: expected a mapping, got {type(found).__name__}")
    return found


def write_settings(path: Path, document: Mapping[str, Any]) -> None:
    """A mapping as JSON."""
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
