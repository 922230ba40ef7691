"""Settings of few-shot evaluation. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from stages.classifiers.config import ClassifierSettings, ClassSet
from stages.config import reference
from stages.frozen.config import FrozenConfig

if TYPE_CHECKING:
    from stages.config import StageFunction


class FewshotConfig(ClassifierSettings, FrozenConfig):
    """Regularised least squares from frozen features onto {-1, 1}, for a few images of each class.

    Either of `data` and `from`, whose features it then computes itself, or of one or several stages' `features`.
    """

    kind: ClassVar[str] = "fewshot"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "evaluation"

    data: str | None = reference("dataset", "stage whose data set to evaluate on", default=None)
    model: str | None = reference("model", "stage whose model gives the features", default=None, alias="from")
    features: tuple[str, ...] = reference("features", "stages whose features to evaluate, in place of both", default=())
    class_sets: tuple[ClassSet, ...] | None = Field(
        None, description="which classes to tell apart; if absent, all that make sense for this model and data set"
    )

    @field_validator("features", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value or ()

    @model_validator(mode="after")
    def _check(self) -> Self:
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
