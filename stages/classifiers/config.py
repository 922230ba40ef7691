"""Settings of classifiers on frozen features. Light: no torch or numpy here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.config import Config, added, only_with

ClassSet = Literal["all", "seen", "held_out"]
Classifier = Literal["least_squares", "neighbours", "linear_probe"]
Policy = Literal["fixed", "validation", "leave_one_out", "global_rank"]


class ClassifierSettings(Config):
    """What tells classes apart by a few images of each, and how these are drawn."""

    shots: tuple[int, ...] = Field((1, 5, 10, 25), min_length=1, description="training images of each class")
    draws: int = Field(20, ge=2, description="random choices of the training images, nested over shots")
    regularisation: float = Field(1024.0, gt=0, description="lambda; big_vision's is 2^10")
    regularisation_by: Policy = added("fixed", "how lambda is found: as it stands, or the best of `candidates`")
    candidates: tuple[float, ...] = added(
        tuple(2.0**power for power in range(-10, 20)),
        "values of lambda to choose from",
        marks=only_with(regularisation_by=("validation", "leave_one_out", "global_rank")),
        min_length=1,
    )
    validation_images: int = added(
        25,
        "images of each class, beyond the shots, that `validation` looks at",
        marks=only_with(regularisation_by="validation"),
        ge=1,
    )
    classifiers: tuple[Classifier, ...] = added(("least_squares",), "what tells classes apart", min_length=1)
    neighbours: int = added(20, "nearest images that vote", marks=only_with(classifiers="neighbours"), ge=1)
    temperature: float = added(
        0.07, "of the votes: exp(cosine / temperature)", marks=only_with(classifiers="neighbours"), gt=0
    )
    probe_regularisation: float = added(
        1.0,
        "lambda of the linear probe: lambda / 2 times squared weights",
        marks=only_with(classifiers="linear_probe"),
        gt=0,
    )

    @model_validator(mode="after")
    def _check_classifiers(self) -> Self:
        if any(shots < 1 for shots in self.shots) or len(set(self.shots)) != len(self.shots):
            raise ValueError(f"shots={self.shots} must be different numbers of at least 1, for example (1, 5, 10, 25)")
        if any(value <= 0 for value in self.candidates) or len(set(self.candidates)) != len(self.candidates):
            raise ValueError(f"candidates={self.candidates} must be different numbers above 0, for example (1, 1024)")
        if len(set(self.classifiers)) != len(self.classifiers):
            raise ValueError(f"classifiers={self.classifiers}: name each one once")
        return self

    @property
    def most_images(self) -> int:
        """Images of each class that a draw looks at."""
        further = self.validation_images if self.regularisation_by == "validation" else 0
        return max(self.shots) + further
