import math

import pytest
import torch

from cluster.errors import UserError
from stages.data.manifest import dataset_meta
from stages.finetune.config import FinetuneConfig
from stages.finetune.run import run
from stages.metrics import MetricReader
from stages.models.resampling import resample_position_embeddings
from stages.models.store import read_state
from tests.unit.stages.chain import SMALL
from tests.unit.stages.models.outputs import commit_model, random_model

TINY_RATE = 1e-30
"""Far below the rounding of any weight but one that is zero."""


@pytest.fixture(scope="module", params=["scipy_bilinear", "bicubic"])
def finetuned(request, ingested_digits):
    """One update at four times the positions, at a rate that moves nothing: the weights before it, and the result."""
    stages, dataset = ingested_digits
    # Every tensor random, so that no fresh one can be taken for it; a head of another shape, with a hidden layer.
    model = random_model(3, resolution=8, num_classes=7, head="mlp_tanh", dropout=0.1)
    pretrained = commit_model(stages.context(f"pretrained-{request.param}"), model)
    config = FinetuneConfig.model_validate(
        {**SMALL, "data": "ingest", "from": "pretrain", "resolution": 16, "updates": 1, "lr": TINY_RATE,
         "resampling": request.param},
    )  # fmt: skip
    kind = f"finetune-{request.param}"
    result = run(config, {"data": dataset, "model": pretrained}, stages.context(kind, seed=9))
    return request.param, model.state_dict(), result, stages.jobs[-1], kind


@pytest.fixture(scope="module")
def made(ingested_digits):
    """What a fine-tuning of a small model with these fields leaves, and its job."""
    stages, dataset = ingested_digits
    pretrained = commit_model(stages.context("to-finetune"), random_model(3, resolution=8, num_classes=7))

    def make(name: str, inputs=(), **fields):
        body = {**SMALL, "data": "ingest", "from": "pretrain", "resolution": 8, "updates": 2, **fields}
        given = {"data": dataset, "model": pretrained, **dict(inputs)}
        return run(FinetuneConfig.model_validate(body), given, stages.context(name)), stages.jobs[-1]

    return make


def test_a_rate_is_taken_from_another_models_training(ingested_digits, made):
    stages, _ = ingested_digits
    # At twice the batch that its rate is for.
    source, _ = made("source", lr=0.25, lr_batch=SMALL["global_batch"] // 2, lr_scale="linear")
    assert source.output.meta["lr"] == source.metrics["lr"] == 0.5
    taken, job = made("taken", {"lr_from": source.output}, lr_from="source", lr_batch=1)
    assert (job.config.peak_lr, taken.output.meta["lr"]) == (0.5, 0.5)
    rates = [p.value for p in MetricReader(stages.storage, "stages/taken/x/attempts/1").new_points()
             if p.name == "train/lr"]  # fmt: skip
    assert rates[0] == 0.5


def test_a_model_whose_rate_nobody_knows_gives_none(ingested_digits, made):
    stages, _ = ingested_digits
    other = commit_model(stages.context("unknown"), random_model(3, resolution=8, num_classes=7))
    with pytest.raises(UserError, match="lr_from: of the model from 'import' no lr is known: make it anew"):
        made("none", {"lr_from": other}, lr_from="import")


@pytest.mark.parametrize(
    ("fields", "splits", "evaluation"),
    [
        ({}, ("train", "held_out"), {"validation", "test"}),
        ({"evaluate_splits": ["validation"]}, ("train", "held_out"), {"validation"}),
        ({"evaluate_splits": []}, ("train", "held_out"), set()),
        ({"train_splits": ["train", "validation"]}, ("train", "validation", "held_out"), {"test"}),
    ],
)
def test_splits_are_trained_on_or_evaluated_as_asked(made, fields, splits, evaluation):
    result, job = made("-".join(["splits", *map(str, fields), str(len(evaluation))]), **fields)
    assert (job.splits, set(job.evaluation)) == (splits, evaluation)
    assert {name.partition("/")[0] for name in result.metrics if "/" in name} == evaluation


def test_it_starts_from_the_pretrained_body(ingested_digits, finetuned):
    stages, _ = ingested_digits
    _, before, result, *_ = finetuned
    after = read_state(stages.storage, result.output)
    body = [name for name in after if name != "pos_embed" and not name.startswith("head.")]
    assert set(before) - set(after) == {name for name in before if name.startswith("pre_logits.")}
    assert len(body) > 20
    assert [name for name in body if not torch.equal(after[name], before[name])] == []


def test_position_embeddings_are_resampled_to_the_new_grid(ingested_digits, finetuned):
    stages, _ = ingested_digits
    mode, before, result, *_ = finetuned
    expected = resample_position_embeddings(before["pos_embed"], (2, 2), (4, 4), mode=mode)
    assert torch.equal(read_state(stages.storage, result.output)["pos_embed"], expected)


def test_the_head_is_new_for_all_classes_and_zero_at_the_start(ingested_digits, finetuned):
    stages, dataset = ingested_digits
    _, _, result, job, kind = finetuned
    after = read_state(stages.storage, result.output)
    assert after["head.weight"].shape[0] == 10
    assert max(float(after[f"head.{name}"].abs().max()) for name in ("weight", "bias")) < 1e3 * TINY_RATE
    # A network whose head is zero finds all classes equally likely.
    losses = [p.value for p in MetricReader(stages.storage, f"stages/{kind}/x/attempts/1").new_points()
              if p.name == "train/loss"]  # fmt: skip
    assert losses == [pytest.approx(math.log(10), abs=1e-6)]
    assert list(job.class_ids) == result.output.meta["class_ids"] == list(range(10))
    assert result.output.meta["classes"] == list(dataset_meta(dataset).classes)


def test_it_trains_on_the_classes_that_pretraining_has_not_seen_too(finetuned):
    _, _, result, job, _ = finetuned
    assert job.splits == ("train", "held_out")
    assert job.evaluation == {"validation": ("validation",), "test": ("test", "held_out_test")}
    assert {"validation/accuracy", "test/accuracy"} <= result.metrics.keys()
    assert job.model.dropout == 0
