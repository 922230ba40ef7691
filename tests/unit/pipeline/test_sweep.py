"""Sweeps in a workflow file."""

import pytest

from cluster.errors import UserError
from pipeline.config import parse_workflow
from stages.choice.config import ChoiceConfig
from tests.unit.pipeline.test_config import DIGITS

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
        (["finetune.choose.metrics=x"], "stages.finetune.metrics: unknown field; did you mean 'metric'?"),
        (["pretrain.choose={}"], "stages.pretrain.choose: there is no sweep to choose from"),
    ],
)
def test_mistakes_in_a_sweep_get_one_clear_message(overrides, expected):
    with pytest.raises(UserError) as error:
        load(SWEPT, *overrides)
    assert expected in str(error.value)
