"""What ResNets keep in memory for the backward pass, by formula. Light: no torch here.

Read off the operations of `resnet.py` and `bit.py`: a convolution keeps its input and the kernel that it computes with,
a norm its input and two fp32 numbers a group, ReLU its output, pooling its input and an index of eight bytes for each
output. A kernel's standardisation keeps it without its mean. What one operation keeps and the next keeps too is one.
That is exact. Gradients in flight are taken as two of a unit's largest maps, its last two kernels' being made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stages.models.config import ModelConfig
from stages.models.resnet_config import GROUPS, BitConfig, StemConfig
from stages.models.resnet_flops import (
    Bottleneck,
    bit_unit_parameters,
    bottlenecks,
    half,
    root_kernels,
    stem_unit_parameters,
)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of a network that activation checkpointing computes again as a whole: bytes of one image."""

    kept: int
    """All that it keeps, its input among it."""
    entry: int
    """Its input alone: what is left of one that will be computed again. The image counts for itself."""
    working: int
    """Gradients in flight, beyond what is kept, where its backward pass has most of them."""
    kernels: int = 0
    """Bytes that it keeps whatever the number of images."""
    parameters: int
    """Number of them."""
    early: int
    """How many of them have their gradients where most is in flight."""


def stem_units(model: ModelConfig, resolution: int, itemsize: int) -> Iterator[Unit]:
    """The root and the bottlenecks of a hybrid's stem."""
    assert model.stem is not None
    yield _stem_root(model.stem, model.in_channels, resolution, itemsize)
    for unit in bottlenecks(model.stem.blocks, model.stem.width_factor, resolution):
        yield _stem_unit(unit, itemsize)


def bit_units(config: BitConfig, resolution: int, itemsize: int) -> Iterator[Unit]:
    """The root and the bottlenecks of a BiT ResNet."""
    yield _bit_root(config, resolution, itemsize)
    for unit in bottlenecks(config.blocks, config.width_factor, resolution):
        yield _bit_unit(unit, itemsize)


def map_bytes(channels: int, side: int, itemsize: int) -> int:
    """Of a square map."""
    return itemsize * channels * side**2


def figures(norms: int) -> int:
    """Means and deviations of so many GroupNorms."""
    return norms * 2 * GROUPS * 4


def _padded(side: int, size: int) -> int:
    """Side of the copy that "SAME" padding makes before a window with a stride of 2; 0 where it needs none."""
    total = max(0, (half(side) - 1) * 2 + size - side)
    return side + total if total % 2 else 0


def _stem_root(config: StemConfig, in_channels: int, resolution: int, itemsize: int) -> Unit:
    channels, side = 64 * config.width_factor, half(resolution)
    found = map_bytes(channels, side, itemsize)
    image = map_bytes(in_channels, _padded(resolution, 7), itemsize)
    pooling = map_bytes(channels, _padded(side, 3), itemsize) + map_bytes(channels, half(side), 8)
    kernels = root_kernels(config, in_channels)
    return Unit(
        kept=image + 2 * found + pooling + figures(1),
        entry=0,
        working=2 * found,
        kernels=_standardised(kernels, channels, itemsize, of_channel=2),
        parameters=kernels + 2 * channels,
        early=0,
    )


def _stem_unit(unit: Bottleneck, itemsize: int) -> Unit:
    """Its input; what the norms are given; what ReLU makes of two of them, once more where it is padded."""
    entry, after = (map_bytes(c, s, itemsize) for c, s in ((unit.inputs, unit.before), (unit.outputs, unit.after)))
    before, middle = (map_bytes(unit.width, side, itemsize) for side in (unit.before, unit.after))
    copy = map_bytes(unit.width, _padded(unit.before, 3), itemsize) if unit.after != unit.before else 0
    norms = 4 if unit.projected else 3
    outputs = 2 * unit.width + unit.outputs * (2 if unit.projected else 1)
    return Unit(
        kept=entry + 2 * before + copy + 2 * middle + after * (norms - 2) + figures(norms),
        entry=entry,
        # That of the sum, for the shortcut, and the last norm's.
        working=2 * max(entry, after),
        kernels=_standardised(unit.kernels, outputs, itemsize, of_channel=2),
        parameters=stem_unit_parameters(unit),
        early=unit.width * unit.outputs + 9 * unit.width**2,
    )


def _bit_root(config: BitConfig, resolution: int, itemsize: int) -> Unit:
    """The zeros around the pooling's input are in a copy; the convolution's output itself is not kept."""
    channels, side = 64 * config.width_factor, half(resolution)
    kernels = root_kernels(config, config.in_channels)
    return Unit(
        kept=map_bytes(channels, side + 2, itemsize) + map_bytes(channels, half(side), 8),
        entry=0,
        working=map_bytes(channels, side, itemsize),
        kernels=_standardised(kernels, channels, itemsize, of_channel=1),
        parameters=kernels,
        early=0,
    )


def _bit_unit(unit: Bottleneck, itemsize: int) -> Unit:
    """What the norms are given, its input first, and what ReLU makes of each."""
    entry, after = (map_bytes(c, s, itemsize) for c, s in ((unit.inputs, unit.before), (unit.outputs, unit.after)))
    before, middle = (map_bytes(unit.width, side, itemsize) for side in (unit.before, unit.after))
    outputs = 2 * unit.width + unit.outputs * (2 if unit.projected else 1)
    return Unit(
        kept=2 * (entry + before + middle) + figures(3),
        entry=entry,
        # That of the sum, for the shortcut, and the first norm's.
        working=2 * max(entry, after),
        kernels=_standardised(unit.kernels, outputs, itemsize, of_channel=1),
        parameters=bit_unit_parameters(unit),
        early=unit.width * unit.outputs + 9 * unit.width**2,
    )


def _standardised(kernels: int, outputs: int, itemsize: int, *, of_channel: int) -> int:
    """Kernels without their mean, and as they are computed with; so many numbers for each of their channels."""
    return itemsize * (2 * kernels + of_channel * outputs)
