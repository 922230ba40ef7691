"""Stages that are repeated with other seeds."""

import pytest

from cluster.errors import UserError
from pipeline.config import parse_workflow
from pipeline.identity import identity
from stages.summary.config import SummaryConfig
from tests.unit.pipeline.test_config import DIGITS

TUNED = f"""{DIGITS}
    seeds: [0, 5]
  tuning:
    kind: finetune
    data: ingest
    from: pretrain-seed-0
    updates: 9
    resolution: 16
    global_batch: 32
    sweep: {{lr: [0.003, 0.01]}}
  finetune:
    data: ingest
    from: ${{pretrain.checkpoint}}
    updates: 9
    resolution: 16
    global_batch: 32
    lr_from: tuning
    seeds: [5, 0]
  swept:
    kind: finetune
    data: ingest
    from: pretrain
    updates: 9
    resolution: 16
    global_batch: 32
    sweep: {{dropout: [0, 0.1]}}
    seeds: [0, 5]
  table: {{kind: summary, from: [finetune, swept, tuning]}}
"""


def load(*overrides: str):
    return parse_workflow(TUNED, "mine.yaml", overrides)


def test_a_repeated_stage_is_one_for_each_seed_and_the_table_of_them():
    workflow = load()
    assert [name for name in workflow.stages if name.startswith("pretrain")] == [
        *("pretrain-seed-0", "pretrain-seed-5", "pretrain")
    ]
    assert [workflow.seed_of(f"pretrain-seed-{seed}") for seed in (0, 5)] == [0, 5]
    table = workflow.stages["pretrain"]
    assert isinstance(table, SummaryConfig)
    assert table.models == ("pretrain-seed-0", "pretrain-seed-5")
    assert table.groups == ("pretrain", "pretrain")
    # What is stored is written out, and read again as it is.
    assert parse_workflow(workflow.to_yaml(), "stored", stored=True) == workflow


def test_what_refers_to_a_repeated_stage_with_these_seeds_reads_the_model_of_its_own():
    stages = load().stages
    assert {seed: stages[f"finetune-seed-{seed}"].model for seed in (0, 5)} == {
        0: "pretrain-seed-0",
        5: "pretrain-seed-5",
    }
    assert stages["finetune-seed-0"].lr_from == "tuning"
    assert stages["swept-dropout-0_1-seed-5"].model == "pretrain-seed-5"
    assert stages["swept-dropout-0_1-seed-5"].dropout == 0.1
    assert set(stages["swept"].groups) == {"swept-dropout-0", "swept-dropout-0_1"}


def test_a_summary_of_summaries_has_a_row_for_each_of_their_groups():
    table = load().stages["table"]
    members = ["finetune-seed-5", "finetune-seed-0"]
    swept = [f"swept-dropout-{dropout}-seed-{seed}" for dropout in ("0", "0_1") for seed in (0, 5)]
    assert list(table.models) == [*members, *swept, "tuning"]
    groups = ["finetune", "finetune", *("swept-dropout-0",) * 2, *("swept-dropout-0_1",) * 2, "tuning"]
    assert list(table.groups) == groups


def test_summaries_of_summaries_have_all_their_models():
    text = TUNED + "  all: {kind: summary, from: [table, pretrain]}\n  summary: {from: [finetune]}\n"
    text += "  both: {kind: summary, from: [summary, '${pretrain}']}\n"
    stages = parse_workflow(text, "mine.yaml").stages
    assert stages["all"].models == (*load().stages["table"].models, "pretrain-seed-0", "pretrain-seed-5")
    assert stages["both"].groups == ("finetune", "finetune", "pretrain", "pretrain")


def test_the_rate_of_a_stage_that_takes_anothers_is_no_part_of_what_it_is():
    given = load().stages["finetune-seed-0"]
    other = given.model_copy(update={"lr": 0.5})
    assert identity(given, {}) == identity(other, {})
    assert identity(given, {}) != identity(given.model_copy(update={"lr_from": None}), {})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["pretrain.seeds=3"], "stages.pretrain.seeds: got 3, expected different whole numbers from 0 on"),
        (["pretrain.seeds=[]"], "stages.pretrain.seeds: got []"),
        (["pretrain.seeds=[1, 1]"], "stages.pretrain.seeds: got [1, 1]"),
        (["pretrain.seeds=[true]"], "stages.pretrain.seeds: got [True]"),
        (["pretrain.seed=1"], "stages.pretrain.seeds: give one of seed and seeds"),
        (["finetune.seeds=[0, 7]"], "stages.finetune-seed-7.from: 'pretrain' is repeated with seeds=[0, 5]: give this"),
        (["tuning.from=pretrain"], "or name one of pretrain-seed-0, pretrain-seed-5"),
        (["swept.choose={metric: validation/loss}"], "stages.swept.choose: with seeds there are means to read"),
        (["ingest.seeds=[0]"], "stages.ingest.seeds: they are for stages that make a model or an evaluation,"),
        (["finetune.lr=0.3"], "lr=0.3: lr_from=tuning says what the rate is: take one of them away"),
        (["finetune.lr_scale=linear", "finetune.lr_batch=8"], "lr_scale=linear: lr_from=tuning says what the rate is"),
        (
            ["finetune.evaluate_every=2", "finetune.evaluate_splits=[test]"],
            "evaluate_every=2 needs the validation",
        ),
        (["finetune.train_splits=[validation]"], "expected [train] or [train, validation]"),
        (["finetune.lr_from=table"], "lr_from: stage 'table' makes a summary, expected one that makes a model"),
    ],
)
def test_mistakes_get_one_clear_message(overrides, expected):
    with pytest.raises(UserError) as error:
        load(*overrides)
    assert expected in str(error.value)


def test_a_rate_is_taken_from_what_was_trained_here_alone():
    with pytest.raises(UserError, match=r"stages\.finetune-seed-5\.lr_from: 'weights' trains nothing"):
        parse_workflow(
            TUNED.replace("lr_from: tuning", "lr_from: weights").replace(
                "  table:", "  weights: {kind: import, path: /nowhere/model.npz}\n  table:"
            ),
            "mine.yaml",
        )
