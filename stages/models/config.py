"""The shape of a Vision Transformer. Light: no torch here."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cluster.errors import UserError
from stages.config import Config

VARIANTS: dict[str, dict[str, int]] = {
    # Ti to H: `vit_jax/configs/models.py` of the paper's code and the paper's Table 1; g and G: big_vision.
    "Ti": {"width": 192, "depth": 12, "mlp_dim": 768, "num_heads": 3},
    "S": {"width": 384, "depth": 12, "mlp_dim": 1536, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "mlp_dim": 3072, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "mlp_dim": 4096, "num_heads": 16},
    "H": {"width": 1280, "depth": 32, "mlp_dim": 5120, "num_heads": 16},
    "g": {"width": 1408, "depth": 40, "mlp_dim": 6144, "num_heads": 16},
    "G": {"width": 1664, "depth": 48, "mlp_dim": 8192, "num_heads": 16},
}


class ModelConfig(Config):
    """A variant by name, or width, depth, mlp_dim and num_heads; what is given beside a variant overrides it."""

    variant: Literal["Ti", "S", "B", "L", "H", "g", "G"] | None = Field(None, description="named shape")
    width: int = Field(0, ge=0, description="size of a token's vector")
    depth: int = Field(0, ge=0, description="number of blocks")
    mlp_dim: int = Field(0, ge=0, description="hidden size of a block's MLP")
    num_heads: int = Field(0, ge=0, description="attention heads")
    patch_size: int = Field(16, gt=0, description="side of a patch in pixels")
    in_channels: int = Field(3, gt=0, description="image channels")
    pool: Literal["token", "average"] = Field("token", description="class token, or mean over the patches' tokens")
    head: Literal["linear", "mlp_tanh"] = Field("linear", description="linear, or one hidden layer with tanh first")
    activation: Literal["gelu_tanh", "gelu"] = Field("gelu_tanh", description="the paper's code uses the tanh form")
    layer_norm_epsilon: float = Field(1e-6, gt=0, description="epsilon of every LayerNorm")
    dropout: float = Field(0.0, ge=0, lt=1, description="after position embeddings, attention and both MLP layers")
    head_bias: float = Field(0.0, description="initial bias of the last layer; -10 suits many-class sigmoid losses")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_variant(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("variant") in VARIANTS:
            return {**VARIANTS[values["variant"]], **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        missing = [name for name in ("width", "depth", "mlp_dim", "num_heads") if getattr(self, name) == 0]
        if missing:
            raise ValueError(f"{', '.join(missing)} not given: name a variant ({', '.join(VARIANTS)}) or give them all")
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width} is not a multiple of num_heads={self.num_heads}")
        return self

    def grid(self, resolution: int) -> int:
        """Patches along one side of a square image of `resolution` pixels. Raises UserError where they do not fit."""
        if resolution % self.patch_size:
            lower = max(1, resolution // self.patch_size) * self.patch_size
            raise UserError(
                f"resolution={resolution} is not a multiple of patch_size={self.patch_size}: "
                f"try {lower} or {lower + self.patch_size}"
            )
        return resolution // self.patch_size
