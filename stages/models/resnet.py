"""Convolutions with standardised weights, and the ResNet that a hybrid's patches are cut from.

Shapes: B images, C channels, H and W the sides of a map. Parameter names are those of timm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stages.models.resnet_config import GROUPS, StemConfig


class StandardConv(nn.Conv2d):
    """A convolution without bias, whose kernel has mean 0 and deviation 1 in each output channel (arXiv:1903.10520).

    `epsilon` is added to the kernel's variance. `same` pads as TensorFlow's "SAME": as many zeros as make the map's
    side the image's over the stride, rounded up, the odd one at the end. Else half of the kernel's side, all around.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, *, epsilon: float, stride: int = 1, same: bool = False
    ) -> None:
        super().__init__(inputs, outputs, size, stride, 0 if same else size // 2, bias=False)
        self.epsilon, self.same = epsilon, same

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.same:
            input, padding = pad_same(input, self.kernel_size[0], self.stride[0])
        return functional.conv2d(input, self.standardised(), stride=self.stride, padding=padding)

    def standardised(self) -> Tensor:
        """The kernel that it computes with, [outputs, inputs, size, size]."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) * self.scale(variance)

    def scale(self, variance: Tensor) -> Tensor:
        """What the kernel is multiplied by, by its variance."""
        return torch.rsqrt(variance + self.epsilon)


class DeviationConv(StandardConv):
    """The same with `epsilon` added to the deviation, as `vit_jax/models_resnet.py` does."""

    def scale(self, variance: Tensor) -> Tensor:
        return (torch.sqrt(variance) + self.epsilon).reciprocal()


def stem_conv(config: StemConfig, inputs: int, outputs: int, size: int, stride: int = 1) -> StandardConv:
    """A convolution of a hybrid's stem, with "SAME" padding."""
    kind = DeviationConv if config.epsilon_of == "deviation" else StandardConv
    return kind(inputs, outputs, size, stride=stride, epsilon=config.epsilon, same=True)


def pad_same(x: Tensor, size: int, stride: int, value: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """What a window of `size` has to be given, and how much of it is left to add all around, for "SAME" padding.

    What is as much on all sides is left to the operation, which needs no copy for it.
    """
    rows, columns = (max(0, (-(-side // stride) - 1) * stride + size - side) for side in x.shape[-2:])
    if rows % 2 == 0 and columns % 2 == 0:
        return x, (rows // 2, columns // 2)
    around = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return functional.pad(x, around, value=value), (0, 0)


def group_norm(channels: int, epsilon: float) -> nn.GroupNorm:
    """A GroupNorm of 32 groups."""
    return nn.GroupNorm(GROUPS, channels, eps=epsilon)


class StemRoot(nn.Module):
    """Convolution, norm, ReLU and pooling, [B, C, H, W] → [B, 64 k, H / 4, W / 4]."""

    def __init__(self, config: StemConfig, in_channels: int) -> None:
        super().__init__()
        channels = 64 * config.width_factor
        self.conv = stem_conv(config, in_channels, channels, 7, stride=2)
        self.norm = group_norm(channels, config.group_norm_epsilon)

    def forward(self, images: Tensor) -> Tensor:
        x, padding = pad_same(functional.relu(self.norm(self.conv(images))), 3, 2, value=-torch.inf)
        return functional.max_pool2d(x, 3, stride=2, padding=padding)


class Projection(nn.Module):
    """What stands in for a unit's input where its output has another shape."""

    def __init__(self, config: StemConfig, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = stem_conv(config, inputs, outputs, 1, stride)
        self.norm = group_norm(outputs, config.group_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class StemUnit(nn.Module):
    """A bottleneck with its activations after the norms and after the sum, the stride in the middle."""

    def __init__(self, config: StemConfig, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs, epsilon = 4 * width, config.group_norm_epsilon
        projected = inputs != outputs or stride != 1
        self.downsample = Projection(config, inputs, outputs, stride) if projected else None
        self.conv1 = stem_conv(config, inputs, width, 1)
        self.norm1 = group_norm(width, epsilon)
        self.conv2 = stem_conv(config, width, width, 3, stride)
        self.norm2 = group_norm(width, epsilon)
        self.conv3 = stem_conv(config, width, outputs, 1)
        self.norm3 = group_norm(outputs, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.norm1(self.conv1(x)))
        x = functional.relu(self.norm2(self.conv2(x)))
        return functional.relu(self.norm3(self.conv3(x)) + shortcut)


class Stage(nn.Module):
    """The units of one width. Their names are all that it is for."""

    def __init__(self, units: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(units)


def make_stages(blocks: Sequence[int], width_factor: int, make: Callable[[int, int, int], nn.Module]) -> nn.ModuleList:
    """The stages of a ResNet from units that `make` makes of input channels, width and stride.

    Each stage is twice as wide as the one before it, and all but the first begin with a stride of 2.
    """
    stages, inputs = nn.ModuleList(), 64 * width_factor
    for i, count in enumerate(blocks):
        width = 64 * width_factor * 2**i
        first, inputs = make(inputs, width, 1 if i == 0 else 2), 4 * width
        stages.append(Stage([first, *(make(inputs, width, 1) for _ in range(count - 1))]))
    return stages


def units(stages: nn.ModuleList) -> Iterator[nn.Module]:
    """All units of all stages, in their order."""
    for stage in stages:
        assert isinstance(stage, Stage)
        yield from stage.blocks


class Stem(nn.Module):
    """A ResNet without its head, [B, C, H, W] → [B, channels, H / stride, W / stride] (`StemConfig`)."""

    def __init__(self, config: StemConfig, in_channels: int) -> None:
        super().__init__()
        self.stem = StemRoot(config, in_channels)
        self.stages = make_stages(config.blocks, config.width_factor, lambda *sizes: StemUnit(config, *sizes))

    def forward(self, images: Tensor, again: bool = False) -> Tensor:
        """`again`: keep the units' inputs alone, and compute each again in the backward pass."""
        x = run(self.stem, images, again)
        for unit in units(self.stages):
            x = run(unit, x, again)
        return x


class StemRootAlone(StemRoot):
    """The stem of a hybrid that has no more of a ResNet than its root, under timm's names for that."""

    def forward(self, images: Tensor, again: bool = False) -> Tensor:
        return checkpoint(super().forward, images, use_reentrant=False) if again else super().forward(images)


def make_stem(config: StemConfig, in_channels: int) -> Stem | StemRootAlone:
    """The ResNet before a hybrid's patches."""
    return Stem(config, in_channels) if config.blocks else StemRootAlone(config, in_channels)


def run(unit: nn.Module, x: Tensor, again: bool) -> Tensor:
    """A unit's output; with `again` its input alone is kept, and it is computed again in the backward pass."""
    return checkpoint(unit, x, use_reentrant=False) if again else unit(x)
