"""What a budget of compute buys."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

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
from pipeline.config import load_workflow, parse_workflow
from pipeline.display_budget import budget_table
from pipeline.plan import Question
from stages.models.config import VARIANTS, ModelConfig
from stages.models.flops import forward_macs, parameter_count
from stages.models.masked_config import MaskedConfig
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


@pytest.mark.parametrize("target", ["mean_colour", "downsized", "pixels"])
def test_predicting_masked_patches_costs_its_own_head_and_no_classes(target):
    masked = MaskedConfig(target=target)
    found = choices(config(objective=masked), 1000.0, classes=18_291, images=1_000_000, shape=parse_shape("h100x8"))
    labelled = {choice.name: choice for choice in choices(config(), 1000.0)}
    assert {choice.name for choice in found} == set(labelled)
    for choice in found:
        model = ModelConfig.model_validate(
            {"variant": choice.variant, "patch_size": choice.patch_size, **VARIANTS[choice.variant]}
        )
        # The body without a head, and what is predicted of half of the patches.
        patches, outputs = (224 // choice.patch_size) ** 2, {
            "mean_colour": 512, "downsized": 16 * 512, "pixels": 3 * choice.patch_size**2
        }[target]  # fmt: skip
        corrupted = {49: 24, 196: 98, 256: 128}[patches]
        assert choice.macs == forward_macs(model, 224, 0) + corrupted * model.width * outputs
        assert choice.parameters == parameter_count(model, 224, 0) + model.width + (model.width + 1) * outputs
        assert choice.updates == int(1e21 / (6 * choice.macs * 4096))
        assert (choice.masked, choice.extrapolated) == (True, True)
        assert choice.macs != labelled[choice.name].macs
        assert choice.estimate is not None


def test_networks_with_one_patch_alone_are_no_choice_for_masked_patches():
    small = {"resolution": 32, "warmup_updates": 0}
    assert {choice.patch_size for choice in choices(config(**small), 0.1)} == {16, 32}
    assert {choice.patch_size for choice in choices(config(objective="masked", **small), 0.1)} == {16}


def test_a_masked_stage_of_a_workflow_has_its_table(tmp_path):
    workflow = load_workflow("masked/b16")
    found = budgeted(open_storage(f"file://{tmp_path}"), workflow, 432.6)["pretrain"]
    mine = next(choice for choice in found if choice.name == "ViT-B/16")
    # What the recipe itself costs buys its own million updates.
    assert mine.updates == pytest.approx(1_000_000, rel=1e-4)
    assert mine.epochs == pytest.approx(13.5, rel=0.01)
    stage = load_workflow("masked/b16", found[0].overrides("pretrain")).stages["pretrain"]
    assert isinstance(stage, PretrainConfig)
    assert stage.masked == MaskedConfig()
    assert stage.updates == found[0].updates
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(budget_table("pretrain", 432.6, found, price=None))
    assert (
        "it is a law of pretraining on class labels: masked patch prediction comes out worse" in console.export_text()
    )


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
