"""What the network sees: bytes travel, and become numbers on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(images: Tensor) -> Tensor:
    """Grey levels [b, R, R, 3], uint8 or mixed, to float32 [b, 3, R, R] in [-1, 1], on the tensor's own device."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).sub_(127.5).div_(127.5)
