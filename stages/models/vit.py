"""The Vision Transformer of "An Image is Worth 16x16 Words".

Shapes: B images, C classes, D width, L tokens, R resolution. Parameter names are those of timm, so that weights travel
without a map.
"""

from __future__ import annotations

from torch import Tensor, cat, nn, zeros
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stages.models.blocks import AttentionPool, Block, HiddenLayer, PatchEmbedding, WithPositions
from stages.models.config import ModelConfig


class VisionTransformer(WithPositions):
    """Images [B, 3, R, R] in [-1, 1] → logits [B, C], or features where there are no classes (C = 0).

    Uninitialised: call `initialize` or load weights.
    """

    def __init__(self, config: ModelConfig, resolution: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.resolution, self.num_classes = config, resolution, num_classes
        self.grid = (config.grid(resolution), config.grid(resolution))
        tokens = config.tokens(resolution)
        self.patch_embed = PatchEmbedding(config)
        if config.pool == "token":
            self.cls_token = nn.Parameter(zeros(1, 1, config.width))
        if config.position_at != "each_layer":
            self.make_positions(config, self.grid)
        own = self.grid if config.position_at == "each_layer" else None
        step = config.stochastic_depth / max(1, config.depth - 1)
        self.blocks = nn.ModuleList(Block(config, tokens, grid=own, skipped=i * step) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.attn_pool = AttentionPool(config) if config.pool == "attention" else None
        self.pre_logits = HiddenLayer(config) if config.head != "linear" else nn.Identity()
        self.head = nn.Linear(config.width, num_classes) if num_classes else nn.Identity()
        self.activation_checkpointing = False
        """Whether training keeps the inputs of blocks, and of a stem's units, alone, and computes each again."""

    def features(self, images: Tensor) -> Tensor:
        """What the last linear layer is given [B, D]: after the final norm, pooling and the hidden layer."""
        again = self.activation_checkpointing and self.training
        return self.pre_logits(self.pooled(self.encode(self.patch_embed(images, again))))

    def encode(self, patches: Tensor) -> Tensor:
        """The final norm of all tokens [B, L, D], from the patches' embeddings."""
        x = patches
        if self.config.pool == "token":
            x = cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        positions, shared = self.position_embeddings(), None
        if positions is not None and self.config.position_at == "each_layer_shared":
            positions, shared = None, positions
        x = functional.dropout(x if positions is None else x + positions, self.config.dropout, self.training)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, shared, use_reentrant=False)
            else:
                x = block(x, shared)
        return self.norm(x)

    def pooled(self, tokens: Tensor) -> Tensor:
        """One vector an image [B, D], from all tokens."""
        if self.attn_pool is not None:
            return self.attn_pool(tokens)
        return tokens[:, 0] if self.config.pool == "token" else tokens.mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
