"""What a workflow with figures over several runs is told before anything runs."""

from __future__ import annotations

import pytest

from cluster.errors import UserError
from pipeline.config import Workflow, parse_workflow

WHOLE = """
name: mine
stages:
  ingest: {source: {kind: digits}, validation_fraction: 0.1}
  small: {kind: pretrain, data: ingest, model: {variant: Ti, patch_size: 4}, resolution: 16, updates: 10}
  large: {kind: pretrain, data: ingest, model: {variant: S, patch_size: 4}, resolution: 16, updates: 10}
  other: {kind: pretrain, data: ingest, model: {variant: S, patch_size: 4}, resolution: 16, updates: 20}
  tuned-small: {kind: finetune, data: ingest, from: small, resolution: 16, updates: 10}
  tuned-large:
    kind: finetune
    data: ingest
    from: large
    resolution: 16
    updates: 10
    sweep: {lr: [0.01, 0.03]}
  tuned-other: {kind: finetune, data: ingest, from: other, resolution: 16, updates: 10}
  shots-small: {kind: fewshot, data: ingest, from: small}
  large-features: {kind: features, data: ingest, from: large}
  shots-large: {kind: fewshot, features: large-features}
  shots-other: {kind: fewshot, data: ingest, from: other, shots: [1], class_sets: [all]}
  scaling: {pretrained: [small, large], finetuned: [tuned-large, tuned-small], fewshot: [shots-small, shots-large]}
"""


def load(*overrides: str) -> Workflow:
    return parse_workflow(WHOLE, "mine.yaml", overrides)


def test_what_fits_together_is_taken():
    assert load().stages["scaling"].kind == "scaling"
    load("scaling.finetuned=[]")
    load("scaling.fewshot=[shots-small]")
    load("scaling.metric=raw/test/accuracy", "tuned-small.polyak_decay=0.9", "tuned-large.polyak_decay=0.9")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["scaling.pretrained=[small, large, other]"],
            "stages.scaling.pretrained: nothing in finetuned or fewshot evaluates 'other': name a stage there",
        ),
        (
            ["scaling.finetuned=[tuned-other]"],
            "stages.scaling.finetuned: 'tuned-other' is of the model from 'other', which is not among pretrained",
        ),
        (["scaling.finetuned=[small]"], "stages.scaling.finetuned: 'small' fine-tunes no model: name stages that do"),
        (
            ["scaling.pretrained=[small, tuned-large]"],
            "stages.scaling.pretrained: 'tuned-large' is fine-tuned: name it",
        ),
        (
            ["tuned-other.from=small", "scaling.finetuned=[tuned-small, tuned-other]"],
            "stages.scaling.finetuned: 'tuned-small' and 'tuned-other' are both of the model from 'small' on 'ingest'",
        ),
        (
            ["large-features.from=small"],
            "stages.scaling.fewshot: 'shots-small' and 'shots-large' are both of the model from 'small' on 'ingest'",
        ),
        (["large-features.from=other"], "stages.scaling.fewshot: 'shots-large' is of the model from 'other', which is"),
        (
            ["scaling.pretrained=[small, large, other]", "scaling.fewshot=[shots-other]"],
            "stages.scaling.shots: got 5, and 'shots-other' has 1",
        ),
        (["scaling.shots=7"], "stages.scaling.shots: got 7, and 'shots-small' has 1, 5, 10, 25"),
        (
            ["scaling.classifier=neighbours"],
            "stages.scaling.classifier: got neighbours, and 'shots-small' has least_squa",
        ),
        (
            ["scaling.class_set=seen", "shots-small.class_sets=[all]"],
            "stages.scaling.class_set: got seen, and 'shots-sma",
        ),
        (
            ["scaling.metric=raw/test/accuracy"],
            "stages.scaling.metric: got raw/test/accuracy, and the accuracies of 'tuned-large-lr-0_01' will be "
            "validation/accuracy, test/accuracy: take one of them, or change evaluate_splits",
        ),
        (["scaling.fewshot=[tuned-small]"], "stage 'tuned-small' makes a model, expected one"),
    ],
)
def test_contradictions_get_one_clear_message(overrides, expected):
    with pytest.raises(UserError) as error:
        load(*overrides)
    assert expected in str(error.value)
