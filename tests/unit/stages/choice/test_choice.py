"""The choice among models."""

import math
import re

import pytest

from cluster.errors import UserError
from stages.choice.config import ChoiceConfig
from stages.choice.run import run
from stages.context import Output
from tests.unit.stages.models.outputs import file_storage, stage_context


def model(number: int, **metrics: float) -> Output:
    return Output(
        prefix=f"stages/finetune/{number}", manifest={"kind": "model", "files": [], "meta": {"metrics": metrics}}
    )


@pytest.mark.parametrize(
    ("fields", "losses", "chosen"),
    [
        ({"mode": "min"}, (0.3, 0.1, 0.2), 1),
        ({}, (0.3, 0.1, 0.2), 0),
        ({}, (0.2, 0.3, 0.3), 1),
        ({"mode": "min"}, (math.nan, 0.3, 0.2), 2),
        ({}, (math.nan, -0.3, math.nan), 1),
    ],
)
def test_the_best_model_is_the_result_and_no_byte_is_copied(tmp_path, fields, losses, chosen):
    models = [model(number, loss=loss) for number, loss in enumerate(losses)]
    config = ChoiceConfig.model_validate({"from": ["a", "b", "c"], "metric": "loss", **fields})
    context = stage_context(file_storage(tmp_path), "stages/choice/x")
    found = run(config, {f"models.{number}": own for number, own in enumerate(models)}, context)
    assert found.output == models[chosen]
    assert found.metrics == {"loss": losses[chosen], "candidates": 3.0}
    assert [row["stage"] for row in found.tables["choice"] if row["chosen"]] == ["abc"[chosen]]
    assert list(context.storage.list("")) == []


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        (
            {"validation/loss": 1.0, "test/loss": 1.0},
            r"it has validation/loss, test/loss: try choose: \{metric: validation/loss, mode: min\}",
        ),
        ({"own/score": 1.0}, r"it has own/score: try choose: \{metric: own/score, mode: max\}"),
        ({"test/accuracy": 1.0}, "it has test/accuracy: .* set validation_fraction of the ingestion"),
        ({}, "it has none: .* set validation_fraction of the ingestion"),
    ],
)
def test_a_figure_that_a_model_has_not_is_named_with_what_to_do(tmp_path, figures, message):
    config = ChoiceConfig.model_validate({"from": ["a"]})
    context = stage_context(file_storage(tmp_path), "stages/choice/x")
    with pytest.raises(
        UserError, match=f"metric=validation/accuracy: the model from 'a' has no such figure; {message}"
    ) as error:
        run(config, {"models.0": Output(prefix="a", manifest={"kind": "model", "meta": {"metrics": figures}})}, context)
    if advised := re.search(r"\{metric: (.*), mode: (.*)\}", str(error.value)):
        # The advice is one that a config takes.
        ChoiceConfig.model_validate({"from": ["a"], "metric": advised[1], "mode": advised[2]})


def test_the_highest_loss_is_not_chosen():
    with pytest.raises(ValueError, match="metric=validation/loss: mode=max would choose the highest loss: set mode to"):
        ChoiceConfig.model_validate({"from": ["a"], "metric": "validation/loss"})
