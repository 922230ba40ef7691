"""What network an array file is of, from the shapes of some of its arrays and from what is said beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.errors import UserError
from stages.models.config import VARIANTS, ModelConfig
from stages.models.formats.arrays import View
from stages.models.formats.network import MOST_PIXELS, variant_of
from stages.models.formats.rules import Shape

MOST_BLOCKS = 1000
"""A file of small arrays can claim any number."""
STATED = ("width", "depth", "mlp_dim", "num_heads", "patch_size", "in_channels", "pool")
"""Fields that arrays show, and that settings may say too."""


@dataclass(frozen=True, kw_only=True)
class Telltales:
    """Names of the arrays that tell what a network is; biases, since their layout is the same everywhere."""

    patch: str
    patch_axes: str
    """Of that kernel: P side of a patch, C channels, D width."""
    block: str
    """Pattern of the names of a block's arrays, whose first group is the block's number."""
    hidden: str
    """Bias of the first block's first dense layer, [M]."""
    positions: str
    class_token: str
    latent: str
    head: str
    """Bias of the last layer, [classes]."""
    hidden_head: str
    """Bias of the head's hidden layer."""
    query: str | None = None
    """Bias of the first block's queries, [H, K], where heads stand apart."""


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What the shapes say."""

    fields: dict[str, Any]
    """Of `ModelConfig`."""
    patches: int | None
    """Those that have position embeddings."""
    class_row: bool
    """Whether the class token has a position embedding of its own."""
    classes: int | None
    """None without a last layer."""


def detect(view: View, telltales: Telltales) -> Detected:
    """What a file's shapes say. Raises UserError where it has no patches or no blocks, or some shape is impossible."""
    patch = _shape(view, telltales.patch, len(telltales.patch_axes))
    found = dict(zip(telltales.patch_axes, patch, strict=True))
    if patch[telltales.patch_axes.index("P")] != patch[telltales.patch_axes.rindex("P")]:
        raise UserError(f"{view.where}: {telltales.patch} has shape {patch}, expected square patches")
    numbers = {int(match[1]) for name in view.shapes if (match := re.match(telltales.block, name))}
    if not numbers or len(numbers) > MOST_BLOCKS:
        raise UserError(f"{view.where}: has {len(numbers)} blocks, expected 1 to {MOST_BLOCKS}")
    fields: dict[str, Any] = {
        "width": found["D"],
        "in_channels": found["C"],
        "patch_size": found["P"],
        "depth": len(numbers),
        "mlp_dim": _shape(view, telltales.hidden, 1)[0],
        "pool": _pool(view, telltales),
    }
    if telltales.query is not None:
        fields["num_heads"] = _shape(view, telltales.query, 2)[0]
    if telltales.hidden_head in view.shapes:
        fields["head"] = "mlp_tanh"
    patches, class_row = None, fields["pool"] == "token"
    if telltales.positions in view.shapes:
        fields["position"] = "learned"
        patches, class_row = _patches(view, telltales.positions, class_row)
    classes = _shape(view, telltales.head, 1)[0] if telltales.head in view.shapes else None
    return Detected(fields=fields, patches=patches, class_row=class_row, classes=classes)


def _pool(view: View, telltales: Telltales) -> str:
    if telltales.latent in view.shapes:
        return "attention"
    return "token" if telltales.class_token in view.shapes else "average"


def _patches(view: View, name: str, with_class_token: bool) -> tuple[int, bool]:
    """How many patches have position embeddings, and whether the class token has one.

    big_vision's have none; a square number plus one is never a square, so that it shows.
    """
    rows = _shape(view, name, 3)[1]
    class_row = with_class_token and math.isqrt(rows) ** 2 != rows
    patches = rows - class_row
    if math.isqrt(patches) ** 2 != patches:
        raise UserError(f"{view.where}: {name} has shape {view.shapes[name]}, expected those of a square of patches")
    return patches, class_row


def _shape(view: View, name: str, axes: int) -> Shape:
    if name not in view.shapes:
        raise UserError(f"{view.where}: has no array {name}, so it is no Vision Transformer in this format")
    shape = view.shapes[name]
    if len(shape) != axes:
        raise UserError(f"{view.where}: {view.own_name(name)} has shape {shape}, expected {axes} axes")
    return shape


def settle(
    view: View,
    detected: Detected,
    said: Mapping[str, Any],
    usual: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> ModelConfig:
    """The network: what the arrays show, what is said beside them, what is usual, and what the user says.

    `said` are fields of `ModelConfig`. Raises UserError where they contradict each other, or something is not known.
    """
    for name in STATED:
        own, stated = detected.fields.get(name), said.get(name)
        if own is not None and stated is not None and own != stated:
            raise UserError(f"{view.where}: is said to have {name}={stated}, and its arrays have {own}")
    given = {name: value for name, value in overrides.items() if value is not None}
    fields = {**usual, **said, **detected.fields}
    if said.get("position") not in (None, "none", "learned"):
        fields["position"] = said["position"]
    if "head" in said and detected.fields.get("head", "linear") != "linear":
        fields["head"] = said["head"] if said["head"] != "linear" else "mlp_tanh"
    fields |= given
    if "position" not in fields:
        raise UserError(f"{view.where}: has no position embeddings: say with position which it had: none, sincos_2d, …")
    if "num_heads" not in fields:
        fields["num_heads"] = _usual_heads(view, fields)
    fields["variant"] = variant_of({name: fields[name] for name in ("width", "depth", "mlp_dim", "num_heads")})
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "network"
        raise UserError(f"{view.where}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def _usual_heads(view: View, fields: Mapping[str, Any]) -> int:
    name = variant_of({name: fields[name] for name in ("width", "depth", "mlp_dim")})
    if name is None:
        sizes = ", ".join(f"{field}={fields[field]}" for field in ("width", "depth", "mlp_dim"))
        raise UserError(f"{view.where}: {sizes} is none of {', '.join(VARIANTS)}, and nothing says how many heads: "
                        "say it with num_heads")  # fmt: skip
    return VARIANTS[name]["num_heads"]


def resolution_of(view: View, detected: Detected, config: ModelConfig, stated: Any) -> int:
    """Side of the images in pixels. Raises UserError where it is not known, or is not what is said."""
    found = None if detected.patches is None else math.isqrt(detected.patches) * config.stride
    if found is None and stated is None:
        raise UserError(f"{view.where}: nothing says for what resolution it is: say it with resolution")
    if stated is not None and (not isinstance(stated, int) or not 0 < stated <= MOST_PIXELS):
        raise UserError(f"{view.where}: resolution: got {stated!r}, expected a number of pixels up to {MOST_PIXELS}")
    if found is not None and stated is not None and found != stated:
        raise UserError(f"{view.where}: is said to be for {stated} pixels, and its position embeddings are for {found}")
    side = stated if found is None else found
    assert side is not None
    return side
