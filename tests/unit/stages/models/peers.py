"""The libraries that our networks are held against. Imported where a test needs them: it takes seconds."""

from __future__ import annotations

from typing import Any

import torch


def import_timm() -> Any:
    """timm, which imports torchvision, which has no build for CPUs: its two operators are said to be there."""
    if "torchvision::nms" not in torch._C._dispatch_get_all_op_names():
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    import timm

    return timm


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Make every parameter random, so that no part of a network can be left out unnoticed: a zero head hides all.

    Kernels keep the size of a signal, so that deep networks neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not name.endswith(("pos_embed", "cls_token")):
                deviation = parameter[0].numel() ** -0.5
                parameter.normal_(0.0, deviation, generator=generator)
            elif name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, 0.3, generator=generator)
