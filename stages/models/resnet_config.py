"""The shapes of ResNets: whole ones (BiT), and those that a hybrid's patches are cut from. Light: no torch here."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from cluster.errors import UserError
from stages.config import Config, added

BLOCKS: dict[int, tuple[int, ...]] = {
    # By the number of layers: big_vision `models/bit.py`.
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
NAME = r"R(\d+)x(\d+)"
"""Layers and width factor."""
GROUPS = 32
"""Of every GroupNorm."""


class StemConfig(Config):
    """A ResNet of the first kind, activation after the sum, without its head: what comes before a hybrid's patches.

    Its root halves the image twice; each stage after the first halves it again. Convolutions have standardised
    weights and "SAME" padding, norms are GroupNorm (`vit_jax/models_resnet.py`).
    """

    blocks: tuple[int, ...] = Field(
        (), max_length=4, description="bottlenecks of each stage; none leaves the root alone"
    )
    width_factor: int = Field(1, ge=1, description="times 64 channels in the root")
    epsilon: float = Field(1e-5, gt=0, description="added to the deviation of a kernel's weights, or their variance")
    epsilon_of: Literal["deviation", "variance"] = added(
        "deviation", "what epsilon is added to: the paper's code has the deviation, timm and transformers the variance"
    )
    group_norm_epsilon: float = Field(1e-6, gt=0, description="of every GroupNorm")

    @field_validator("blocks")
    @classmethod
    def _check_blocks(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 1 for count in blocks):
            raise ValueError(f"blocks={list(blocks)}: expected 1 or more in each stage")
        return blocks

    @property
    def stride(self) -> int:
        """Pixels of the image along one side of an element of the last map."""
        return 4 * 2 ** max(0, len(self.blocks) - 1)

    @property
    def channels(self) -> int:
        """Of the last map."""
        root = 64 * self.width_factor
        return root * 4 * 2 ** (len(self.blocks) - 1) if self.blocks else root


class BitConfig(Config):
    """A BiT ResNet, activation before the convolutions: the paper's baseline (`models/bit_paper.py` of big_vision).

    By name, such as R50x1, or by its blocks and width factor.
    """

    variant: str | None = Field(None, description="R50x1 and the like: layers and width factor")
    blocks: tuple[int, int, int, int] = Field(description="bottlenecks of each stage")
    width_factor: int = Field(1, ge=1, description="times 64 channels in the root")
    in_channels: int = Field(3, gt=0, description="image channels")
    head_bias: float = Field(0.0, description="initial bias of the last layer; -10 suits many-class sigmoid losses")
    epsilon: float = Field(1e-10, gt=0, description="added to the variance of a kernel's weights")
    group_norm_epsilon: float = Field(1e-5, gt=0, description="of every GroupNorm")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return also_by_name(super().__get_pydantic_json_schema__(core_schema, handler), handler, NAME)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_variant(cls, values: Any) -> Any:
        values = {"variant": values} if isinstance(values, str) else values
        if isinstance(values, dict) and isinstance(values.get("variant"), str):
            return {**bit_by_name(values["variant"]), **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.blocks) < 1:
            raise ValueError(f"blocks={list(self.blocks)}: expected 1 or more in each of the four stages")
        return self

    def for_finetuning(self, dropout: float, stochastic_depth: float) -> BitConfig:
        """The same network, whose head begins at zero. It has no dropout and no stochastic depth."""
        for name, value in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
            if value:
                raise UserError(f"{name}={value}: a ResNet has none: set it to 0")
        return self.model_copy(update={"head_bias": 0.0})

    @property
    def title(self) -> str:
        """What people call it: R50x1."""
        return self.variant or f"R{list(self.blocks)}x{self.width_factor}"

    @property
    def dropout(self) -> float:
        """It has none."""
        return 0.0

    @property
    def features(self) -> int:
        """Channels of the last map, which are averaged."""
        return 2048 * self.width_factor

    def grid(self, resolution: int) -> int:
        """Elements along one side of the last map, of any square image. Raises UserError where there would be none."""
        if resolution < 1:
            raise UserError(f"resolution={resolution}: expected 1 or more")
        return -(-resolution // 32)


def also_by_name(found: JsonSchemaValue, handler: GetJsonSchemaHandler, pattern: str) -> JsonSchemaValue:
    """The JSON schema of a network's config that may also be written as its name, alone or as its variant."""
    name, schema = {"type": "string", "pattern": f"^(?:{pattern})$"}, handler.resolve_ref_schema(found)
    fields = {key: value for key, value in schema.items() if key != "required"}
    own = schema["properties"]["variant"]
    variant = {"anyOf": [name, {"type": "null"}], "default": None, "description": own["description"]}
    fields["properties"] = {**schema["properties"], "variant": variant}
    schema.clear()
    schema.update({"anyOf": [name, fields]})
    return found


def bit_by_name(name: str) -> dict[str, Any]:
    """The fields of R50x1 and the like. Raises ValueError."""
    found = re.fullmatch(NAME, name)
    if found is None or int(found[1]) not in BLOCKS or int(found[2]) < 1:
        known = ", ".join(f"R{layers}" for layers in BLOCKS)
        raise ValueError(f"got '{name}', expected one of {known}, then x and a width factor, such as R50x1")
    return {"variant": name, "blocks": BLOCKS[int(found[1])], "width_factor": int(found[2])}
