"""Stages that are made for each of those that another one stands for."""

import re
from pathlib import Path

import pytest

from cluster.errors import UserError
from pipeline.config import json_schema, parse_workflow
from tests.unit.pipeline.test_config import DIGITS

SIZES = f"""{DIGITS}
    sweep:
      model: {{narrow: {{width: 16, depth: 1, mlp_dim: 32, num_heads: 2, patch_size: 4}}, S: S/8}}
      lr: [0.01]
    choose: none
  finetune:
    data: ingest
    from: ${{pretrain.checkpoint}}
    for_each: pretrain
    updates: 9
    resolution: 16
    global_batch: 32
    sweep: {{dropout: [0, 0.1]}}
    choose: {{metric: validation/loss, mode: min}}
  fewshot: {{data: ingest, from: finetune, for_each: finetune, class_sets: [all]}}
  repeated: {{kind: evaluate, data: ingest, from: pretrain-model-S-lr-0_01, seeds: [0, 1]}}
  table: {{kind: summary, from: [fewshot, repeated]}}
"""


def load(*overrides: str):
    return parse_workflow(SIZES, "mine.yaml", overrides)


def test_a_stage_is_made_for_each_and_refers_to_its_own():
    workflow = load()
    stages = workflow.stages
    ends = ("model-narrow-lr-0_01", "model-S-lr-0_01")
    assert [name for name in stages if name.startswith("pretrain")] == [f"pretrain-{end}" for end in ends]
    assert stages["pretrain-model-narrow-lr-0_01"].model.width == 16
    assert stages["pretrain-model-S-lr-0_01"].model.width == 384
    for end in ends:
        # Each is a sweep and the choice among it, and nothing is called by the file's name alone.
        tried = [f"finetune-{end}-dropout-0", f"finetune-{end}-dropout-0_1"]
        assert [stages[name].model for name in tried] == [f"pretrain-{end}"] * 2
        assert list(stages[f"finetune-{end}"].models) == tried
        assert stages[f"fewshot-{end}"].model == f"finetune-{end}"
    assert not {"pretrain", "finetune", "fewshot"} & set(stages)
    # What is stored is written out, and read again as it is.
    assert parse_workflow(workflow.to_yaml(), "stored", stored=True) == workflow


def test_where_several_can_be_named_the_name_stands_for_all():
    table = load().stages["table"]
    assert list(table.models) == [
        *("fewshot-model-narrow-lr-0_01", "fewshot-model-S-lr-0_01", "repeated-seed-0", "repeated-seed-1")
    ]
    assert list(table.groups) == ["fewshot-model-narrow-lr-0_01", "fewshot-model-S-lr-0_01", "repeated", "repeated"]


def test_models_of_seeds_are_all_taken_where_several_can_be_named():
    text = f"{DIGITS}    seeds: [0, 3]\n"
    text += "  best: {kind: choice, from: [pretrain], metric: validation/loss, mode: min}\n"
    assert list(parse_workflow(text, "mine.yaml").stages["best"].models) == ["pretrain-seed-0", "pretrain-seed-3"]
    # One name is a list of one.
    assert parse_workflow(text.replace("[pretrain]", "pretrain"), "mine.yaml") == parse_workflow(text, "mine.yaml")
    text += "  few: {kind: fewshot, data: ingest, from: pretrain, for_each: pretrain, class_sets: [all]}\n"
    text += "  table: {kind: summary, from: few}\n"
    workflow = parse_workflow(text, "mine.yaml")
    few = [f"few-seed-{seed}" for seed in (0, 3)]
    assert [workflow.stages[name].model for name in few] == ["pretrain-seed-0", "pretrain-seed-3"]
    # What is made for a model of a seed has that seed, and is a repeat of the others.
    assert [workflow.seed_of(name) for name in few] == [0, 3]
    assert (workflow.stages["table"].models, workflow.stages["table"].groups) == (tuple(few), ("few", "few"))
    with pytest.raises(UserError, match=r"few\.for_each: 'pretrain' has seeds, which this stage takes over"):
        parse_workflow(text, "mine.yaml", ["few.seeds=[0, 1]"])


def test_what_another_one_is_made_for_may_stand_for_several_itself():
    stages = load("finetune.choose=none").stages
    ends = [f"{size}-lr-0_01-dropout-{dropout}" for size in ("model-narrow", "model-S") for dropout in ("0", "0_1")]
    assert [name for name in stages if name.startswith("fewshot")] == [f"fewshot-{end}" for end in ends]
    assert [stages[f"fewshot-{end}"].model for end in ends] == [f"finetune-{end}" for end in ends]
    seeds = load("finetune.sweep={dropout: [0]}", "finetune.choose=none", "finetune.seeds=[0, 2]").stages
    assert seeds["fewshot-model-S-lr-0_01-dropout-0-seed-2"].seed == 2


def test_the_example_of_the_documentation_is_read():
    text = (Path(__file__).parents[3] / "docs/workflows.md").read_text()
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "for_each" in block)
    body = "".join(f"  {line}\n" for line in example.splitlines())
    ingest = "name: shown\nstages:\n  ingest: {source: {kind: digits}}\n"
    stages = parse_workflow(ingest + body, "workflows.md").stages
    assert stages["table"].models == ("fewshot-model-small", "fewshot-model-large")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["finetune.for_each=nothing"], "stages.finetune.for_each: got 'nothing', expected one of the stages: ingest,"),
        (["finetune.for_each=[pretrain]"], "stages.finetune.for_each: got ['pretrain'], expected one of the stages"),
        (["finetune.for_each=ingest"], "stages.finetune.for_each: 'ingest' is one stage: give it a sweep or seeds, or"),
        (["finetune.for_each=finetune"], "stages.finetune.for_each: got 'finetune', which is made for each of this"),
        (["finetune.for_each=fewshot"], "for_each: got 'finetune', which is made for each of this one: a circle"),
        (["fewshot.for_each=pretrain"], "for_each: no field of this stage refers to 'pretrain': name it there, or"),
        (["repeated.from=pretrain"], "from: 'pretrain' stands for pretrain-model-narrow-lr-0_01, pretrain-model-S-lr"),
        (["fewshot-model-S-lr-0_01.kind=fewshot"], "'fewshot-model-S-lr-0_01' is no stage of this workflow"),
        (["pretrain.choose=all"], "stages.pretrain.choose: got 'all', expected a mapping such as {metric:"),
        (["pretrain.choose=false"], "stages.pretrain.choose: got False, expected a mapping"),
        (["pretrain.sweep={lr: {'': 0.1}}"], "stages.pretrain.sweep: a value has an empty name"),
        (["pretrain.sweep={lr: {}}"], "stages.pretrain.sweep.lr: got {}, expected a list of values, or names of them"),
    ],
)
def test_mistakes_get_one_clear_message(overrides, expected):
    with pytest.raises(UserError) as error:
        load(*overrides)
    assert expected in str(error.value)


def test_two_stages_of_one_name_are_refused():
    text = SIZES + "  fewshot-model-S-lr-0_01: {kind: evaluate, data: ingest, from: pretrain-model-S-lr-0_01}\n"
    with pytest.raises(UserError, match=r"fewshot\.for_each: there is another stage called 'fewshot-model-S-lr-0_01'"):
        parse_workflow(text, "mine.yaml")


def test_editors_know_what_a_stage_may_have():
    definitions = json_schema()["$defs"]
    assert {"for_each", "seeds"} <= set(definitions["FewshotConfig"]["properties"])
    assert "choose" not in definitions["FewshotConfig"]["properties"]
    assert "seeds" not in definitions["IngestConfig"]["properties"]
