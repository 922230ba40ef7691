"""`register` in a workflow's file: what it may say, and what its mistakes are answered with."""

from __future__ import annotations

import jsonschema
import pytest
import yaml

from cluster.errors import UserError
from pipeline.config import json_schema, parse_workflow
from pipeline.identity import fingerprint
from pipeline.register_config import ChampionConfig
from pipeline.reuse import identify

STAGES = """
name: mine
stages:
  ingest: {source: {kind: digits}}
  pretrain: {data: ingest, model: Ti/4, resolution: 16, updates: 10, global_batch: 32}
  finetune: {data: ingest, from: pretrain, resolution: 24, updates: 9}
  fewshot: {data: ingest, from: pretrain, shots: [1, 5]}
  evaluate: {data: ingest, from: finetune}
  masked:
    {kind: pretrain, data: ingest, model: Ti/4, resolution: 16, updates: 10, objective: masked}
  other: {kind: evaluate, data: ingest, from: pretrain}
  another: {kind: finetune, data: ingest, from: pretrain, resolution: 16, updates: 9}
  of_another: {kind: evaluate, data: ingest, from: another}
"""


def load(said: str, *overrides: str):
    return parse_workflow(f"{STAGES}register: {said}\n", "mine.yaml", overrides)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{from: finetune}", "mine.yaml: register.name: this field is required"),
        ("{name: digits}", "register.from: this field is required"),
        ("{name: digits, from: finetune, champoin: {}}", "register.champoin: unknown field; did you mean 'champion'?"),
        ("{name: digits, from: finetune, champion: {metrics: a/b}}", "champion.metrics: unknown field; did you mean"),
        ("{name: a/b, from: finetune}", "register.name: got 'a/b', expected a letter or a digit, then"),
        (
            "{name: d, from: finetun}",
            "mine.yaml:14: register.from: got 'finetun', expected a stage that makes a model: pretrain, finetune, "
            "masked, another; did you mean 'finetune'?",
        ),
        ("{name: d, from: ingest}", "register.from: stage 'ingest' makes no model, expected one of pretrain, finetune"),
        ("{name: d, from: masked}", "register.from: 'masked' learns from masked patches and has no classes"),
        ("{name: d, from: finetune, champion: {metric: accuracy}}", "metric: got 'accuracy', expected a stage and"),
        (
            "{name: d, from: finetune, champion: {metric: tune/test/accuracy}}",
            "register.champion.metric: got tune/test/accuracy: there is no stage 'tune'; the stages are ingest,",
        ),
        (
            "{name: d, from: finetune, champion: {metric: finetune/test/acuracy}}",
            "the figures of 'finetune' will be validation/accuracy, validation/loss, test/accuracy, test/loss",
        ),
        (
            "{name: d, from: finetune, champion: {metric: evaluate/test/top5}}",
            "the figures of 'evaluate' will be test/accuracy, test/accuracy_top5, test/loss, test/calibration_error",
        ),
        (
            "{name: d, from: finetune, champion: {metric: fewshot/all/10_shot}}",
            "got fewshot/all/10_shot: the shots of 'fewshot' are 1, 5",
        ),
        (
            "{name: d, from: finetune, champion: {metric: another/test/accuracy}}",
            "'another' measures nothing of the model from 'finetune'",
        ),
        (
            "{name: d, from: finetune, champion: {metric: of_another/test/accuracy}}",
            "'of_another' measures nothing of the model from 'finetune'",
        ),
        (
            "{name: d, from: pretrain, champion: {metric: ingest/images}}",
            "'ingest' measures nothing of the model from 'pretrain'",
        ),
        (
            "{name: d, from: finetune, champion: {metric: finetune/test/loss, higher_is_better: true}}",
            "metric=finetune/test/loss: higher_is_better=true would take the worst for the best",
        ),
    ],
)
def test_mistakes_are_told_with_what_was_expected(said, message):
    with pytest.raises(UserError) as caught:
        load(said)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "metric",
    ["finetune/test/accuracy", "finetune/validation/loss", "evaluate/test/calibration_error", "fewshot/all/5_shot",
     "pretrain/test/accuracy", "other/test/accuracy"],
)  # fmt: skip
def test_figures_of_the_model_and_of_those_that_it_began_with_may_decide(metric):
    assert load(f"{{name: d, from: finetune, champion: {{metric: {metric}}}}}").registration is not None


def test_losses_and_errors_are_better_when_they_are_lower():
    assert [ChampionConfig(metric=f"a/test/{name}").higher for name in ("accuracy", "loss", "calibration_error")] == [
        True, False, False,
    ]  # fmt: skip
    assert not ChampionConfig(metric="a/test/accuracy", higher_is_better=False).higher


def test_it_is_no_part_of_what_a_stage_is():
    plain, said = parse_workflow(STAGES, "mine.yaml"), load("{name: d, from: finetune}")
    inputs = {"data": "1", "model": "2"}
    assert fingerprint(identify(plain, "finetune", inputs)) == fingerprint(identify(said, "finetune", inputs))


def test_it_is_stored_and_read_again():
    workflow = load("{name: d, from: finetune, champion: {metric: finetune/test/accuracy}}")
    assert parse_workflow(workflow.to_yaml(), "copy", stored=True) == workflow
    assert yaml.safe_load(workflow.to_yaml())["register"]["from"] == "finetune"
    assert parse_workflow(parse_workflow(STAGES, "mine.yaml").to_yaml(), "copy", stored=True).registration is None


def test_an_override_says_it_too():
    workflow = parse_workflow(STAGES, "mine.yaml", ["register={name: d, from: finetune}"])
    assert workflow.registration is not None
    assert workflow.registration.stage == "finetune"


def test_editors_know_it():
    document = yaml.safe_load(load("{name: d, from: finetune, champion: {metric: pretrain/test/loss}}").to_yaml())
    jsonschema.validate(document, json_schema())
    document["register"]["champion"]["metrics"] = "a/b"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())
