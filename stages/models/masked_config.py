"""Masked patch prediction as a workflow file says it, and the size of its head. Light: no torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.config import Config
from stages.models.config import AnyModel, ModelConfig

LEVELS = 8
"""Of each colour channel: three bits (paper, B.1.2)."""
COLOURS = LEVELS**3
"""Classes of a masked patch's mean colour."""
CELLS = {"mean_colour": 1, "downsized": 4}
"""Along a side of a patch, the parts whose mean colours are predicted."""


class SupervisedConfig(Config):
    """The class labels are learned."""

    kind: Literal["supervised"] = "supervised"


class MaskedConfig(Config):
    """Some patches' embeddings are corrupted, and what those patches show is learned (paper, B.1.2)."""

    kind: Literal["masked"] = "masked"
    ratio: float = Field(0.5, gt=0, lt=1, description="part of an image's patches that is corrupted and predicted")
    target: Literal["mean_colour", "downsized", "pixels"] = Field(
        "mean_colour", description="one of 512 mean colours, those of 4 × 4 parts, or all pixels by squared error"
    )
    mask_share: float = Field(0.8, ge=0, le=1, description="of corrupted patches, those that the mask stands for")
    random_share: float = Field(
        0.1, ge=0, le=1, description="those that another patch of the image stands for; the rest stay as they are"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share={self.mask_share} and random_share={self.random_share} are parts of the corrupted ones: "
                "together at most 1"
            )
        return self

    @property
    def has_classes(self) -> bool:
        """Whether what is predicted are classes, of which a part is right."""
        return self.target != "pixels"

    def corrupted(self, patches: int) -> int:
        """Patches of an image that are corrupted, of so many: always the same number, and at least one."""
        return max(1, round(self.ratio * patches))

    def outputs(self, model: ModelConfig) -> int:
        """Numbers that the head predicts of one patch."""
        if self.target == "pixels":
            return model.stride**2 * model.in_channels
        return CELLS[self.target] ** 2 * COLOURS

    def check(self, model: AnyModel, resolution: int) -> None:
        """Raises ValueError where this network cannot learn so, or would be left with parts that have learned nothing.

        A ResNet below the patches would see what a corrupted patch shows in its neighbours; attention pooling and the
        hidden layer of a head belong to class labels.
        """
        if not isinstance(model, ModelConfig) or model.stem is not None:
            raise ValueError("objective=masked is for networks that see patches of the image itself, without a ResNet")
        for field, needed in (("pool", ("token", "average")), ("head", ("linear",)), ("head_bias", (0.0,))):
            if (own := getattr(model, field)) not in needed:
                raise ValueError(
                    f"model.{field}={own} belongs to class labels, which objective=masked leaves aside: "
                    f"try {' or '.join(map(str, needed))}"
                )
        if model.grid(resolution) < 2:
            raise ValueError(
                f"resolution={resolution} is one patch alone: objective=masked needs others to tell it from"
            )
        if self.target == "downsized" and model.stride < CELLS[self.target]:
            raise ValueError(f"target=downsized needs patches of at least 4 pixels, got patch_size={model.patch_size}")
