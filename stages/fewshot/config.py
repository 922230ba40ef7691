"""Settings of few-shot evaluation. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.config import added, reference
from stages.frozen.config import FrozenConfig

if TYPE_CHECKING:
    from stages.config import StageFunction

ClassSet = Literal["all", "seen", "held_out"]
Classifier = Literal["least_squares", "neighbours", "linear_probe"]
Policy = Literal["fixed", "validation", "leave_one_out", "global_rank"]


class FewshotConfig(FrozenConfig):
    """Regularised least squares from frozen features onto {-1, 1}, for a few images of each class.

    Either of `data` and `from`, whose features it then computes itself, or of one or several stages' `features`.
    """

    kind: ClassVar[str] = "fewshot"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "evaluation"

    data: str | None = reference("dataset", "stage whose data set to evaluate on", default=None)
    model: str | None = reference("model", "stage whose model gives the features", default=None, alias="from")
    features: tuple[str, ...] = reference("features", "stages whose features to evaluate, in place of both", default=())
    shots: tuple[int, ...] = Field((1, 5, 10, 25), min_length=1, description="training images of each class")
    draws: int = Field(20, ge=2, description="random choices of the training images, nested over shots")
    regularisation: float = Field(1024.0, gt=0, description="lambda; big_vision's is 2^10")
    class_sets: tuple[ClassSet, ...] | None = Field(
        None, description="which classes to tell apart; if absent, all that make sense for this model and data set"
    )

    regularisation_by: Policy = added("fixed", "how lambda is found: as it stands, or the best of `candidates`")
    candidates: tuple[float, ...] = added(
        tuple(2.0**power for power in range(-10, 20)), "values of lambda to choose from", min_length=1
    )
    validation_images: int = added(25, "images of each class, beyond the shots, that `validation` looks at", ge=1)
    classifiers: tuple[Classifier, ...] = added(("least_squares",), "what tells classes apart", min_length=1)
    neighbours: int = added(20, "nearest images that vote", ge=1)
    temperature: float = added(0.07, "of the votes: exp(cosine / temperature)", gt=0)
    probe_regularisation: float = added(1.0, "lambda of the linear probe: lambda / 2 times squared weights", gt=0)

    @field_validator("features", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value or ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(shots < 1 for shots in self.shots) or len(set(self.shots)) != len(self.shots):
            raise ValueError(f"shots={self.shots} must be different numbers of at least 1, for example (1, 5, 10, 25)")
        if any(value <= 0 for value in self.candidates) or len(set(self.candidates)) != len(self.candidates):
            raise ValueError(f"candidates={self.candidates} must be different numbers above 0, for example (1, 1024)")
        if len(set(self.classifiers)) != len(self.classifiers):
            raise ValueError(f"classifiers={self.classifiers}: name each one once")
        if len(set(self.features)) != len(self.features):
            raise ValueError(f"features={self.features}: name each stage once")
        self._check_source()
        return self

    def _check_source(self) -> None:
        if not self.features and (self.data is None or self.model is None):
            raise ValueError("name the stages of the data set and of the model, data and from, or those of features")
        if not self.features:
            return
        own = [name for name in ("baselines", "resolution", "stored_as") if getattr(self, name) != _default(name)]
        if self.data is not None or self.model is not None or own:
            said = ["data"] * (self.data is not None) + ["from"] * (self.model is not None) + own
            raise ValueError(f"features={list(self.features)} says {', '.join(said)} already: leave it out here")

    def without_effect(self) -> frozenset[str]:
        """What says how features are computed, where they are another stage's."""
        return frozenset({"baselines", "resolution", "stored_as", "input"}) if self.features else frozenset()

    @classmethod
    def function(cls) -> StageFunction:
        from stages.fewshot.run import run

        return run


def _default(name: str) -> Any:
    return FrozenConfig.model_fields[name].default
