"""The sizes of a ResNet, whole or before a hybrid's patches, from the shapes and names of its arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from stages.models.formats.arrays import View, shape_of

MOST_UNITS = 1000
"""A file of small arrays can claim any number."""
ROOT_CHANNELS = 64
"""Of a root of width factor 1."""


@dataclass(frozen=True, kw_only=True)
class ResNetTelltales:
    """Names of the arrays that tell what a ResNet is."""

    root: tuple[str, ...]
    """Names that the root's kernel may have."""
    axes: str
    """Of that kernel: S its side, C channels of the image, O its own."""
    unit: str
    """Pattern of the names of a unit's arrays, whose groups are the numbers of stage and unit."""

    def has(self, view: View) -> bool:
        """Whether there is such a ResNet among the arrays."""
        return any(name in view.shapes for name in self.root)


def resnet_fields(view: View, telltales: ResNetTelltales, family: str) -> dict[str, Any]:
    """`blocks`, `width_factor` and `in_channels`. Raises UserError where there is no root, or no such ResNet."""
    root = next((name for name in telltales.root if name in view.shapes), telltales.root[0])
    shape = shape_of(view, root, len(telltales.axes), family)
    found = dict(zip(telltales.axes, shape, strict=True))
    if found["O"] % ROOT_CHANNELS:
        raise UserError(
            f"{view.where}: {view.own_name(root)} has shape {shape}, expected a multiple of {ROOT_CHANNELS} kernels"
        )
    units: dict[int, set[int]] = {}
    for name in view.shapes:
        if (match := re.match(telltales.unit, name)) is not None:
            units.setdefault(int(match[1]), set()).add(int(match[2]))
    blocks = tuple(len(units[stage]) for stage in sorted(units))
    if sum(blocks) > MOST_UNITS:
        raise UserError(f"{view.where}: has {sum(blocks)} bottlenecks, expected up to {MOST_UNITS}")
    # Numbers that are left out show when all arrays are compared.
    return {"blocks": blocks, "width_factor": found["O"] // ROOT_CHANNELS, "in_channels": found["C"]}
