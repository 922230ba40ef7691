"""The layers of a Vision Transformer.

Shapes: B images, D width, H heads, K = D / H, L tokens, M hidden size of an MLP. Parameter names are those of timm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.models.config import ModelConfig
from stages.models.positions import LearnedPositions2d, RelativePositions, sincos_1d, sincos_2d
from stages.models.resnet import make_stem


class WithPositions(nn.Module):
    """A module that may have position embeddings of its own, to be added to its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed: nn.Parameter | None = None
        self.positions: LearnedPositions2d | None = None
        self.register_buffer("fixed_positions", None, persistent=False)

    def make_positions(self, config: ModelConfig, grid: tuple[int, int]) -> None:
        """Make those of the config's kind, for the class token, if there is one, and a grid of patches."""
        prefix, width = config.prefix_tokens, config.width
        match config.position:
            case "learned":
                self.pos_embed = nn.Parameter(torch.zeros(1, prefix + grid[0] * grid[1], width))
            case "learned_2d":
                self.positions = LearnedPositions2d(grid, prefix, width)
            case "sincos_1d":
                self.fixed_positions = sincos_1d(grid, prefix, width)
            case "sincos_2d":
                self.fixed_positions = sincos_2d(grid, prefix, width)

    def position_embeddings(self) -> Tensor | None:
        """[1, L, D], or None where it has none."""
        if self.pos_embed is not None:
            return self.pos_embed
        if self.positions is not None:
            return self.positions()
        if self.fixed_positions is None:
            return None
        # In training, weights may be bf16 while buffers stay as they were.
        return self.fixed_positions.to(next(self.parameters()).dtype)


class Attention(nn.Module):
    """Multi-head self-attention [B, L, D] → [B, L, D]; biases everywhere, scale K^-1/2."""

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        relative = config.position == "relative"
        self.relative = RelativePositions(tokens, config.num_heads, config.width) if relative else None

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, L, K]
        mixed = attention(q, k, v, self.relative(q) if self.relative is not None else None)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention in whichever form is faster on the tensors' device. All [B, H, L, K]; `bias` [B, H, L, L]."""
    form = explicit_attention if q.device.type == "cpu" else fused_attention
    return form(q, k, v, bias)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax((q kᵀ + bias) K^-1/2) v, written out: the faster form on CPUs. All [B, H, L, K]; `bias` [B, H, L, L]."""
    logits = q @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return torch.softmax(logits * q.shape[-1] ** -0.5, dim=-1) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same through torch's fused kernels."""
    scaled = bias * q.shape[-1] ** -0.5 if bias is not None else None
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=scaled)


class Mlp(nn.Module):
    """Two dense layers with GELU between them, [B, L, D] → [B, L, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.width)
        self.dropout = config.dropout
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.fc1(x), approximate=self.approximate)
        return self.fc2(functional.dropout(x, self.dropout, self.training))


class Block(WithPositions):
    """Pre-LN block: x + Drop(MHA(LN(x))), then x + Drop(MLP(LN(x))).

    `grid` is given to one that adds position embeddings of its own first. `skipped` is the probability that an image
    skips a branch in training (stochastic depth, arXiv:1603.09382).
    """

    def __init__(self, config: ModelConfig, tokens: int, *, grid: tuple[int, int] | None, skipped: float) -> None:
        super().__init__()
        if grid is not None:
            self.make_positions(config, grid)
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, tokens)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.mlp = Mlp(config)
        self.dropout, self.skipped = config.dropout, skipped

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """`shared` are position embeddings that all blocks add."""
        own = self.position_embeddings() if shared is None else shared
        x = x if own is None else x + own
        x = x + self._branch(self.attn(self.norm1(x)))
        return x + self._branch(self.mlp(self.norm2(x)))

    def _branch(self, x: Tensor) -> Tensor:
        x = functional.dropout(x, self.dropout, self.training)
        return skip_images(x, self.skipped) if self.skipped and self.training else x


def skip_images(x: Tensor, probability: float) -> Tensor:
    """Zero for some images, and more for the others, so that the mean stays. [B, L, D]"""
    kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= probability
    return x * (kept.to(x.dtype) / (1 - probability))


class PatchEmbedding(nn.Module):
    """One linear map of each patch [B, 3, R, R] → [B, patches, D], row by row. A hybrid's are cut from a stem's map."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, channels = config.patch_size, config.in_channels
        self.backbone = make_stem(config.stem, channels) if config.stem is not None else None
        inputs = config.stem.channels if config.stem is not None else channels
        self.proj = nn.Conv2d(inputs, config.width, kernel_size=size, stride=size)

    def forward(self, images: Tensor, again: bool = False) -> Tensor:
        """`again`: a stem is computed again in the backward pass."""
        x = images if self.backbone is None else self.backbone(images, again)
        return self.proj(x).flatten(2).transpose(1, 2)


class AttentionPool(nn.Module):
    """A learned query attends to all tokens, [B, L, D] → [B, D], then an MLP (big_vision `models/vit.py`, MAPHead)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        # Without dropout, as there: the token that it makes is not one of many.
        self.mlp = Mlp(config.model_copy(update={"dropout": 0.0}))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q = self.q(self.latent).reshape(1, 1, self.num_heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        kv = self.kv(x).reshape(batch, tokens, 2, self.num_heads, width // self.num_heads)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.proj(attention(q, k, v).transpose(1, 2).reshape(batch, width))
        return pooled + self.mlp(self.norm(pooled))


class HiddenLayer(nn.Module):
    """The hidden layer of the pre-training head: a dense layer of the same width, and tanh (paper, D.3) or GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.width, config.width)
        self.with_tanh = config.head == "mlp_tanh"
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return torch.tanh(x) if self.with_tanh else functional.gelu(x, approximate=self.approximate)
