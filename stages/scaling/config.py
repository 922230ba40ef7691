"""Settings of the figures over several runs. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.config import StageConfig, reference

if TYPE_CHECKING:
    from stages.config import StageFunction


class ScalingConfig(StageConfig):
    """Accuracy against pretraining compute and against data-set size, few-shot against fine-tuned accuracy.

    Which evaluation belongs to which pretrained model is found by digests: neither names nor order matter.
    """

    kind: ClassVar[str] = "scaling"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "figures"

    pretrained: tuple[str, ...] = reference("model", "stages whose pretrained models to compare")
    finetuned: tuple[str, ...] = reference("model", "stages that have fine-tuned these models", default=())
    fewshot: tuple[str, ...] = reference("evaluation", "few-shot evaluations of these models", default=())
    metric: str = Field("test/accuracy", description="final figure of the fine-tuned models to show")
    shots: int = Field(5, ge=1, description="images of each class in the few-shot accuracy to show")
    class_set: Literal["all", "seen", "held_out"] = Field("all", description="classes of that accuracy")
    classifier: Literal["least_squares", "neighbours", "linear_probe"] = Field(
        "least_squares", description="what tells classes apart in that accuracy"
    )

    @field_validator("pretrained", "finetuned", "fewshot", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value or ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.pretrained:
            raise ValueError("pretrained=[]: name the stages whose pretrained models to compare")
        if not self.finetuned and not self.fewshot:
            raise ValueError(
                "finetuned and fewshot are empty: name the stages that evaluate the models, of either kind"
            )
        for field in ("pretrained", "finetuned", "fewshot"):
            names = getattr(self, field)
            if len(set(names)) < len(names):
                raise ValueError(f"{field}={list(names)}: name each stage once")
        if self.metric.rpartition("/")[2] != "accuracy":
            raise ValueError(f"metric={self.metric}: expected an accuracy, such as test/accuracy or raw/test/accuracy")
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.scaling.run import run

        return run
