"""The shapes of the networks, and their names. Light: no torch here."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, GetJsonSchemaHandler, Tag, TypeAdapter, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from cluster.errors import UserError
from stages.config import Config, added
from stages.models.resnet_config import BitConfig, StemConfig, also_by_name

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
HYBRIDS: dict[str, tuple[str, tuple[int, ...], int]] = {
    # Size, blocks of the ResNet's stages, patch size on its last map: `vit_jax/configs/models.py`; R50+B/32 and
    # R50+L/16 as the paper's section 4.1 has them. R+Ti/16 is called so there, though its tokens are 32 pixels apart.
    "R+Ti/16": ("Ti", (), 8),
    "R26+S/32": ("S", (2, 2, 2, 2), 1),
    "R26+B/32": ("B", (2, 2, 2, 2), 1),
    "R50+B/16": ("B", (3, 4, 9), 1),
    "R50+B/32": ("B", (3, 4, 6, 3), 1),
    "R50+L/16": ("L", (3, 4, 9), 1),
    "R50+L/32": ("L", (3, 4, 6, 3), 1),
}
NAME = rf"(?:R\d*\+)?(?:ViT-)?(?:{'|'.join(VARIANTS)})(?:/[1-9]\d*)?"
"""What names of networks look like; not every hybrid of that form is one."""
Pool = Literal["token", "average", "attention"]
Position = Literal["learned", "none", "learned_2d", "relative", "sincos_2d", "sincos_1d"]


class ModelConfig(Config):
    """A Vision Transformer, or a hybrid: by name, such as B/16 or R50+B/16, or by its sizes.

    A variant is a size, or a whole name; what is given beside it overrides it.
    """

    variant: Literal["Ti", "S", "B", "L", "H", "g", "G"] | None = Field(
        None, description="Ti, S, B, L, H, g or G, or a whole name such as B/16 and R50+B/16"
    )
    width: int = Field(0, ge=0, description="size of a token's vector; the variant's if absent")
    depth: int = Field(0, ge=0, description="number of blocks; the variant's if absent")
    mlp_dim: int = Field(0, ge=0, description="hidden size of a block's MLP; the variant's if absent")
    num_heads: int = Field(0, ge=0, description="attention heads; the variant's if absent")
    patch_size: int = Field(16, gt=0, description="side of a patch in pixels, or in elements of the stem's map")
    stem: StemConfig | None = added(None, "ResNet whose last map a hybrid's patches are cut from")
    in_channels: int = Field(3, gt=0, description="image channels")
    position: Position = added("learned", "position embeddings (paper, D.4); learned is 1-D, sincos is fixed")
    position_at: Literal["stem", "each_layer", "each_layer_shared"] = added(
        "stem", "where they are added: before the blocks, or at every block, each with its own or all with the same"
    )
    pool: Pool = Field(
        "token", description="class token, mean over the patches' tokens, or attention to a learned query"
    )
    head: Literal["linear", "mlp_tanh", "mlp_gelu"] = Field(
        "linear", description="linear, or one hidden layer first, with tanh as in the paper's code, or with GELU"
    )
    activation: Literal["gelu_tanh", "gelu"] = Field("gelu_tanh", description="the paper's code uses the tanh form")
    layer_norm_epsilon: float = Field(1e-6, gt=0, description="epsilon of every LayerNorm")
    dropout: float = Field(0.0, ge=0, lt=1, description="after position embeddings, attention and both MLP layers")
    stochastic_depth: float = added(
        0.0, "probability that an image skips the last block's branches; less before, in a straight line", ge=0, lt=1
    )
    head_bias: float = Field(0.0, description="initial bias of the last layer; -10 suits many-class sigmoid losses")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return also_by_name(super().__get_pydantic_json_schema__(core_schema, handler), handler, NAME)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_variant(cls, values: Any) -> Any:
        values = {"variant": values} if isinstance(values, str) else values
        if isinstance(values, dict) and isinstance(values.get("variant"), str):
            named = vit_by_name(values["variant"])
            return {**named, **values, "variant": named["variant"]}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        missing = [name for name in ("width", "depth", "mlp_dim", "num_heads") if getattr(self, name) == 0]
        if missing:
            raise ValueError(f"{', '.join(missing)} not given: name a variant ({', '.join(VARIANTS)}) or give them all")
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width} is not a multiple of num_heads={self.num_heads}: try {self._heads()}")
        parts = {"learned_2d": 2, "sincos_1d": 2, "sincos_2d": 4}.get(self.position, 1)
        if self.width % parts:
            raise ValueError(f"width={self.width} is not a multiple of {parts}, as position={self.position} needs")
        if self.position in ("none", "relative") and self.position_at != "stem":
            raise ValueError(f"position_at={self.position_at}: position={self.position} adds nothing anywhere")
        return self

    def _heads(self) -> str:
        """The nearest numbers of heads that go with the width: one below, one above."""
        fits = [count for count in range(1, self.width + 1) if self.width % count == 0]
        below = max(count for count in fits if count <= self.num_heads or count == 1)
        near = sorted({below, min((count for count in fits if count > self.num_heads), default=below)})
        return " or ".join(f"num_heads={count}" for count in near)

    @property
    def title(self) -> str:
        """What people call it: ViT-B/16, R50+ViT-B/16."""
        size = self.variant or f"{self.width}x{self.depth}"
        if self.stem is None:
            return f"ViT-{size}/{self.patch_size}"
        own = (size, self.stem.blocks, self.patch_size)
        named = (name.replace("+", "+ViT-") for name, shape in HYBRIDS.items() if shape == own)
        blocks = list(self.stem.blocks) or ""
        return next(named, f"R{blocks}+ViT-{size}/{self.stride}")

    @property
    def stride(self) -> int:
        """Pixels of the image along one side of a patch."""
        return self.patch_size * (self.stem.stride if self.stem is not None else 1)

    @property
    def features(self) -> int:
        """Size of the vector that the last layer is given."""
        return self.width

    @property
    def prefix_tokens(self) -> int:
        """Tokens before those of the patches: the class token, where there is one."""
        return 1 if self.pool == "token" else 0

    def grid(self, resolution: int) -> int:
        """Patches along one side of a square image of `resolution` pixels. Raises UserError where they do not fit."""
        if resolution % self.stride:
            lower = max(1, resolution // self.stride) * self.stride
            what = "patch_size" if self.stem is None else "the stem's stride times patch_size"
            near = f"try {lower} or {lower + self.stride}"
            raise UserError(f"resolution={resolution} is not a multiple of {what}={self.stride}: {near}")
        return resolution // self.stride

    def tokens(self, resolution: int) -> int:
        """Tokens of a square image."""
        return self.grid(resolution) ** 2 + self.prefix_tokens

    def for_finetuning(self, dropout: float, stochastic_depth: float) -> ModelConfig:
        """The same network with a linear head, the old one being dropped whole (paper, B.1.1), and regularised so."""
        own = {"dropout": dropout, "stochastic_depth": stochastic_depth}
        return self.model_copy(update={"head": "linear", "head_bias": 0.0, **own})


def as_vit(config: AnyModel) -> ModelConfig:
    """The same, of whoever has seen to it that it is no ResNet."""
    assert isinstance(config, ModelConfig), config
    return config


def vit_by_name(name: str) -> dict[str, Any]:
    """The fields of Ti to G, of B/16 and the like, or of a hybrid such as R50+B/16. Raises ValueError.

    `ViT-B/16` and `R50+ViT-B/16` mean the same.
    """
    short = name.replace("ViT-", "")
    if short in VARIANTS:
        return {"variant": short, **VARIANTS[short]}
    if short in HYBRIDS:
        size, blocks, patch_size = HYBRIDS[short]
        return {"variant": size, **VARIANTS[size], "stem": {"blocks": blocks}, "patch_size": patch_size}
    found = re.fullmatch(rf"({'|'.join(VARIANTS)})/([1-9]\d*)", short)
    if found is None:
        raise ValueError(
            f"variant: got '{name}', expected one of {', '.join(VARIANTS)}, alone or with a patch size such as B/16; "
            f"{', '.join(HYBRIDS)}; or a ResNet such as R50x1"
        )
    return {"variant": found[1], **VARIANTS[found[1]], "patch_size": int(found[2])}


def _family(value: Any) -> str:
    """Which of the two a config is of, whether it is written as a name, as fields, or is one already."""
    if isinstance(value, BitConfig):
        return "bit"
    fields = value if isinstance(value, dict) else {"variant": value}
    named = isinstance(fields.get("variant"), str) and re.match(r"R\d+x", fields["variant"])
    return "bit" if named or "blocks" in fields else "vit"


FAMILIES = ("vit", "bit")
AnyModel = Annotated[Annotated[ModelConfig, Tag("vit")] | Annotated[BitConfig, Tag("bit")], Discriminator(_family)]
"""A network by name or by its fields."""
_ADAPTER: TypeAdapter[ModelConfig | BitConfig] = TypeAdapter(AnyModel)


def model_config(value: Any) -> ModelConfig | BitConfig:
    """The config of either family, from a name, or from fields as they are stored. Raises ValidationError."""
    return _ADAPTER.validate_python(value)
