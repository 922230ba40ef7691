"""The Vision Transformer of "An Image is Worth 16x16 Words".

Shapes: B images, C classes, D width, H heads, K = D / H, L tokens, M hidden size of an MLP, R resolution.
Parameter names are those of timm, so that weights travel without a map.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stages.models.config import ModelConfig


class Attention(nn.Module):
    """Multi-head self-attention [B, L, D] → [B, L, D]; biases everywhere, scale K^-1/2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, L, K]
        mixed = explicit_attention(q, k, v) if x.device.type == "cpu" else fused_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ K^-1/2) v, written out: the faster form on CPUs. All [B, H, L, K]."""
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same through torch's fused kernels."""
    return functional.scaled_dot_product_attention(q, k, v)


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


class Block(nn.Module):
    """Pre-LN block: x + Drop(MHA(LN(x))), then x + Drop(MLP(LN(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.mlp = Mlp(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = x + functional.dropout(self.attn(self.norm1(x)), self.dropout, self.training)
        return x + functional.dropout(self.mlp(self.norm2(x)), self.dropout, self.training)


class PatchEmbedding(nn.Module):
    """One linear map of each patch [B, 3, R, R] → [B, patches, D], row by row."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.width, kernel_size=size, stride=size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class HiddenLayer(nn.Module):
    """The hidden layer of the pre-training head: a dense layer of the same width and tanh (paper, D.3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


class VisionTransformer(nn.Module):
    """Images [B, 3, R, R] in [-1, 1] → logits [B, C]. Uninitialised: call `initialize` or load weights."""

    def __init__(self, config: ModelConfig, resolution: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.resolution, self.num_classes = config, resolution, num_classes
        self.grid = (config.grid(resolution), config.grid(resolution))
        self.prefix_tokens = 1 if config.pool == "token" else 0
        tokens = self.prefix_tokens + self.grid[0] * self.grid[1]
        self.patch_embed = PatchEmbedding(config)
        if config.pool == "token":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.pre_logits = HiddenLayer(config.width) if config.head == "mlp_tanh" else nn.Identity()
        self.head = nn.Linear(config.width, num_classes)
        self.activation_checkpointing = False
        """Whether training keeps the blocks' inputs alone, and computes each block again in the backward pass."""

    def features(self, images: Tensor) -> Tensor:
        """What the last linear layer is given [B, D]: after the final norm, pooling and the hidden layer."""
        x = self.patch_embed(images)
        if self.config.pool == "token":
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = functional.dropout(x + self.pos_embed, self.config.dropout, self.training)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.norm(x)
        return self.pre_logits(x[:, 0] if self.config.pool == "token" else x.mean(dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def initialize(model: VisionTransformer, seed: int) -> None:
    """Draw all weights from `seed`, as `vit_jax/models_vit.py` does.

    Xavier uniform for q, k, v (each by itself), output and MLP kernels; MLP biases N(0, 1e-6); LeCun
    normal, truncated, for patches and the head's hidden layer; position embeddings N(0, 0.02); class
    token and last layer zero, its bias the configured one. Every tensor has a generator of its own, keyed
    by its name, so that none depends on what else there is.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            _initialize_one(name, parameter, model.config, generator)


def _initialize_one(name: str, parameter: Tensor, config: ModelConfig, generator: torch.Generator) -> None:
    kind = name.rsplit(".", 2)[-2:] if "." in name else [name, ""]
    match kind:
        case ["pos_embed", _]:
            parameter.normal_(0.0, 0.02, generator=generator)
        case ["cls_token", _]:
            parameter.zero_()
        case ["head", "weight"]:
            parameter.zero_()
        case ["head", "bias"]:
            parameter.fill_(config.head_bias)
        case ["norm" | "norm1" | "norm2", "weight"]:
            parameter.fill_(1.0)
        case ["qkv", "weight"]:
            for part in parameter.chunk(3):
                _xavier_uniform(part, generator)
        case ["fc1" | "fc2", "bias"]:
            parameter.normal_(0.0, 1e-6, generator=generator)
        case ["proj", "weight"] if parameter.ndim == 4:
            _lecun_normal(parameter, parameter[0].numel(), generator)
        case ["fc", "weight"]:
            _lecun_normal(parameter, parameter.shape[1], generator)
        case [_, "weight"]:
            _xavier_uniform(parameter, generator)
        case _:
            parameter.zero_()


def _xavier_uniform(weight: Tensor, generator: torch.Generator) -> None:
    bound = math.sqrt(6.0 / (weight.shape[0] + weight.shape[1]))
    weight.uniform_(-bound, bound, generator=generator)


def _lecun_normal(weight: Tensor, fan_in: int, generator: torch.Generator) -> None:
    # Truncated at two deviations; the constant restores the variance that truncation takes, as jax does.
    deviation = math.sqrt(1.0 / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(weight, 0.0, deviation, -2 * deviation, 2 * deviation, generator=generator)
