"""Settings of the evaluation of a classifier. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from stages.config import reference
from stages.frozen.config import ForwardConfig

if TYPE_CHECKING:
    from stages.config import StageFunction


class EvaluateConfig(ForwardConfig):
    """What a trained model says of the images of a data set: accuracies, confusions, calibration."""

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "evaluation"

    data: str = reference("dataset", "stage whose data set to evaluate on")
    model: str = reference("model", "stage whose model to evaluate, with its own last layer", alias="from")
    splits: tuple[str, ...] = Field(
        (), description="splits that are counted together; if absent, test, and held_out_test where the model knows it"
    )
    calibration_bins: int = Field(15, ge=1, le=1000, description="intervals of equal width of the confidence")

    @classmethod
    def function(cls) -> StageFunction:
        from stages.evaluate.run import run

        return run
