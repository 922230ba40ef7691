"""The choice among models."""

import math

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


def test_a_figure_that_a_model_has_not_is_named(tmp_path):
    config = ChoiceConfig.model_validate({"from": ["a"]})
    context = stage_context(file_storage(tmp_path), "stages/choice/x")
    with pytest.raises(UserError, match="the model from 'a' has no such figure; it has loss"):
        run(config, {"models.0": model(0, loss=1.0)}, context)
