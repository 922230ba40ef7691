"""Names of arrays of ResNets in Google's npz files and ours, which are timm's: a hybrid's stem, and BiT whole.

Google's: vision_transformer `vit_jax/models_resnet.py`, big_transfer `bit_pytorch/models.py`; timm's
`models/vision_transformer_hybrid.py` and `models/resnetv2.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stages.models.formats.rules import Rule
from stages.models.resnet_config import BitConfig, StemConfig

STEM = "patch_embed.backbone"
NOISE = re.compile(r"(standardized_conv2d|group_norm|conv2d)_\d+")
"""Some of BiT's files number these modules (big_vision `models/bit_paper.py`); `without_numbers` takes that away."""
CONVOLUTIONS = ("a", "b", "c")
"""Of a unit, in BiT's files."""


def without_numbers(name: str) -> str:
    """A name of BiT's files as most of them have it."""
    return NOISE.sub(r"\1", name)


def stem_rules(stem: StemConfig) -> Iterator[Rule]:
    """How the published files have a hybrid's ResNet."""
    yield Rule(f"{STEM}.stem.conv.weight", ("conv_root/kernel",), "kernel")
    yield from _norm(f"{STEM}.stem.norm", "gn_root", "scale", "bias")
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


def bit_rules(config: BitConfig) -> Iterator[Rule]:
    """How the published files have a BiT; the last layer is a convolution there, as it is in timm."""
    yield Rule("stem.conv.weight", ("resnet/root_block/standardized_conv2d/kernel",), "kernel")
    for stage, count in enumerate(config.blocks):
        for unit in range(count):
            ours, theirs = f"stages.{stage}.blocks.{unit}", f"resnet/block{stage + 1}/unit{unit + 1:02d}"
            for number, letter in enumerate(CONVOLUTIONS, start=1):
                kernel = f"{theirs}/{letter}/standardized_conv2d/kernel"
                yield Rule(f"{ours}.conv{number}.weight", (kernel,), "kernel")
                yield from _norm(f"{ours}.norm{number}", f"{theirs}/{letter}/group_norm", "gamma", "beta")
            if unit == 0:
                kernel = f"{theirs}/a/proj/standardized_conv2d/kernel"
                yield Rule(f"{ours}.downsample.conv.weight", (kernel,), "kernel")
    yield from _norm("norm", "resnet/group_norm", "gamma", "beta")
    yield Rule("head.fc.weight", ("resnet/head/conv2d/kernel",), "kernel")
    yield Rule("head.fc.bias", ("resnet/head/conv2d/bias",))


def _norm(ours: str, theirs: str, scale: str, bias: str) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (f"{theirs}/{scale}",))
    yield Rule(f"{ours}.bias", (f"{theirs}/{bias}",))
