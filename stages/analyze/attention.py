"""Attention's probabilities, computed again beside the network's own forward pass.

Shapes: B images, D width, H heads, K = D / H, L tokens, R resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.models.blocks import Attention
from stages.models.vit import VisionTransformer

Tell = Callable[[int, Tensor], None]
"""Told a layer's number and its probabilities [B, H, L, L]."""


def probabilities(layer: Attention, x: Tensor) -> Tensor:
    """softmax((q kᵀ + bias) K^-1/2), [B, H, L, L], of what the layer is given, [B, L, D].

    Fused kernels never have them in memory, so they are computed from the layer's own queries and keys.
    """
    batch, tokens, width = x.shape
    qkv = layer.qkv(x).reshape(batch, tokens, 3, layer.num_heads, width // layer.num_heads)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    logits = q @ k.transpose(-2, -1)
    if layer.relative is not None:
        logits = logits + layer.relative(q)
    return torch.softmax(logits * q.shape[-1] ** -0.5, dim=-1)


def watch_attention(model: VisionTransformer, images: Tensor, tell: Tell) -> None:
    """Run the network on images [B, 3, R, R] without dropout, and tell each layer's probabilities as they come.

    One layer's at a time: all of a large network's do not fit into memory. What listens is there for this call alone,
    so that training never meets it.
    """
    attentions = [block.attn for block in model.blocks if isinstance(block.attn, Attention)]
    handles = [layer.register_forward_pre_hook(_listener(number, tell)) for number, layer in enumerate(attentions)]
    training = model.training
    try:
        with torch.no_grad():
            model.eval().encode(model.patch_embed(images))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


def attention_probabilities(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Those of all layers, each [B, H, L, L], for images [B, 3, R, R]."""
    found: list[Tensor] = []
    watch_attention(model, images, lambda layer, own: found.append(own))
    return found


def _listener(number: int, tell: Tell) -> Callable[[Any, tuple[Tensor, ...]], None]:
    return lambda layer, inputs: tell(number, probabilities(layer, inputs[0]))
