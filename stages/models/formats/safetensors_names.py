"""Names of arrays in timm's files, which are ours, but that timm has fewer of them."""

from __future__ import annotations

from collections.abc import Iterator

from stages.models.config import ModelConfig
from stages.models.formats.detect import Telltales
from stages.models.formats.network import blank
from stages.models.formats.rules import Rule

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
)


def rules(config: ModelConfig, *, head: bool = True) -> Iterator[Rule]:
    """Each array under its own name."""
    for name in blank(config, config.stride, 1):
        if head or not name.startswith("head."):
            yield Rule(name, (name,))
