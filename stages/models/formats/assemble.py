"""A network from a file's arrays and from what is said beside them: the same for all formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cluster.errors import UserError
from stages.models.config import ModelConfig
from stages.models.formats.arrays import View, check, choose
from stages.models.formats.detect import Telltales, detect, resolution_of, settle
from stages.models.formats.known import Format
from stages.models.formats.network import Network, blank, own_description
from stages.models.formats.rules import Rule, inward, shapes

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
    """Fields of `ModelConfig` that are usual for the format."""
    said: dict[str, Any] = field(default_factory=dict)
    """Fields of `ModelConfig`."""
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


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found in a file."""

    network: Network
    format: Format
    arrays: int
    """That were taken over, as the file has them."""
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    """What there is to know of it: what was assumed, and a last layer that is zero or not there."""


def assemble(
    format: Format,
    view: View,
    telltales: Telltales,
    rules_of: Callable[[ModelConfig, bool], Iterable[Rule]],
    beside: Beside,
    overrides: Overrides,
    optimizer: tuple[str, ...] = (),
) -> Found:
    """The network whose arrays these are; `rules_of` a network, with its last layer or without, says how they stand.

    Raises UserError naming the file, and the array with its shape and the expected one, where they are none.
    """
    names = {view.own_name(name): name for name in view.shapes}
    dropped = choose(view.where, names, overrides.drop)
    view = view.without(names[name] for name in dropped)
    detected = detect(view, telltales)
    config = settle(view, detected, beside.said, beside.usual, overrides.fields())
    if detected.patches is not None and config.pool == "token" and not detected.class_row:
        view = view.with_row_before(telltales.positions)
    stated = beside.resolution if overrides.resolution is None else overrides.resolution
    resolution = resolution_of(view, detected, config, stated)
    classes, count = _classes(view.where, detected.classes, beside, overrides)
    ours = blank(config, resolution, count)
    rules = list(rules_of(config, detected.classes is not None))
    check(view, shapes(rules, ours, config.num_heads))
    state = inward(rules, view.read)
    notes = [*_assumed(beside, overrides)]
    if detected.classes is None:
        state |= {name: torch.zeros(ours[name].shape) for name in ("head.weight", "head.bias")}
        notes.append("it has no last layer: one of zeros stands there, to be fine-tuned")
    elif not state["head.weight"].any():
        notes.append(
            "its last layer is all zeros, as in the files of ImageNet-21k: it classifies nothing until fine-tuned"
        )
    return Found(
        network=Network(
            config=config, resolution=resolution, num_classes=count, state=state, classes=classes, about=beside.about
        ),
        format=format,
        arrays=len(view.shapes),
        left_out=(*dropped, *optimizer),
        notes=tuple(notes),
    )  # fmt: skip


def _classes(where: str, found: int | None, beside: Beside, overrides: Overrides) -> tuple[tuple[str, ...] | None, int]:
    """Names and number of the classes. Raises UserError where they are not as many as the last layer has."""
    names = beside.classes if overrides.class_names is None else overrides.class_names
    count = found if found is not None else (len(names) if names else 1)
    if found is not None and beside.num_classes not in (None, found):
        raise UserError(f"{where}: is said to have {beside.num_classes} classes, and its last layer has {found}")
    if names is not None and len(names) != count:
        raise UserError(f"{where}: {len(names)} names of classes are given, and its last layer has {count}")
    return names, count


def _assumed(beside: Beside, overrides: Overrides) -> Iterable[str]:
    given = {**beside.said, **overrides.fields()}
    assumed = [f"{name}={value}" for name, value in beside.usual.items() if name not in given]
    if assumed:
        yield f"nothing says so, and it is usual for such files: {', '.join(assumed)}"


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
