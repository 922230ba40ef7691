"""Sweeps in a workflow file."""

import pytest

from cluster.errors import UserError
from pipeline.config import parse_workflow
from pipeline.runner import Runner
from pipeline.status import StatusReader
from pipeline.words import headline
from stages.choice.config import ChoiceConfig
from tests.unit.pipeline.test_config import DIGITS
from tests.unit.pipeline.test_runner import Silent
from tests.unit.stages.models.outputs import file_storage

SWEPT = f"""{DIGITS}
  finetune:
    data: ingest
    from: pretrain
    updates: 9
    resolution: 16
    global_batch: 32
    sweep: {{lr: [0.003, 0.01], input.crop_area: [[0.5, 1.0]], dropout: [0, 0.1]}}
    choose: {{metric: validation/loss, mode: min}}
  fewshot: {{data: ingest, from: finetune, class_sets: [all]}}
"""


def load(text: str, *overrides: str):
    return parse_workflow(text, "mine.yaml", overrides)


def test_a_sweep_is_a_stage_for_each_combination_and_the_choice_among_them():
    workflow = load(SWEPT)
    crop = "crop_area-0_5_1_0"
    variants = [f"finetune-lr-{lr}-{crop}-dropout-{dropout}" for lr in ("0_003", "0_01") for dropout in ("0", "0_1")]
    assert list(workflow.stages) == ["ingest", "pretrain", *variants, "finetune", "fewshot"]
    last = workflow.stages[variants[-1]]
    assert (last.lr, last.dropout, last.input.crop_area) == (0.01, 0.1, (0.5, 1.0))
    choice = workflow.stages["finetune"]
    assert isinstance(choice, ChoiceConfig)
    assert (list(choice.models), choice.metric, choice.mode) == (variants, "validation/loss", "min")
    assert workflow.order()[-1] == "fewshot"
    # What is stored is written out, and read again as it is.
    assert load(workflow.to_yaml()) == workflow


MASKED = """
name: masked
stages:
  ingest: {source: {kind: digits}, validation_fraction: 0.1}
  pretrain:
    data: ingest
    objective: {kind: masked, target: pixels}
    model: {width: 16, depth: 1, mlp_dim: 32, num_heads: 2, patch_size: 4}
    resolution: 16
    updates: 8
    global_batch: 32
    workers: 0
    sweep: {lr: [0.00001, 0.01]}
"""


def test_where_pixels_are_predicted_there_is_no_accuracy_to_choose_by():
    # That is told when the file is read, not after the training.
    with pytest.raises(UserError) as error:
        load(MASKED)
    told = str(error.value)
    assert "stages.pretrain.metric: got validation/accuracy, and the figures of 'pretrain-lr-1e-05' will be" in told
    assert told.endswith("will be validation/loss: try choose: {metric: validation/loss, mode: min}")
    load(MASKED, "pretrain.objective=masked")
    load(MASKED, "pretrain.polyak_decay=0.5", "pretrain.choose={metric: raw/validation/loss, mode: min}")
    # Of one of them alone, too, and where a choice is among named stages.
    with pytest.raises(UserError, match="the figures of 'pretrain-target-pixels' will be validation/loss"):
        load(MASKED, "pretrain.sweep={objective.target: [mean_colour, pixels]}")


def test_the_model_of_the_lowest_loss_is_chosen_where_pixels_are_predicted(tmp_path):
    workflow = load(MASKED, "pretrain.choose={metric: validation/loss, mode: min}")
    storage = file_storage(tmp_path)
    runner = Runner(storage, "swept", workflow, owner="test", ray=False, tracker=Silent(), lease_seconds=30.0)
    assert runner.run() == "done"
    reader = StatusReader(storage, "swept", list(workflow.stages))
    reader.update()
    found = reader.status.stages
    slow, fast, chosen = (found[name].metrics for name in ("pretrain-lr-1e-05", "pretrain-lr-0_01", "pretrain"))
    assert "validation/accuracy" not in fast
    assert fast["validation/loss"] < slow["validation/loss"]
    assert (chosen["validation/loss"], chosen["candidates"]) == (fast["validation/loss"], 2)
    assert headline(chosen) == f"validation loss {fast['validation/loss']:.4g}  test loss {fast['test/loss']:.4g}"


def test_what_is_overridden_holds_for_all_of_a_sweep():
    workflow = load(SWEPT, "finetune.updates=7", "finetune.sweep.lr=[0.1]")
    variants = [stage for name, stage in workflow.stages.items() if name.startswith("finetune-")]
    assert [(stage.updates, stage.lr) for stage in variants] == [(7, 0.1), (7, 0.1)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["finetune.sweep=5"], "stages.finetune.sweep: got 5, expected fields and their values"),
        (["finetune.sweep.lr=0.1"], "stages.finetune.sweep.lr: got 0.1, expected a list of values"),
        (["finetune.sweep.lr=[0.1, 0.1]"], "two of its stages would be called"),
        (["finetune.sweep.rate=[0.1]"], "rate: unknown field"),
        (["finetune.sweep.lr=[-1]"], "lr: got -1"),
        (["finetune.choose=best"], "stages.finetune.choose: got 'best'"),
        (["finetune.choose.metric=test/accuracy"], "choosing by the test split would spoil it"),
        (["finetune.choose={metric: validation/loss}"], "mode=max would choose the highest loss: set mode to min"),
        (
            ["finetune.choose.metric=validation/precision"],
            "stages.finetune.metric: got validation/precision, and the figures of "
            "'finetune-lr-0_003-crop_area-0_5_1_0-dropout-0' will be validation/loss, validation/accuracy: "
            "try choose: {metric: validation/loss, mode: min}",
        ),
        (["finetune.choose.metric=raw/validation/loss"], "will be validation/loss, validation/accuracy: try"),
        (["finetune.choose.metrics=x"], "stages.finetune.metrics: unknown field; did you mean 'metric'?"),
        (
            ["finetune.evaluate_splits=[test]"],
            "stages.finetune.metric: 'finetune-lr-0_003-",
        ),
        (["finetune.train_splits=[train, validation]"], "is not evaluated on the validation split, by which is chosen"),
        (["pretrain.choose={}"], "stages.pretrain.choose: there is no sweep to choose from"),
    ],
)
def test_mistakes_in_a_sweep_get_one_clear_message(overrides, expected):
    with pytest.raises(UserError) as error:
        load(SWEPT, *overrides)
    assert expected in str(error.value)
