"""Names of arrays in Hugging Face's files of ViTs, hybrids and BiT, as transformers has them on disk, and ours."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stages.models.config import AnyModel, ModelConfig
from stages.models.formats.detect import Telltales
from stages.models.formats.detect_bit import BitTelltales
from stages.models.formats.resnet_detect import ResNetTelltales
from stages.models.formats.resnet_names import STEM, stem_root
from stages.models.formats.rules import Rule
from stages.models.resnet_config import BitConfig, StemConfig

BODY = "vit."
"""Before all names but the classifier's; files of the body alone have none."""
BIT_BODY = "bit."
"""The same of a BiT."""
BACKBONE = f"{BODY}embeddings.patch_embeddings.backbone.bit"
"""Where a hybrid has its ResNet."""
BIT = ResNetTelltales(
    root=("bit.embedder.convolution.weight",),
    axes="OCSS",
    unit=r"bit\.encoder\.stages\.(\d{1,6})\.layers\.(\d{1,6})\.",
)
BIT_TELLTALES = BitTelltales(body=BIT, head="classifier.1.bias")
TELLTALES = Telltales(
    patch="vit.embeddings.patch_embeddings.projection.weight",
    patch_axes="DCPP",
    block=r"vit\.encoder\.layer\.(\d{1,6})\.",
    hidden="vit.encoder.layer.0.intermediate.dense.bias",
    positions="vit.embeddings.position_embeddings",
    class_token="vit.embeddings.cls_token",
    latent="no network of theirs has any",
    head="classifier.bias",
    hidden_head="vit.pooler.dense.bias",
    stem=ResNetTelltales(
        root=(f"{BACKBONE}.embedder.convolution.weight",),
        axes="OCSS",
        unit=rf"{re.escape(BACKBONE)}\.encoder\.stages\.(\d{{1,6}})\.layers\.(\d{{1,6}})\.",
    ),
)


def rules(config: ModelConfig, *, head: bool = True) -> Iterator[Rule]:
    """How the arrays of a network with a class token and learned positions stand in their files."""
    if config.stem is not None:
        yield from _stem_rules(config.stem)
    yield Rule("cls_token", ("vit.embeddings.cls_token",))
    yield Rule("pos_embed", ("vit.embeddings.position_embeddings",))
    yield from _both("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
    for number in range(config.depth):
        ours, theirs = f"blocks.{number}", f"vit.encoder.layer.{number}"
        attention = tuple(f"{theirs}.attention.attention.{name}" for name in ("query", "key", "value"))
        yield from _both(f"{ours}.attn.qkv", *attention)
        yield from _both(f"{ours}.attn.proj", f"{theirs}.attention.output.dense")
        yield from _both(f"{ours}.norm1", f"{theirs}.layernorm_before")
        yield from _both(f"{ours}.norm2", f"{theirs}.layernorm_after")
        yield from _both(f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense")
        yield from _both(f"{ours}.mlp.fc2", f"{theirs}.output.dense")
    yield from _both("norm", "vit.layernorm")
    if config.head != "linear":
        # Their pooler, with tanh, is the hidden layer of the pre-training head.
        yield from _both("pre_logits.fc", "vit.pooler.dense")
    if head:
        yield from _both("head", "classifier")


def rules_of(config: AnyModel, head: bool = True) -> Iterator[Rule]:
    """The same of a network of either family."""
    return _bit_rules(config, head) if isinstance(config, BitConfig) else rules(config, head=head)


def _stem_rules(stem: StemConfig) -> Iterator[Rule]:
    """A hybrid's ResNet: the norms of its shortcuts too."""
    root = stem_root(stem)
    yield Rule(f"{root}.conv.weight", (f"{BACKBONE}.embedder.convolution.weight",))
    yield from _both(f"{root}.norm", f"{BACKBONE}.embedder.norm")
    for stage, count in enumerate(stem.blocks):
        for unit in range(count):
            ours = f"{STEM}.stages.{stage}.blocks.{unit}"
            theirs = f"{BACKBONE}.encoder.stages.{stage}.layers.{unit}"
            yield from _unit(ours, theirs)
            if unit == 0:
                yield from _both(f"{ours}.downsample.norm", f"{theirs}.downsample.norm")


def _bit_rules(config: BitConfig, head: bool) -> Iterator[Rule]:
    yield Rule("stem.conv.weight", ("bit.embedder.convolution.weight",))
    for stage, count in enumerate(config.blocks):
        for unit in range(count):
            yield from _unit(f"stages.{stage}.blocks.{unit}", f"bit.encoder.stages.{stage}.layers.{unit}")
    yield from _both("norm", "bit.norm")
    if head:
        yield from _both("head", "classifier.1")


def _unit(ours: str, theirs: str) -> Iterator[Rule]:
    for number in (1, 2, 3):
        yield Rule(f"{ours}.conv{number}.weight", (f"{theirs}.conv{number}.weight",))
        yield from _both(f"{ours}.norm{number}", f"{theirs}.norm{number}")
    if theirs.endswith(".0"):
        # The first of a stage has other channels than it is given.
        yield Rule(f"{ours}.downsample.conv.weight", (f"{theirs}.downsample.conv.weight",))


def _both(ours: str, *theirs: str) -> Iterator[Rule]:
    for part in ("weight", "bias"):
        yield Rule(
            f"{ours}.{part}", tuple(f"{name}.{part}" for name in theirs), "stacked" if len(theirs) > 1 else "same"
        )
