import math

import pytest
import torch

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
