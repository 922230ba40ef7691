"""Settings of subsets. Light: no torch or numpy here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, reference

if TYPE_CHECKING:
    from stages.config import StageFunction

DEFAULT_NEAR = 6
"""Of 64 bits; docs/benchmarks.md has what is found and what is mistaken at each distance."""


class SubsetConfig(StageConfig):
    """A part of a data set: without what is in other data sets, then a fraction of each class. No image is copied.

    The fraction is one of what remains, so that it has its size and its balance whatever has been left out. A smaller
    fraction's samples are contained in a larger one's of the same seed.
    """

    kind: ClassVar[str] = "subset"
    version: ClassVar[int] = 2
    output: ClassVar[str] = "dataset"

    data: str = reference("dataset", "stage whose data set to take a part of")
    splits: tuple[str, ...] = Field(("train",), min_length=1, description="splits that are reduced; others stay whole")
    fraction: float = Field(1.0, gt=0, le=1, description="of each class that is kept, at least one sample")
    per_class: int | None = Field(None, ge=1, description="most samples of a class that are kept; excludes `fraction`")
    without: tuple[str, ...] = reference(
        "dataset", "stages with data sets whose images are left out, for example the evaluation's", default=()
    )
    without_splits: tuple[str, ...] = Field(
        ("validation", "test", "held_out", "held_out_test"),
        min_length=1,
        description="splits of those, as far as they have them",
    )
    near: int | None = Field(
        DEFAULT_NEAR, ge=0, le=16, description="differing bits of perceptual hashes for copies; null: equal pixels only"
    )
    name: str | None = Field(None, description="name of the data set; if absent, the other one's and what is kept")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fraction < 1 and self.per_class is not None:
            raise ValueError(f"give one of fraction and per_class, got {self.fraction} and {self.per_class}")
        if self.fraction == 1 and self.per_class is None and not self.without:
            raise ValueError("nothing is left out: set fraction below 1, per_class, or without")
        both = [name for name in self.splits if name in self.without_splits]
        if self.data in self.without and both:
            raise ValueError(
                f"without has '{self.data}' itself, and {', '.join(both)} would leave nothing of itself: "
                f"take it out of splits={list(self.splits)} or without_splits={list(self.without_splits)}"
            )
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.subset.run import run

        return run
