"""Pretraining without class labels: what the stage refuses, what it leaves, and what can be made of that."""

import pytest
import torch

from cluster.errors import UserError
from pipeline.identity import fields_with_role
from stages.fewshot.config import FewshotConfig
from stages.fewshot.run import run as run_fewshot
from stages.finetune.config import FinetuneConfig
from stages.finetune.run import run as run_finetune
from stages.models.masked_config import MaskedConfig
from stages.models.store import load_model, read_state
from stages.pretrain.config import PretrainConfig
from stages.pretrain.run import run
from tests.unit.stages.chain import SMALL

MODEL = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 4}
HEAD = ["mask_token", "prediction.bias", "prediction.weight"]


def config(objective="masked", **fields) -> PretrainConfig:
    given = {**SMALL, "data": "ingest", "model": MODEL, "resolution": 16, "updates": 20, "lr": 0.01, **fields}
    return PretrainConfig.model_validate(given if objective is None else {**given, "objective": objective})


@pytest.fixture(scope="module")
def pretrained(ingested_digits):
    stages, dataset = ingested_digits
    return run(config(), {"data": dataset}, stages.context("masked", seed=5))


def test_the_objective_reads_as_a_word_or_with_its_settings():
    assert config().masked == config({"kind": "masked"}).masked == MaskedConfig()
    assert config({"kind": "masked", "ratio": 0.15, "target": "pixels"}).masked == MaskedConfig(
        ratio=0.15, target="pixels"
    )
    assert config("supervised").masked is None


def test_stages_that_learn_class_labels_are_the_stages_that_they_were():
    assert config(None) == config("supervised")
    assert "objective" not in fields_with_role(config("supervised"), "identity")
    found = fields_with_role(config(), "identity")["objective"]
    assert found == {"kind": "masked", "ratio": 0.5, "target": "mean_colour", "mask_share": 0.8, "random_share": 0.1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": {"kind": "masked", "mask_share": 0.9, "random_share": 0.2}}, "together at most 1"),
        ({"objective": {"kind": "masked", "target": "colour"}}, "mean_colour"),
        ({"loss": "sigmoid"}, "loss=sigmoid: of class labels, which objective=masked leaves aside"),
        ({"label_smoothing": 0.1}, r"label_smoothing=0\.1: of class labels"),
        ({"input": {"mixup": 0.2}}, r"input\.mixup=0\.2: of class labels"),
        ({"model": {**MODEL, "head": "mlp_tanh"}}, r"model\.head=mlp_tanh belongs to class labels.* try linear"),
        ({"model": {**MODEL, "pool": "attention"}}, r"model\.pool=attention belongs .* try token or average"),
        ({"model": {**MODEL, "head_bias": -10.0}}, r"model\.head_bias=-10\.0 belongs"),
        ({"model": {**MODEL, "patch_size": 16}}, "resolution=16 is one patch alone"),
        ({"model": {**MODEL, "patch_size": 2}, "objective": {"kind": "masked", "target": "downsized"}}, "patch_size=2"),
        ({"model": {**MODEL, "patch_size": 1, "stem": {"blocks": (1,)}}}, "without a ResNet"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_it_leaves_a_model_without_classes_that_says_what_it_has_learned(ingested_digits, pretrained):
    stages, dataset = ingested_digits
    meta = pretrained.output.meta
    assert meta["objective"] == MaskedConfig().model_dump()
    assert meta["num_classes"] == 0
    # Which classes it was shown: few-shot evaluation asks.
    assert meta["class_ids"] == [label for label in range(10) if label not in dataset.meta["held_out"]]
    assert {"validation/loss", "validation/accuracy"} <= pretrained.metrics.keys()
    state = read_state(stages.storage, pretrained.output)
    assert [name for name in sorted(state) if name in HEAD or name.startswith("head")] == HEAD
    model = load_model(stages.storage, pretrained.output)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in set(state) - set(HEAD))
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 16)


def test_fine_tuning_drops_what_predicted_patches_and_says_so(ingested_digits, pretrained, capsys):
    stages, dataset = ingested_digits
    given = {**SMALL, "data": "ingest", "from": "pretrain", "resolution": 24, "updates": 1, "lr": 1e-30}
    inputs = {"data": dataset, "model": pretrained.output}
    result = run_finetune(FinetuneConfig.model_validate(given), inputs, stages.context("finetuned"))
    said = capsys.readouterr().out
    assert "resampled: pos_embed; dropped: mask_token, prediction.bias, prediction.weight; fresh: head.weight" in said
    before, after = (read_state(stages.storage, output) for output in (pretrained.output, result.output))
    assert after["head.weight"].shape == (10, 16)
    body = set(before) - {*HEAD, "pos_embed"}
    assert set(after) == {*body, "pos_embed", "head.weight", "head.bias"}
    assert all(torch.equal(before[name], after[name]) for name in body)
    assert "objective" not in result.output.meta


def test_few_shot_features_are_those_of_its_class_token(ingested_digits, pretrained):
    stages, dataset = ingested_digits
    given = {"data": "ingest", "from": "pretrain", "shots": (5,), "draws": 2, "threads": 1, "input": SMALL["input"]}
    inputs = {"data": dataset, "model": pretrained.output}
    result = run_fewshot(FewshotConfig.model_validate(given), inputs, stages.context("fewshot"))
    assert {"features/all/5_shot", "features/held_out/5_shot", "untrained/seen/5_shot"} <= result.metrics.keys()
    # The untrained network is the one that pretraining began with: other features, and much better than chance.
    assert result.metrics["features/all/5_shot"] != result.metrics["untrained/all/5_shot"]
    assert result.metrics["features/all/5_shot"] > 0.2


def begun(ingested_digits, pretrained, name: str, **fields):
    stages, dataset = ingested_digits
    return run(
        config(**{"init_from": "other", "updates": 1, "lr": 1e-30, **fields}),
        {"data": dataset, "init_from": pretrained.output}, stages.context(name),
    )  # fmt: skip


def test_another_one_goes_on_from_it_mask_head_and_all(ingested_digits, pretrained):
    stages, _ = ingested_digits
    result = begun(ingested_digits, pretrained, "again", objective={"kind": "masked", "ratio": 0.25})
    before, after = (read_state(stages.storage, output) for output in (pretrained.output, result.output))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before.keys() == after.keys()


@pytest.mark.parametrize("objective", ["supervised", {"kind": "masked", "target": "pixels"}])
def test_a_head_that_predicts_something_else_is_not_taken_over(ingested_digits, pretrained, objective):
    with pytest.raises(UserError, match=r"init_from: 'other' predicts mean_colour, and this stage (classes|pixels)"):
        begun(ingested_digits, pretrained, "refused", objective=objective)
