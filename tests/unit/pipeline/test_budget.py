"""What a budget of compute buys."""

from __future__ import annotations

import pytest

from cluster.errors import UserError
from cluster.shapes import parse_shape
from cluster.storage import open_storage
from pipeline.budget import (
    JFT_CLASSES,
    JFT_IMAGES,
    TABLE_6,
    budgeted,
    choices,
    expected_error,
    parse_budget,
)
from pipeline.config import parse_workflow
from pipeline.plan import Question
from stages.models.config import ModelConfig
from stages.models.flops import forward_macs
from stages.pretrain.config import PretrainConfig

MODEL = {"variant": "B", "patch_size": 16}
BASE = {"data": "ingest", "model": MODEL, "updates": 1000, "global_batch": 4096, "warmup_updates": 10}


def config(**fields) -> PretrainConfig:
    return PretrainConfig.model_validate({**BASE, **fields})


@pytest.mark.parametrize(("variant", "patch_size", "epochs", "correct"), TABLE_6)
def test_the_law_is_what_the_paper_reports(variant, patch_size, epochs, correct):
    macs = forward_macs(ModelConfig(variant=variant, patch_size=patch_size), 224, JFT_CLASSES)
    assert expected_error(macs, epochs * JFT_IMAGES) == pytest.approx(100 - correct, abs=0.26)


@pytest.mark.parametrize(
    ("text", "exaflops"), [("100-exaFLOP", 100), ("0.5zettaFLOPs", 500), ("250 petaflop", 0.25), ("1e-exaflop", None)]
)
def test_a_budget_is_a_number_of_operations(text, exaflops):
    if exaflops is None:
        with pytest.raises(UserError, match=r"--budget 1e-exaflop: expected operations in all, such as 100-exaFLOP"):
            parse_budget(text)
    else:
        assert parse_budget(text) == exaflops


def test_every_choice_costs_the_budget_and_the_best_comes_first():
    ranked = choices(config(), 1000.0, images=303_000_000, shape=parse_shape("h100x8"))
    assert [choice.error for choice in ranked] == sorted(choice.error for choice in ranked)
    assert len({choice.name for choice in ranked}) == 10
    for choice in ranked:
        assert choice.exaflops == pytest.approx(1000, rel=1e-3)
        assert choice.exaflops <= 1000
        assert choice.images == choice.updates * 4096
        assert choice.epochs == pytest.approx(choice.images / 303e6)
        assert choice.estimate is not None
    # Neither the largest nor the smallest: more of the one costs too much of the other.
    assert ranked[0].name == "ViT-L/16"
    assert not ranked[0].extrapolated
    longer = choices(config(), 20.0)
    assert longer[0].macs < ranked[0].macs


def test_what_would_end_in_its_warm_up_is_left_out():
    names = {choice.name for choice in choices(config(warmup_updates=500), 1.0)}
    assert "ViT-S/16" in names
    assert "ViT-G/14" not in names
    with pytest.raises(UserError, match=r"--budget: 1e-05 exaFLOPs are too few for any"):
        choices(config(), 1e-5)


def test_its_overrides_make_a_workflow_of_it(tmp_path):
    text = """
name: mine
stages:
  ingest: {source: {kind: digits}}
  pretrain: {data: ingest, epochs: 3, resolution: 32, global_batch: 64, model: {MODEL}}
"""
    storage = open_storage(f"file://{tmp_path}")
    for model in (
        "{width: 64, depth: 2, num_heads: 2, mlp_dim: 128, patch_size: 8}",
        "{variant: Ti, patch_size: 16}",
        "S/32",
        "R50x1",
        "{variant: R50x1, head_bias: -10}",
        "{blocks: [1, 1, 1, 1], width_factor: 2}",
        "R26+S/32",
        "{variant: S, patch_size: 1, stem: {blocks: [2, 2]}}",
    ):
        own = text.replace("{MODEL}", model)
        found = budgeted(storage, parse_workflow(own, "mine"), 0.01, Question(images=1000, classes=10))["pretrain"]
        # Patches of 14 pixels do not divide the resolution.
        assert {choice.patch_size for choice in found} == {32, 16}
        best = found[0]
        stage = parse_workflow(own, "mine", best.overrides("pretrain")).stages["pretrain"]
        assert isinstance(stage, PretrainConfig)
        assert (stage.model.variant, stage.updates) == (best.variant, best.updates)
        head_bias = -10 if "head_bias" in model else 0
        assert stage.model == ModelConfig(variant=best.variant, patch_size=best.patch_size, head_bias=head_bias)


def test_a_workflow_without_pretraining_has_no_choice(tmp_path):
    workflow = parse_workflow("name: mine\nstages:\n  ingest: {source: {kind: digits}}", "mine")
    with pytest.raises(UserError, match=r"--budget: mine has no pretrain stage"):
        budgeted(open_storage(f"file://{tmp_path}"), workflow, 1.0)
