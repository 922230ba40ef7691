"""Which BiT an array file is of, from the shapes of some of its arrays and from what is said beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.errors import UserError
from stages.models.formats.arrays import View
from stages.models.formats.beside import Beside, Overrides
from stages.models.formats.detect import Recognised, check_resolution, first_error
from stages.models.formats.resnet_detect import ResNetTelltales, resnet_fields
from stages.models.resnet_config import BLOCKS, BitConfig

RESOLUTION = 224
"""Of a file that does not say: such a network takes images of any."""
STAGES = 4


@dataclass(frozen=True, kw_only=True)
class BitTelltales:
    """Names of the arrays that tell which BiT it is."""

    body: ResNetTelltales
    head: str
    """Bias of the last layer, [classes]."""


def recognise_bit(view: View, telltales: BitTelltales, beside: Beside, overrides: Overrides) -> Recognised:
    """The BiT of a file. Raises UserError where it is none, or contradicts what is said."""
    if given := sorted(overrides.fields()):
        raise UserError(f"{view.where}: it is a ResNet, which has no {', '.join(given)}: leave it out")
    found = resnet_fields(view, telltales.body, "ResNet")
    if len(found["blocks"]) != STAGES:
        raise UserError(f"{view.where}: has units in {len(found['blocks'])} stages, expected {STAGES}")
    config = _settle(view, found, beside)
    stated = beside.resolution if overrides.resolution is None else overrides.resolution
    check_resolution(view.where, stated)
    assumed = {name: value for name, value in beside.usual.items() if name not in beside.said}
    if stated is None:
        assumed["resolution"] = RESOLUTION
    head = view.shapes.get(telltales.head)
    return Recognised(
        view=view, config=config, heads=1, resolution=stated or RESOLUTION, classes=head[0] if head else None,
        assumed=assumed,
    )  # fmt: skip


def _settle(view: View, found: dict[str, Any], beside: Beside) -> BitConfig:
    for name, own in found.items():
        stated = beside.said.get(name, own)
        if (tuple(stated) if isinstance(stated, list) else stated) != own:
            raise UserError(f"{view.where}: is said to have {name}={stated}, and its arrays have {own}")
    fields = {**beside.usual, **beside.said, **found, "variant": _variant(found)}
    try:
        return BitConfig.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{view.where}: {first_error(error)}") from error


def _variant(found: dict[str, Any]) -> str | None:
    """The paper's name of a network of these sizes."""
    layers = next((layers for layers, blocks in BLOCKS.items() if blocks == found["blocks"]), None)
    return f"R{layers}x{found['width_factor']}" if layers is not None else None
