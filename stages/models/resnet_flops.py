"""Parameters and multiply-adds of ResNets, by formula: whole ones, and a hybrid's stem. Light: no torch here.

Standardising kernels is left out: it is done once for all images. So are norms, sums and pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.models.resnet_config import BitConfig, StemConfig


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """The shape of a unit: channels, and sides of its maps."""

    inputs: int
    width: int
    """Channels of the convolutions in the middle."""
    before: int
    """Side of the map that it is given."""
    after: int
    """Side of the map that it makes."""

    @property
    def outputs(self) -> int:
        """Channels of the map that it makes."""
        return 4 * self.width

    @property
    def projected(self) -> bool:
        """Whether its shortcut is a convolution."""
        return self.inputs != self.outputs

    @property
    def kernels(self) -> int:
        """Weights of its convolutions."""
        shortcut = self.inputs * self.outputs if self.projected else 0
        return self.inputs * self.width + 9 * self.width**2 + self.width * self.outputs + shortcut

    @property
    def macs(self) -> int:
        """Multiply-adds: the first convolution's are at the side before, the others' at the one after."""
        first = self.inputs * self.width
        return first * self.before**2 + (self.kernels - first) * self.after**2


def bottlenecks(blocks: Sequence[int], width_factor: int, resolution: int) -> list[Bottleneck]:
    """All units of a ResNet's stages, in their order, for square images."""
    found, inputs, before = [], 64 * width_factor, half(half(resolution))
    for i, count in enumerate(blocks):
        width = 64 * width_factor * 2**i
        for unit in range(count):
            after = half(before) if i and not unit else before
            found.append(Bottleneck(inputs=inputs, width=width, before=before, after=after))
            inputs, before = 4 * width, after
    return found


def half(side: int) -> int:
    """Side of a map that every second element is left of."""
    return -(-side // 2)


def root_kernels(config: StemConfig | BitConfig, in_channels: int) -> int:
    """Weights of the first convolution."""
    return 49 * in_channels * 64 * config.width_factor


def stem_parameters(config: StemConfig, in_channels: int) -> int:
    """Number of trained parameters of a hybrid's stem."""
    return (
        root_kernels(config, in_channels) + 128 * config.width_factor + sum(map(stem_unit_parameters, _units(config)))
    )


def stem_unit_parameters(unit: Bottleneck) -> int:
    """Kernels, and a scale and a bias for each channel after each convolution."""
    return unit.kernels + 2 * (2 * unit.width + unit.outputs * (2 if unit.projected else 1))


def bit_parameters(config: BitConfig, num_classes: int) -> int:
    """Number of trained parameters of a BiT ResNet."""
    body = root_kernels(config, config.in_channels) + sum(map(bit_unit_parameters, _units(config)))
    return body + 2 * config.features + (config.features + 1) * num_classes


def bit_unit_parameters(unit: Bottleneck) -> int:
    """Kernels, and a scale and a bias for each channel before each convolution but the shortcut's."""
    return unit.kernels + 2 * (unit.inputs + 2 * unit.width)


def stem_macs(config: StemConfig, in_channels: int, resolution: int) -> int:
    """Multiply-adds of the stem's convolutions for one image."""
    root = root_kernels(config, in_channels) * half(resolution) ** 2
    return root + sum(unit.macs for unit in _units(config, resolution))


def bit_macs(config: BitConfig, resolution: int, num_classes: int) -> int:
    """Multiply-adds of one image's forward pass: convolutions and head.

    At 224 pixels and six operations for each (`flops.forward_macs`), 303 million images an epoch and JFT's classes,
    these make 3.5 to 5 % more exaFLOPs than the paper's Table 6 has for its ResNets. How it counts them it does not
    say; without the products with padding they come out within 1.4 % (docs/recipes.md has what else was tried).
    """
    root = root_kernels(config, config.in_channels) * half(resolution) ** 2
    return root + sum(unit.macs for unit in _units(config, resolution)) + config.features * num_classes


def _units(config: StemConfig | BitConfig, resolution: int = 32) -> list[Bottleneck]:
    return bottlenecks(config.blocks, config.width_factor, resolution)
