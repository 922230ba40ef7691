"""Matching, errors, means and ranks, of outputs made by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from scipy.stats import pearsonr, spearmanr

from cluster.errors import UserError
from stages.models.config import model_config
from stages.models.flops import forward_macs, masked_macs
from stages.models.masked_config import MaskedConfig
from stages.scaling.config import ScalingConfig
from stages.scaling.models import network_names
from tests.unit.stages.scaling.conftest import read_rows

MASKED = {"kind": "masked", "ratio": 0.5, "target": "mean_colour", "mask_share": 0.8, "random_share": 0.1}


def test_rho_is_that_of_the_ranks_with_equal_ones_between(by_hand):
    models = [by_hand.pretrained(width) for width in (16, 32, 48, 64, 80)]
    tuned, few = (0.5, 0.6, 0.6, 0.9, 0.7), (0.2, 0.1, 0.3, 0.4, 0.4)
    pairs = list(zip(models, tuned, few, strict=True))
    found = by_hand.scaled(
        models,
        [by_hand.finetuned(model, own) for model, own, _ in reversed(pairs)],
        [by_hand.fewshot([model], [own]) for model, _, own in pairs],
    )
    expected = pearsonr([1, 2.5, 2.5, 5, 4], [2, 1, 3, 4.5, 4.5]).statistic
    assert found.metrics["spearman"] == pytest.approx(expected, rel=1e-12)
    assert found.metrics["spearman"] == pytest.approx(spearmanr(tuned, few).statistic, rel=1e-12)
    assert found.tables["figures"][2]["of"].endswith(f"5 pretrained models, Spearman's ρ = {expected:.2f}")


@pytest.mark.parametrize(
    ("tuned", "why"),
    [((0.5, 0.6), "fewer than 3"), ((0.5, 0.5, 0.5), "all equal in one of them")],
)
def test_without_enough_to_rank_there_is_no_rho_and_it_is_said(by_hand, tuned, why):
    models = [by_hand.pretrained(16 * (i + 1)) for i in range(len(tuned))]
    shots = by_hand.fewshot(models, [0.1 * (i + 1) for i in range(len(tuned))])
    found = by_hand.scaled(models, [by_hand.finetuned(*pair) for pair in zip(models, tuned, strict=True)], [shots])
    assert "spearman" not in found.metrics
    assert found.tables["figures"][2]["of"].endswith(f"no Spearman's ρ: {why}")
    assert len(read_rows(by_hand.storage, found, "agreement.csv")) == len(tuned)


def test_one_evaluation_of_several_models_and_several_data_sets_of_one_model(by_hand):
    models = [by_hand.pretrained(16), by_hand.pretrained(32)]
    found = by_hand.scaled(
        models,
        [by_hand.finetuned(model, own, data) for data, first in (("pets", 0.5), ("cars", 0.75))
         for model, own in zip(models, (first, first - 0.25), strict=True)],
        [by_hand.fewshot(models[::-1], [0.5, 0.25])],
    )  # fmt: skip
    small, large = found.tables["scaling"]
    assert (small["finetuned"], large["finetuned"]) == (0.625, 0.375)
    assert (small["fewshot"], large["fewshot"]) == (0.25, 0.5)


def test_any_accuracy_of_fine_tuned_models_and_any_row_of_few_shot_ones_may_be_taken(by_hand):
    models = [by_hand.pretrained(16), by_hand.pretrained(32)]
    tuned = [by_hand.finetuned(model, 0.5) for model in models]
    shots = by_hand.fewshot(models, [0.5, 0.25], classifier="neighbours", class_set="seen")
    taken = {"metric": "raw/test/accuracy", "classifier": "neighbours", "class_set": "seen", "shots": 1}
    found = by_hand.scaled(models, tuned, [shots], **taken)
    assert [(row["finetuned"], row["fewshot"]) for row in found.tables["scaling"]] == [(0.25, 0.5), (0.25, 0.25)]
    with pytest.raises(UserError, match=r"^metric=validation/accuracy: the model from 't0' .*; it has test/accuracy, "):
        by_hand.scaled(models, tuned, metric="validation/accuracy")
    expected = (
        "fewshot: 's0' has no accuracy of shots=5, class_set=all, classifier=least_squares; it has shots 1, 5; "
        "class_set seen; classifier neighbours"
    )
    with pytest.raises(UserError, match=f"^{expected}$"):
        by_hand.scaled(models, fewshot=[shots])


def test_images_of_a_model_and_its_settings_keep_it_from_being_a_repeat(by_hand):
    models = [
        by_hand.pretrained(seed=0),
        by_hand.pretrained(seed=1),
        by_hand.pretrained(images=2000),
        by_hand.pretrained(seen=10_000),
        by_hand.pretrained(resolution=16),
        by_hand.pretrained(objective=MASKED, num_classes=0),
        by_hand.pretrained(pretrained="0" * 64),
    ]
    found = by_hand.scaled(models, fewshot=[by_hand.fewshot(models, [0.5] * 7)])
    counts = {
        (row["network"], row["train_images"], row["images_seen"]): row["models"] for row in found.tables["scaling"]
    }
    plain = "ViT-16x2/4, resolution=8, objective=supervised, init_from=none"
    assert counts == {
        (plain, 1000, 5000): 2,
        (plain, 2000, 5000): 1,
        (plain, 1000, 10_000): 1,
        ("ViT-16x2/4, resolution=16, objective=supervised, init_from=none", 1000, 5000): 1,
        ("ViT-16x2/4, resolution=8, objective=mean_colour, init_from=none", 1000, 5000): 1,
        ("ViT-16x2/4, resolution=8, objective=supervised, init_from=other weights", 1000, 5000): 1,
    }


def test_the_compute_of_masked_patch_prediction_has_its_head(by_hand):
    models = [by_hand.pretrained(), by_hand.pretrained(objective=MASKED, num_classes=0)]
    found = by_hand.scaled(models, fewshot=[by_hand.fewshot(models, [0.5, 0.25])])
    plain, masked = sorted(found.tables["scaling"], key=lambda row: "mean_colour" in row["network"])
    model = model_config(models[0].meta["model"])
    head = masked_macs(model, 8, MaskedConfig.model_validate(MASKED))
    assert masked["exaflops"] == pytest.approx(6 * (forward_macs(model, 8, 0) + head) * 5000 / 1e18, rel=1e-12)
    assert plain["exaflops"] == pytest.approx(6 * forward_macs(model, 8, 10) * 5000 / 1e18, rel=1e-12)


def test_networks_of_one_title_are_told_apart_by_what_differs(by_hand):
    metas = [by_hand.pretrained(16).meta, by_hand.pretrained(32).meta]
    assert network_names(metas) == ["ViT-16x2/4", "ViT-32x2/4"]
    other = {**metas[0], "model": {**metas[0]["model"], "pool": "average"}}
    assert network_names([*metas, other]) == ["ViT-16x2/4, pool=token", "ViT-32x2/4", "ViT-16x2/4, pool=average"]


def test_imported_models_are_in_no_figure_that_needs_their_compute(by_hand):
    models = [
        by_hand.pretrained(16),
        by_hand.pretrained(32),
        by_hand.pretrained(64, imported={"file": "x.npz"}, images_seen=0, train_images=0),
    ]
    tuned = [by_hand.finetuned(model, own) for model, own in zip(models, (0.5, 0.6, 0.9), strict=True)]
    found = by_hand.scaled(models, tuned, [by_hand.fewshot(models, [0.1, 0.2, 0.3])])
    assert [row["exaflops"] is None for row in found.tables["scaling"]] == [False, False, True]
    assert len(read_rows(by_hand.storage, found, "compute.csv")) == 2
    assert found.tables["figures"][0]["of"].endswith("; without 1 imported, of which no compute is known")
    assert (len(read_rows(by_hand.storage, found, "agreement.csv")), found.metrics["spearman"]) == (
        3,
        pytest.approx(1.0),
    )


def test_figures_of_one_place_alone_are_left_out(by_hand):
    models = [by_hand.pretrained(seed=0), by_hand.pretrained(seed=1)]
    found = by_hand.scaled(models, fewshot=[by_hand.fewshot(models, [0.5, 0.25])])
    assert [row["of"].partition(":")[0] for row in found.tables["figures"]] == ["left out"] * 3
    assert found.output.manifest["files"] == []
    assert (found.tables["scaling"][0]["models"], found.tables["scaling"][0]["fewshot"]) == (2, 0.375)


def test_a_model_that_lacks_one_kind_of_accuracy_is_in_the_figures_of_the_other(by_hand):
    models = [by_hand.pretrained(16), by_hand.pretrained(32), by_hand.pretrained(48)]
    found = by_hand.scaled(
        models, [by_hand.finetuned(model, 0.5) for model in models[:2]], [by_hand.fewshot(models[1:], [0.2, 0.3])]
    )
    rows = read_rows(by_hand.storage, found, "compute.csv")
    assert [(row["finetuned"], row["fewshot"], row["fewshot_models"]) for row in rows] == [
        ("0.5", "", "0"), ("0.5", "0.2", "1"), ("", "0.3", "1")
    ]  # fmt: skip


def test_what_does_not_belong_together_is_refused_with_names(by_hand):
    first, second, other = by_hand.pretrained(16), by_hand.pretrained(32), by_hand.pretrained(64)
    for pretrained, finetuned, fewshot, expected in (
        ([first, other], [by_hand.finetuned(first, 0.5)], [], "pretrained: nothing here evaluates 'p1': name a stage in"
         " finetuned that does, or take it away"),
        ([first], [by_hand.finetuned(other, 0.5)], [], r"finetuned: 't0' is of a model that is not among pretrained=\["
         r"'p0'\]: name its stage there too, or take 't0' away"),
        ([first], [], [by_hand.fewshot([other], [0.5])], "fewshot: 's0' is of a model that is not among pretrained"),
        ([first], [by_hand.finetuned(first, 0.5), by_hand.finetuned(first, 0.6)], [],
         "finetuned: 't0' and 't1' are both of the model from 'p0', on the same data set: take one away"),
        ([first], [], [by_hand.fewshot([first], [0.5])] * 2, "fewshot: 's0' and 's1' are both of the model from 'p0'"),
        ([first, second], [by_hand.finetuned(first, 0.5), by_hand.finetuned(second, 0.6, "cars")], [],
         "finetuned: t0 and t1 have measured on different data sets: evaluate all models on the same ones"),
        ([first, first], [by_hand.finetuned(first, 0.5)], [], "pretrained: 'p0' and 'p1' are the same model: take one"),
        ([first], [first], [], "finetuned: the model from 't0' began with no other model: name stages that"),
        ([first], [by_hand.finetuned(first, 0.5, imported={})], [], "finetuned: the model from 't0' was imported: "),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{expected}"):
            by_hand.scaled(pretrained, finetuned, fewshot)


def test_models_of_earlier_versions_are_to_be_made_anew(by_hand):
    model = by_hand.pretrained()
    tuned = by_hand.finetuned(model, 0.5)
    for meta, keys in (
        (model.manifest["meta"], ("train_images",)),
        (tuned.manifest["meta"], ("train_images", "pretrained")),
    ):
        kept = dict(meta)
        for key in keys:
            del meta[key]
        with pytest.raises(
            UserError, match=r"was made by an earlier version .*`patchline retry WORKFLOW --from [pt]0`"
        ):
            by_hand.scaled([model], [tuned])
        meta.update(kept)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pretrained": []}, "pretrained=[]: name the stages"),
        ({"finetuned": []}, "finetuned and fewshot are empty"),
        ({"pretrained": ["a", "a"]}, "pretrained=['a', 'a']: name each stage once"),
        ({"metric": "test/loss"}, "metric=test/loss: expected an accuracy"),
    ],
)
def test_settings_that_make_no_figure_are_refused(fields, expected):
    with pytest.raises(ValidationError) as error:
        ScalingConfig.model_validate({"pretrained": "a", "finetuned": "b", **fields})
    assert expected in str(error.value)


def test_a_single_stage_needs_no_list():
    config = ScalingConfig.model_validate({"pretrained": "a", "finetuned": "b", "fewshot": "c"})
    assert (config.pretrained, config.finetuned, config.fewshot) == (("a",), ("b",), ("c",))
