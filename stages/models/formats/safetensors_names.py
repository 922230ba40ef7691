"""Names of arrays in timm's files, which are ours, but that timm has fewer of them, and BiT's last layer otherwise."""

from __future__ import annotations

from collections.abc import Iterator

from stages.models.config import AnyModel
from stages.models.formats.detect import Telltales
from stages.models.formats.detect_bit import BitTelltales
from stages.models.formats.network import blank
from stages.models.formats.resnet_detect import ResNetTelltales
from stages.models.formats.resnet_names import STEM
from stages.models.formats.rules import Rule
from stages.models.resnet_config import BitConfig

TELLTALES = Telltales(
    patch="patch_embed.proj.weight",
    patch_axes="DCPP",
    block=r"blocks\.(\d{1,6})\.",
    hidden="blocks.0.mlp.fc1.bias",
    positions="pos_embed",
    class_token="cls_token",
    latent="attn_pool.latent",
    head="head.bias",
    hidden_head="pre_logits.fc.bias",
    stem=ResNetTelltales(
        root=(f"{STEM}.stem.conv.weight", f"{STEM}.conv.weight"),
        axes="OCSS",
        unit=r"patch_embed\.backbone\.stages\.(\d{1,6})\.blocks\.(\d{1,6})\.",
    ),
)
BIT = ResNetTelltales(
    root=("stem.conv.weight",), axes="OCSS", unit=r"stages\.(\d{1,6})\.blocks\.(\d{1,6})\."
)  # fmt: skip
OWN_BIT = BitTelltales(body=BIT, head="head.bias")
TIMM_BIT = BitTelltales(body=BIT, head="head.fc.bias")


def rules(config: AnyModel, head: bool = True) -> Iterator[Rule]:
    """Each array under its own name."""
    resolution = 1 if isinstance(config, BitConfig) else config.stride
    for name in blank(config, resolution, 1):
        if head or not name.startswith("head."):
            yield Rule(name, (name,))


def timm_rules(config: AnyModel, head: bool = True) -> Iterator[Rule]:
    """As timm has them: the last layer of a BiT is a convolution there (timm `models/resnetv2.py`)."""
    for rule in rules(config, head):
        if isinstance(config, BitConfig) and rule.ours.startswith("head."):
            weight = rule.ours == "head.weight"
            name = rule.ours.replace("head.", "head.fc.")
            yield Rule(rule.ours, (name,), "dense_convolution" if weight else "same")
        else:
            yield rule
