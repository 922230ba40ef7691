"""BiT's ResNets, the paper's baseline: activations before the convolutions (`models/bit_paper.py` of big_vision).

Shapes: B images, C classes, F features, R resolution. Parameter names are those of timm's `resnetv2`, but the head: a
linear layer `head` as all networks have it here, where timm has a convolution of one by one, `head.fc`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from stages.models.resnet import StandardConv, group_norm, make_stages, run, units
from stages.models.resnet_config import BitConfig


class BitRoot(nn.Module):
    """A convolution and pooling, [B, 3, R, R] → [B, 64 k, R / 4, R / 4]. No norm: the first unit begins with one."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.conv = StandardConv(config.in_channels, 64 * config.width_factor, 7, stride=2, epsilon=config.epsilon)

    def forward(self, images: Tensor) -> Tensor:
        # Zeros around, which a maximum of negative numbers takes, as BiT has it; pooling by itself would add -∞.
        return functional.max_pool2d(functional.pad(self.conv(images), (1, 1, 1, 1)), 3, stride=2)


class BitProjection(nn.Module):
    """What stands in for a unit's input where its output has another shape."""

    def __init__(self, config: BitConfig, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = StandardConv(inputs, outputs, 1, stride=stride, epsilon=config.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class BitUnit(nn.Module):
    """A bottleneck with norm and ReLU before each convolution, the stride in the middle, nothing after the sum."""

    def __init__(self, config: BitConfig, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs, epsilon, own = 4 * width, config.group_norm_epsilon, config.epsilon
        projected = inputs != outputs or stride != 1
        self.downsample = BitProjection(config, inputs, outputs, stride) if projected else None
        self.norm1 = group_norm(inputs, epsilon)
        self.conv1 = StandardConv(inputs, width, 1, epsilon=own)
        self.norm2 = group_norm(width, epsilon)
        self.conv2 = StandardConv(width, width, 3, stride=stride, epsilon=own)
        self.norm3 = group_norm(width, epsilon)
        self.conv3 = StandardConv(width, outputs, 1, epsilon=own)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(active)
        x = self.conv1(active)
        x = self.conv2(functional.relu(self.norm2(x)))
        return self.conv3(functional.relu(self.norm3(x))) + shortcut


class BitResNet(nn.Module):
    """Images [B, 3, R, R] in [-1, 1] → logits [B, C]. Uninitialised: call `initialize` or load weights."""

    def __init__(self, config: BitConfig, resolution: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.resolution, self.num_classes = config, resolution, num_classes
        self.grid = (config.grid(resolution), config.grid(resolution))
        self.stem = BitRoot(config)
        self.stages = make_stages(config.blocks, config.width_factor, lambda *sizes: BitUnit(config, *sizes))
        self.norm = group_norm(config.features, config.group_norm_epsilon)
        self.head = nn.Linear(config.features, num_classes)
        self.activation_checkpointing = False
        """Whether training keeps the units' inputs alone, and computes each unit again in the backward pass."""

    @property
    def blocks(self) -> list[nn.Module]:
        """All bottlenecks, in their order."""
        return list(units(self.stages))

    def features(self, images: Tensor) -> Tensor:
        """What the last linear layer is given [B, F]: the mean over the last map, after norm and ReLU."""
        again = self.activation_checkpointing and self.training
        x = run(self.stem, images, again)
        for unit in self.blocks:
            x = run(unit, x, again)
        return functional.relu(self.norm(x)).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
