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
from stages.models.formats.arrays import View, shape_of
from stages.models.formats.beside import Beside, Overrides
from stages.models.formats.network import MOST_PIXELS, variant_of
from stages.models.formats.resnet_detect import ResNetTelltales, resnet_fields
from stages.models.resnet_config import BitConfig

MOST_BLOCKS = 1000
"""A file of small arrays can claim any number."""
STATED = ("width", "depth", "mlp_dim", "num_heads", "patch_size", "in_channels", "pool")
"""Fields that arrays show, and that settings may say too."""


@dataclass(frozen=True, kw_only=True)
class Telltales:
    """Names of the arrays that tell what a network is; biases, since their layout is the same everywhere."""

    patch: str
    patch_axes: str
    """Of that kernel: P side of a patch, C channels of the image or of a stem's map, D width."""
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
    stem: ResNetTelltales
    """Of a hybrid's ResNet."""
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


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """The network that a file is of."""

    view: View
    """Its arrays, under the names of one layout."""
    config: ModelConfig | BitConfig
    heads: int
    """Attention heads."""
    resolution: int
    classes: int | None
    """None without a last layer."""
    assumed: dict[str, Any]
    """What nothing says, and is usual for the format."""


def recognise_vit(view: View, telltales: Telltales, beside: Beside, overrides: Overrides) -> Recognised:
    """The Vision Transformer, or hybrid, of a file. Raises UserError where it is none, or contradicts what is said."""
    detected = detect(view, telltales)
    stem = settle_stem(view, detected.fields.get("stem"), beside)
    if stem is not None:
        detected.fields["stem"] = stem
    config = settle(view, detected, beside.said, beside.usual, overrides.fields())
    if detected.patches is not None and config.pool == "token" and not detected.class_row:
        view = view.with_row_before(telltales.positions)
    stated = beside.resolution if overrides.resolution is None else overrides.resolution
    given = {**beside.said, **overrides.fields()}
    assumed = {name: value for name, value in beside.usual.items() if name not in given}
    if stem is not None:
        known = beside.said.get("stem") or {}
        assumed |= {f"stem.{name}": value for name, value in beside.usual_stem.items() if name not in known}
    return Recognised(
        view=view, config=config, heads=config.num_heads, resolution=resolution_of(view, detected, config, stated),
        classes=detected.classes, assumed=assumed,
    )  # fmt: skip


def detect(view: View, telltales: Telltales) -> Detected:
    """What a file's shapes say. Raises UserError where it has no patches or no blocks, or some shape is impossible."""
    patch = shape_of(view, telltales.patch, len(telltales.patch_axes))
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
        "mlp_dim": shape_of(view, telltales.hidden, 1)[0],
        "pool": _pool(view, telltales),
    }
    if telltales.stem.has(view):
        stem = resnet_fields(view, telltales.stem, "hybrid")
        fields |= {"in_channels": stem.pop("in_channels"), "stem": stem}
    if telltales.query is not None:
        fields["num_heads"] = shape_of(view, telltales.query, 2)[0]
    if telltales.hidden_head in view.shapes:
        fields["head"] = "mlp_tanh"
    patches, class_row = None, fields["pool"] == "token"
    if telltales.positions in view.shapes:
        fields["position"] = "learned"
        patches, class_row = _patches(view, telltales.positions, class_row)
    classes = shape_of(view, telltales.head, 1)[0] if telltales.head in view.shapes else None
    return Detected(fields=fields, patches=patches, class_row=class_row, classes=classes)


def _pool(view: View, telltales: Telltales) -> str:
    if telltales.latent in view.shapes:
        return "attention"
    return "token" if telltales.class_token in view.shapes else "average"


def _patches(view: View, name: str, with_class_token: bool) -> tuple[int, bool]:
    """How many patches have position embeddings, and whether the class token has one.

    big_vision's have none; a square number plus one is never a square, so that it shows.
    """
    rows = shape_of(view, name, 3)[1]
    class_row = with_class_token and math.isqrt(rows) ** 2 != rows
    patches = rows - class_row
    if math.isqrt(patches) ** 2 != patches:
        raise UserError(f"{view.where}: {name} has shape {view.shapes[name]}, expected those of a square of patches")
    return patches, class_row


def settle_stem(view: View, found: dict[str, Any] | None, beside: Beside) -> dict[str, Any] | None:
    """Fields of `StemConfig`: what the arrays show, what is said and what is usual. Raises UserError."""
    said = beside.said.get("stem")
    if said is not None and not isinstance(said, Mapping):
        raise UserError(f"{view.where}: stem: got {said!r}, expected a mapping")
    if found is None and said is not None:
        raise UserError(f"{view.where}: is said to have a ResNet before its patches, and its arrays have none")
    if found is not None and said is None and "stem" in beside.said:
        raise UserError(f"{view.where}: is said to have no ResNet before its patches, and its arrays have one")
    if found is None:
        return None
    for name, own in found.items():
        stated = (said or {}).get(name, own)
        if (tuple(stated) if isinstance(stated, list | tuple) else stated) != own:
            raise UserError(f"{view.where}: is said to have stem.{name}={stated}, and its arrays have {own}")
    return {**beside.usual_stem, **(said or {}), **found}


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
        raise UserError(f"{view.where}: {first_error(error)}") from error


def first_error(error: ValidationError) -> str:
    """What is wrong with a network's config, in a line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "network"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


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
    check_resolution(view.where, stated)
    if found is not None and stated is not None and found != stated:
        raise UserError(f"{view.where}: is said to be for {stated} pixels, and its position embeddings are for {found}")
    side = stated if found is None else found
    assert side is not None
    return side


def check_resolution(where: str, stated: Any) -> None:
    """Raise UserError where what is said is no number of pixels."""
    if stated is not None and (not isinstance(stated, int) or not 0 < stated <= MOST_PIXELS):
        raise UserError(f"{where}: resolution: got {stated!r}, expected a number of pixels up to {MOST_PIXELS}")
