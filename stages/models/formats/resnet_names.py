"""Names of arrays of ResNets in Google's npz files and ours, which are timm's: a hybrid's stem, and BiT whole.

Google's: vision_transformer `vit_jax/models_resnet.py`, big_transfer `bit_pytorch/models.py`; timm's
`models/vision_transformer_hybrid.py` and `models/resnetv2.py`. Our BiT's last layer is dense, theirs a convolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stages.models.formats.detect_bit import BitTelltales
from stages.models.formats.resnet_detect import ResNetTelltales
from stages.models.formats.rules import Rule
from stages.models.resnet_config import BitConfig, StemConfig

STEM = "patch_embed.backbone"
NOISE = re.compile(r"(standardized_conv2d|group_norm|conv2d)_\d+")
"""Some of BiT's files number these modules (big_vision `models/bit_paper.py`); `without_numbers` takes that away."""
CONVOLUTIONS = ("a", "b", "c")
"""Of a unit, in BiT's files."""
BIT = "resnet/"
"""Before all names of BiT's files."""
BIT_ROOT = f"{BIT}root_block/standardized_conv2d/kernel"
STEM_TELLTALES = ResNetTelltales(
    root=("conv_root/kernel",), axes="SSCO", unit=r"block(\d{1,6})/unit(\d{1,6})/"
)  # fmt: skip
BIT_TELLTALES = BitTelltales(
    body=ResNetTelltales(root=(BIT_ROOT,), axes="SSCO", unit=rf"{BIT}block(\d{{1,6}})/unit(\d{{1,6}})/"),
    head=f"{BIT}head/conv2d/bias",
)


def without_numbers(name: str) -> str:
    """A name of BiT's files as most of them have it."""
    return NOISE.sub(r"\1", name)


def stem_root(stem: StemConfig) -> str:
    """What the root's arrays begin with: it is the whole stem of a hybrid without stages."""
    return f"{STEM}.stem" if stem.blocks else STEM


def stem_rules(stem: StemConfig) -> Iterator[Rule]:
    """How the published files have a hybrid's ResNet."""
    yield Rule(f"{stem_root(stem)}.conv.weight", ("conv_root/kernel",), "kernel")
    yield from _norm(f"{stem_root(stem)}.norm", "gn_root", "scale", "bias")
    for stage, count in enumerate(stem.blocks):
        for unit in range(count):
            ours, theirs = f"{STEM}.stages.{stage}.blocks.{unit}", f"block{stage + 1}/unit{unit + 1}"
            for number in (1, 2, 3):
                yield Rule(f"{ours}.conv{number}.weight", (f"{theirs}/conv{number}/kernel",), "kernel")
                yield from _norm(f"{ours}.norm{number}", f"{theirs}/gn{number}", "scale", "bias")
            if unit == 0:
                # The first of a stage has other channels than it is given.
                yield Rule(f"{ours}.downsample.conv.weight", (f"{theirs}/conv_proj/kernel",), "kernel")
                yield from _norm(f"{ours}.downsample.norm", f"{theirs}/gn_proj", "scale", "bias")


def bit_rules(config: BitConfig, *, head: bool = True) -> Iterator[Rule]:
    """How the published files have a BiT; without `head`, all but the last layer's arrays."""
    yield Rule("stem.conv.weight", (BIT_ROOT,), "kernel")
    for stage, count in enumerate(config.blocks):
        for unit in range(count):
            ours, theirs = f"stages.{stage}.blocks.{unit}", f"{BIT}block{stage + 1}/unit{unit + 1:02d}"
            for number, letter in enumerate(CONVOLUTIONS, start=1):
                kernel = f"{theirs}/{letter}/standardized_conv2d/kernel"
                yield Rule(f"{ours}.conv{number}.weight", (kernel,), "kernel")
                yield from _norm(f"{ours}.norm{number}", f"{theirs}/{letter}/group_norm", "gamma", "beta")
            if unit == 0:
                kernel = f"{theirs}/a/proj/standardized_conv2d/kernel"
                yield Rule(f"{ours}.downsample.conv.weight", (kernel,), "kernel")
    yield from _norm("norm", f"{BIT}group_norm", "gamma", "beta")
    if head:
        yield Rule("head.weight", (f"{BIT}head/conv2d/kernel",), "dense_kernel")
        yield Rule("head.bias", (f"{BIT}head/conv2d/bias",))


def _norm(ours: str, theirs: str, scale: str, bias: str) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (f"{theirs}/{scale}",))
    yield Rule(f"{ours}.bias", (f"{theirs}/{bias}",))
