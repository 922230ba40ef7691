"""Networks from their configs."""

from __future__ import annotations

from stages.models.bit import BitResNet
from stages.models.config import AnyModel
from stages.models.resnet_config import BitConfig
from stages.models.vit import VisionTransformer

Network = VisionTransformer | BitResNet
"""Has `config`, `resolution`, `num_classes`, `grid`, `blocks`, `features` and `activation_checkpointing`."""


def build(config: AnyModel, resolution: int, num_classes: int) -> Network:
    """The network of a config, uninitialised. Raises UserError where the resolution does not suit it."""
    if isinstance(config, BitConfig):
        return BitResNet(config, resolution, num_classes)
    return VisionTransformer(config, resolution, num_classes)
