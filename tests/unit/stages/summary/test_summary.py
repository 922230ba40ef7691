"""The summary of several models."""

import statistics

import pytest

from cluster.errors import UserError
from stages.context import Output
from stages.summary.config import SummaryConfig
from stages.summary.run import run
from tests.unit.stages.models.outputs import file_storage, stage_context

FIGURES = ((0.5, 2.0), (0.75, 1.0), (0.25, 0.5), (0.875, 3.0))


def models() -> dict[str, Output]:
    return {
        f"models.{number}": Output(
            prefix=f"stages/pretrain/{number}",
            manifest={
                "kind": "model",
                "files": [],
                "meta": {"metrics": {"test/accuracy": accuracy, "test/loss": loss, "seconds": 3.0}},
            },
        )
        for number, (accuracy, loss) in enumerate(FIGURES)
    }


def summary(tmp_path, **fields):
    config = SummaryConfig.model_validate({"from": ["a-seed-0", "a-seed-1", "a-seed-2", "b"], **fields})
    context = stage_context(file_storage(tmp_path), "stages/summary/x")
    return context, run(config, models(), context)


def test_each_group_has_the_mean_and_the_deviation_of_every_figure_of_a_split(tmp_path):
    context, found = summary(tmp_path, groups=["a", "a", "a", "b"])
    first, second = found.tables["summary"]
    assert (first["group"], first["models"], first["test/accuracy"]) == ("a", 3, 0.5)
    assert first["test/accuracy ±"] == pytest.approx(statistics.stdev([0.5, 0.75, 0.25]), rel=1e-15)
    assert first["test/accuracy standard error"] == pytest.approx(first["test/accuracy ±"] / 3**0.5, rel=1e-15)
    assert first["test/loss"] == pytest.approx(3.5 / 3, rel=1e-15)
    # Of one model nobody knows how far it is from others.
    assert (second["group"], second["test/accuracy"], second["test/accuracy ±"]) == ("b", 0.875, None)
    assert not [key for key in first if "seconds" in key]
    assert found.metrics["a/test/accuracy"] == 0.5
    lines = context.storage.read(found.output.key("summary.csv")).decode().splitlines()
    own = ("test/accuracy", "test/loss")
    assert lines[0] == ",".join(["group,models", *(f"{name},{name} ±,{name} standard error" for name in own)])
    assert lines[2] == "b,1,0.875,,,3.0,,"


def test_without_groups_models_of_other_seeds_are_one_and_named_figures_are_shown_alone(tmp_path):
    _, found = summary(tmp_path, metrics=["seconds"])
    assert [(row["group"], row["models"]) for row in found.tables["summary"]] == [("a", 3), ("b", 1)]
    assert {key for row in found.tables["summary"] for key in row} == {
        *("group", "models", "seconds", "seconds ±", "seconds standard error")
    }


def test_a_figure_that_a_model_has_not_is_named(tmp_path):
    with pytest.raises(UserError, match="metrics=test/top5: the model from 'a-seed-0' has no such figure; it has test"):
        summary(tmp_path, metrics=["test/top5"])


def test_groups_are_one_for_each_model(tmp_path):
    with pytest.raises(ValueError, match="groups has 1 names for 4 stages"):
        summary(tmp_path, groups=["a"])


def test_of_evaluations_all_figures_are_shown(tmp_path):
    found = [{"features/all/5_shot": 0.25, "train/images": 9.0}, {"features/all/5_shot": 0.75, "train/images": 9.0}]
    inputs = {
        f"models.{number}": Output(
            prefix=f"stages/fewshot/{number}",
            manifest={"kind": "evaluation", "files": [], "meta": {"metrics": own}},
        )
        for number, own in enumerate(found)
    }
    config = SummaryConfig.model_validate({"from": ["fewshot-seed-0", "fewshot-seed-1"]})
    (row,) = run(config, inputs, stage_context(file_storage(tmp_path), "stages/summary/x")).tables["summary"]
    assert (row["group"], row["features/all/5_shot"]) == ("fewshot", 0.5)
    assert "train/images" not in row
