"""Settings of pretraining. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from stages.config import added, placement, reference
from stages.models.config import AnyModel
from stages.models.masked_config import MaskedConfig, SupervisedConfig
from stages.pretrain.fewshot_config import FewshotOnTheWay
from stages.training.config import TrainingConfig

if TYPE_CHECKING:
    from stages.config import StageFunction


BRANCH = ("trunk", "branch_at", "cooldown")


def _named(given: Any) -> Any:
    """`masked` is short for `{kind: masked}`."""
    return {"kind": given} if isinstance(given, str) else given


Objective = Annotated[Annotated[SupervisedConfig | MaskedConfig, Field(discriminator="kind")], BeforeValidator(_named)]


class PretrainConfig(TrainingConfig):
    """Train a network on a data set's `train` split, from scratch or from another stage's weights."""

    kind: ClassVar[str] = "pretrain"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "model"

    data: str = reference("dataset", "stage whose data set to train on")
    init_from: str | None = reference("model", "stage whose weights to begin with, head and all", default=None)
    model: AnyModel = Field(description="the network: by name, such as B/16, R50+B/16 or R50x1, or by its fields")
    resolution: int = Field(224, gt=0, description="side of the square training images in pixels")
    objective: Objective = added(
        SupervisedConfig(), "what is learned: the class labels, or without them what masked patches show"
    )
    trunk: str | None = reference("model", "pretrain stage to go on from, at branch_at, and to cool down", default=None)
    branch_at: int | None = Field(None, gt=0, description="update of the trunk's checkpoint that a branch goes on from")
    cooldown: int | None = Field(
        None, gt=0, description="updates after that, in which the rate falls to end_lr in a straight line"
    )

    fewshot: FewshotOnTheWay | None = placement(
        None, "few-shot evaluations of checkpoints while training goes on; none if absent"
    )
    fewshot_data: str | None = reference(
        "dataset", "stage whose data set these evaluations are on; the one that is trained on if absent", default=None
    )

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        self.model.grid(self.resolution)
        if self.model.in_channels != 3:
            raise ValueError(f"model.in_channels={self.model.in_channels}: images are read as RGB, so it must be 3")
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        if self.masked is None:
            return self
        self.masked.check(self.model, self.resolution)
        own = {
            "loss": (self.loss, "softmax"),
            "label_smoothing": (self.label_smoothing, 0.0),
            "input.mixup": (self.input.mixup, 0.0),
        }
        if given := [f"{name}={value}" for name, (value, default) in own.items() if value != default]:
            shown = ", ".join(given)
            raise ValueError(f"{shown}: of class labels, which objective=masked leaves aside: take it away")
        return self

    @model_validator(mode="after")
    def _check_fewshot(self) -> Self:
        if self.fewshot_data and self.fewshot is None:
            raise ValueError(
                f"fewshot_data={self.fewshot_data} is for evaluations on the way, and there are none: set "
                "fewshot.every, the updates between them, or take fewshot_data away"
            )
        if self.fewshot is not None:
            self.input.evaluation.check(self.resolution)
        return self

    @model_validator(mode="after")
    def _check_branch(self) -> Self:
        given = [name for name in BRANCH if getattr(self, name) is not None]
        if given and len(given) < len(BRANCH):
            raise ValueError(f"a branch needs all of {', '.join(BRANCH)}; got {', '.join(given)} alone")
        if given and self.init_from:
            raise ValueError(f"init_from={self.init_from}: a branch begins with its trunk's checkpoint: take one away")
        if self.branch_at is not None and self.updates is not None and self.branch_at > self.updates:
            raise ValueError(f"branch_at={self.branch_at:,} is after the trunk's {self.updates:,} updates")
        return self

    @property
    def masked(self) -> MaskedConfig | None:
        """How masked patches are predicted, where they are, in place of classes."""
        return self.objective if isinstance(self.objective, MaskedConfig) else None

    @property
    def begins_at(self) -> tuple[str, int] | None:
        return ("trunk", self.branch_at) if self.trunk and self.branch_at else None

    def without_effect(self) -> frozenset[str]:
        # Stages that were made before there were branches are the same stages. Evaluations on the way change no bit.
        aside = frozenset({"fewshot_data"}) if self.trunk else frozenset({"fewshot_data", "branch_at", "cooldown"})
        return super().without_effect() | aside

    def total_updates(self, images: int) -> int:
        """Update at which the stage ends. `updates` or `epochs` of a branch are its trunk's."""
        trunk = super().total_updates(images)
        return trunk if self.branch_at is None or self.cooldown is None else self.branch_at + self.cooldown

    def trunk_updates(self, images: int) -> int:
        """Updates over which the learning rate's schedule goes: of a branch, its trunk's."""
        return super().total_updates(images)

    @classmethod
    def function(cls) -> StageFunction:
        from stages.pretrain.run import run

        return run
